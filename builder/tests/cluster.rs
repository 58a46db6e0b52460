//! `kimage cluster` as people and scripts use it: the real binary, its files, and what reads them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_builder::tool::Tool;
use kimage_roles::certificate::{Authority, Validity, check_pair, public_key_hash, validity_of};
use kimage_roles::node_config::{
    BootstrapToken, EtcdLayout, Formation, Inventory, KeyPair, NodeConfig, RecordStore,
};
use kimage_roles::secret::Secret;

/// Everything in the folder, secret or not.
const FILES: [&str; 13] = [
    "bootstrap-tokens.json",
    "ca.crt",
    "ca.key",
    "cluster.toml",
    "encryption.key",
    "etcd-ca.crt",
    "etcd-ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "inventory.key",
    "inventory.pub",
    "sa.key",
    "sa.pub",
];
const MEMBERS: &str = "cp-1=10.0.0.1,cp-2=10.0.0.2,cp-3=10.0.0.3";

fn kimage(folder: &Path, arguments: &[&str]) -> Output {
    Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(arguments)
        .directory(folder)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard output of a command that must succeed.
fn output_of(folder: &Path, arguments: &[&str]) -> String {
    let output = kimage(folder, arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that must be refused as wrong usage.
fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let output = kimage(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn new(folder: &Path, more: &[&str]) {
    let arguments = [
        "cluster",
        "new",
        "prod",
        "--name",
        "prod",
        "--endpoint",
        "lb.example.com:6443",
    ];
    output_of(folder, &[&arguments, more].concat());
}

fn document(folder: &Path, more: &[&str]) -> NodeConfig {
    let text = output_of(
        folder,
        &[&["cluster", "user-data", "--dir", "prod"], more].concat(),
    );
    NodeConfig::from_yaml(text.as_bytes()).unwrap()
}

fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_cluster_is_complete_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    new(folder.path(), &[]);
    let cluster = folder.path().join("prod");
    let before = content(&cluster);
    assert_eq!(before.keys().map(String::as_str).collect::<Vec<_>>(), FILES);
    assert_eq!(mode(&cluster), 0o700);
    for name in FILES {
        assert_eq!(mode(&cluster.join(name)), 0o600, "{name}");
    }
    for (name, common_name) in [
        ("ca", "kubernetes"),
        ("front-proxy-ca", "front-proxy-ca"),
        ("etcd-ca", "etcd-ca"),
    ] {
        let certificate = fs::read_to_string(cluster.join(format!("{name}.crt"))).unwrap();
        let key = Secret::new(fs::read_to_string(cluster.join(format!("{name}.key"))).unwrap());
        Authority::from_pair(&KeyPair { certificate, key }).unwrap();
        let file = cluster.join(format!("{name}.crt"));
        let subject = Tool::new("openssl")
            .args(["x509", "-noout", "-subject", "-in"])
            .arg(file);
        let subject = subject.inherit(&["PATH"]).run().unwrap();
        assert!(
            text(&subject)
                .trim_end()
                .ends_with(&format!("CN = {common_name}")),
            "{}",
            text(&subject)
        );
    }
    let key = STANDARD.decode(text(&before["encryption.key"]).trim()).unwrap();
    assert!(key.len() == 32 && key.iter().any(|byte| *byte != key[0]));

    let again = ["cluster", "new", "prod", "--name", "x", "--endpoint", "x:1"];
    let error = refusal(folder.path(), &again);
    assert!(error.contains("never overwrites"), "{error}");
    assert_eq!(content(&cluster), before);
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["prod"], "nothing is left beside");
}

#[test]
fn a_killed_command_leaves_no_half_cluster() {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    let folder = tempfile::tempdir().unwrap();
    let mut whole = 0;
    for round in 0..40u64 {
        let name = format!("c{round}");
        #[expect(clippy::disallowed_methods, reason = "a child that is killed while it runs")]
        let mut child = Command::new(env!("CARGO_BIN_EXE_kimage"))
            .args(["cluster", "new", &name, "--name", "c", "--endpoint", "lb:6443"])
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        let cluster = folder.path().join(&name);
        if cluster.exists() {
            whole += 1;
            assert_eq!(
                content(&cluster).keys().map(String::as_str).collect::<Vec<_>>(),
                FILES
            );
            output_of(
                folder.path(),
                &["cluster", "user-data", "--dir", &name, "--role", "worker"],
            );
        }
    }
    // What a killed command left beside is its owner's only.
    for entry in fs::read_dir(folder.path()).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o700);
    }
    println!("{whole} of 40 were finished before they were killed");
}

#[test]
fn a_workers_document_holds_no_private_key() {
    let folder = tempfile::tempdir().unwrap();
    new(folder.path(), &[]);
    let arguments = ["cluster", "user-data", "--dir", "prod", "--role", "worker"];
    let text = output_of(folder.path(), &arguments);
    let cluster = content(&folder.path().join("prod"));
    for name in [
        "ca.key",
        "etcd-ca.key",
        "front-proxy-ca.key",
        "sa.key",
        "encryption.key",
        "inventory.key",
    ] {
        let secret = std::str::from_utf8(&cluster[name]).unwrap();
        let line = secret.lines().max_by_key(|line| line.len()).unwrap();
        assert!(!text.contains(line), "{name}");
    }
    assert!(!text.contains("PRIVATE") && text.len() < 2048, "{}", text.len());
    let config = NodeConfig::from_yaml(text.as_bytes()).unwrap();
    assert!(config.secrets.is_none());
    let hash = public_key_hash(std::str::from_utf8(&cluster["ca.crt"]).unwrap()).unwrap();
    assert_eq!(config.join.unwrap().ca_cert_hashes, [hash]);

    // A folder from which the private keys were taken away still serves workers.
    for name in [
        "ca.key",
        "etcd-ca.key",
        "front-proxy-ca.key",
        "sa.key",
        "encryption.key",
        "inventory.key",
    ] {
        fs::remove_file(folder.path().join("prod").join(name)).unwrap();
    }
    assert_eq!(output_of(folder.path(), &arguments), text);
    let error = refusal(folder.path(), &["cluster", "kubeconfig", "--dir", "prod"]);
    assert!(error.contains("ca.key"), "{error}");
}

/// Standard error of a command that must succeed.
fn warnings_of(folder: &Path, arguments: &[&str]) -> String {
    let output = kimage(folder, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_token_that_never_ends_and_one_that_has_ended_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let create = [
        "cluster",
        "new",
        "prod",
        "--name",
        "prod",
        "--endpoint",
        "lb:6443",
    ];
    let said = warnings_of(folder.path(), &create);
    assert!(
        said.contains("never ends") && said.contains("--token-lifetime"),
        "{said}"
    );
    let file = folder.path().join("prod/bootstrap-tokens.json");
    let tokens = fs::read_to_string(&file).unwrap();
    let token: BootstrapToken = serde_json::from_str::<Vec<_>>(&tokens).unwrap().remove(0);
    let (id, secret) = token.token.reveal().split_once('.').unwrap();

    let user_data = ["cluster", "user-data", "--dir", "prod", "--role"];
    let worker = [&user_data[..], &["worker"]].concat();
    let control_plane = [&user_data[..], &["control-plane", "--etcd-members", MEMBERS]].concat();
    let lived = |expires: &str| {
        let token = serde_json::json!([{"token": token.token.reveal(), "expires": expires}]);
        fs::write(&file, token.to_string()).unwrap();
    };
    for role in [&worker, &control_plane] {
        fs::write(&file, &tokens).unwrap();
        let said = warnings_of(folder.path(), role);
        assert!(said.contains(&format!("token {id} never ends")), "{said}");
        assert!(
            said.contains("bootstrap-tokens.json") && !said.contains(secret),
            "{said}"
        );
        lived("2026-01-31T12:00:00Z");
        let said = warnings_of(folder.path(), role);
        assert!(said.contains(&format!("token {id} has ended")), "{said}");
        lived("2999-01-31T12:00:00Z");
        let said = warnings_of(folder.path(), role);
        assert!(!said.contains("token"), "{said}");
    }
    // An etcd machine gets no token.
    fs::write(&file, &tokens).unwrap();
    let description = folder.path().join("prod/cluster.toml");
    let text = fs::read_to_string(&description).unwrap();
    fs::write(&description, text.replace("stacked", "external")).unwrap();
    let etcd = [&user_data[..], &["etcd", "--etcd-members", MEMBERS]].concat();
    assert!(!warnings_of(folder.path(), &etcd).contains("token"));
    // What has an end is nothing to warn about.
    let create = [
        "cluster",
        "new",
        "lab",
        "--name",
        "lab",
        "--endpoint",
        "lb:6443",
        "--token-lifetime",
        "24h",
    ];
    assert!(!warnings_of(folder.path(), &create).contains("warning"));
}

#[test]
fn keys_of_a_control_plane_that_its_pods_may_read_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    new(folder.path(), &["--token-lifetime", "24h"]);
    let user_data = ["cluster", "user-data", "--dir", "prod", "--role"];
    let control_plane = [&user_data[..], &["control-plane", "--etcd-members", MEMBERS]].concat();
    assert!(!warnings_of(folder.path(), &control_plane).contains("warning"));
    let description = folder.path().join("prod/cluster.toml");
    let text = fs::read_to_string(&description).unwrap();
    let open = text.replace("podMetadata = \"blocked\"", "podMetadata = \"allowed\"");
    assert_ne!(text, open);
    fs::write(&description, open).unwrap();
    let said = warnings_of(folder.path(), &control_plane);
    assert!(
        said.contains("network.podMetadata") && said.contains("every key"),
        "{said}"
    );
    let worker = [&user_data[..], &["worker"]].concat();
    assert!(!warnings_of(folder.path(), &worker).contains("warning"));
}

#[test]
fn documents_of_control_planes_and_etcd_hold_what_their_role_needs() {
    let folder = tempfile::tempdir().unwrap();
    new(
        folder.path(),
        &[
            "--etcd",
            "external",
            "--api-name",
            "192.0.2.9",
            "--pod-subnet",
            "10.32.0.0/14",
            "--network",
            "none",
            "--token-lifetime",
            "24h",
        ],
    );
    let config = document(
        folder.path(),
        &[
            "--role",
            "control-plane",
            "--etcd-members",
            MEMBERS,
            "--instances",
            "i-1,i-2",
            "--label",
            "team=a",
            "--taint",
            "x=y:NoSchedule",
        ],
    );
    assert_eq!(
        (config.cluster.name.as_str(), config.cluster.api_names.as_slice()),
        ("prod", &["192.0.2.9".to_owned()][..])
    );
    assert_eq!(config.node.labels["team"], "a");
    assert_eq!(
        config.inventory,
        Some(Inventory::Static(vec!["i-1".to_owned(), "i-2".to_owned()]))
    );
    let etcd = config.etcd.unwrap();
    assert_eq!(etcd.layout, EtcdLayout::External);
    assert!(matches!(etcd.formation, Formation::Static(members) if members.len() == 3));
    let secrets = config.secrets.unwrap();
    for pair in [
        Some(&secrets.etcd_ca),
        secrets.ca.as_ref(),
        secrets.front_proxy_ca.as_ref(),
    ] {
        check_pair(pair.unwrap()).unwrap();
    }
    assert!(
        secrets.bootstrap_tokens[0]
            .expires
            .as_ref()
            .unwrap()
            .ends_with('Z')
    );
    let worker = document(folder.path(), &["--role", "worker"]);
    assert_eq!(worker.join.unwrap().token, secrets.bootstrap_tokens[0].token);

    let record = [
        "--record",
        "s3://bucket/prod/etcd",
        "--record-region",
        "eu-central-1",
    ];
    let config = document(
        folder.path(),
        &[
            &["--role", "etcd", "--inventory-http", "https://inv/list"],
            &record[..],
        ]
        .concat(),
    );
    let secrets = config.secrets.unwrap();
    assert!(
        secrets.ca.is_none() && secrets.service_account_key.is_none() && secrets.bootstrap_tokens.is_empty()
    );
    let Some(Formation::Record(RecordStore::S3 {
        endpoint,
        bucket,
        key,
        ..
    })) = config.etcd.map(|etcd| etcd.formation)
    else {
        panic!("not a record in a bucket")
    };
    assert_eq!(
        [endpoint, bucket, key],
        ["https://s3.eu-central-1.amazonaws.com", "bucket", "prod/etcd"]
    );
    let public = fs::read_to_string(folder.path().join("prod/inventory.pub")).unwrap();
    assert_eq!(
        config.inventory,
        Some(Inventory::Http {
            url: "https://inv/list".to_owned(),
            public_key: public
        })
    );

    fs::write(folder.path().join("token"), "t0ken\n").unwrap();
    fs::write(folder.path().join("credentials"), "AK:s3cr3t/+\n").unwrap();
    for (arguments, secret) in [
        (
            &["--record-http", "https://record/prod", "--record-token", "token"][..],
            Some("t0ken"),
        ),
        (
            &[
                "--record",
                "s3://bucket/k",
                "--record-region",
                "x",
                "--record-credentials",
                "credentials",
            ],
            Some("s3cr3t/+"),
        ),
        (
            &[
                "--record-etcd",
                "https://10.1.0.1:2379,https://10.1.0.2:2379",
                "--record-ca",
                "prod/ca.crt",
            ],
            None,
        ),
        (&["--record-file", "/mnt/shared/prod"], None),
    ] {
        let config = document(folder.path(), &[&["--role", "etcd"], arguments].concat());
        let formation = config.etcd.unwrap().formation;
        let json = serde_json::to_string(&formation).unwrap();
        assert!(
            secret.is_none_or(|secret| json.contains(&format!("\"{secret}\""))),
            "{json}"
        );
        assert!(secret.is_none_or(|secret| !format!("{formation:?}").contains(secret)));
    }
}

#[test]
fn wrong_options_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let new_with = |more: &[&str]| {
        let arguments = ["cluster", "new", "bad", "--name", "bad", "--endpoint", "lb:6443"];
        let error = refusal(folder.path(), &[&arguments, more].concat());
        assert!(!folder.path().join("bad").exists());
        error
    };
    assert!(new_with(&["--pod-subnet", "10.96.0.0/16"]).contains("cluster.podSubnet"));
    assert!(new_with(&["--pod-subnet", "10.96.0.0"]).contains("not a range"));
    assert!(new_with(&["--dns-domain", "A"]).contains("cluster.dnsDomain"));
    assert!(new_with(&["--token-lifetime", "soon"]).contains("8h"));
    assert!(
        refusal(
            folder.path(),
            &["cluster", "new", "bad", "--name", "B", "--endpoint", "lb:6443"]
        )
        .contains("cluster.name")
    );
    assert!(
        refusal(
            folder.path(),
            &["cluster", "new", "bad", "--name", "b", "--endpoint", "lb"]
        )
        .contains("host:port")
    );
    assert!(
        refusal(
            folder.path(),
            &["cluster", "user-data", "--dir", "none", "--role", "worker"]
        )
        .contains("kimage cluster new DIR")
    );

    new(folder.path(), &[]);
    let user_data = |more: &[&str]| {
        refusal(
            folder.path(),
            &[&["cluster", "user-data", "--dir", "prod"], more].concat(),
        )
    };
    assert!(user_data(&["--role", "boss"]).contains("control-plane, etcd, worker"));
    assert!(user_data(&["--role", "control-plane"]).contains("--etcd-members"));
    assert!(
        user_data(&["--role", "worker", "--etcd-members", "a=10.0.0.1"]).contains("nothing to do with etcd")
    );
    assert!(user_data(&["--role", "etcd", "--etcd-members", "a=10.0.0.1"]).contains("etcd.layout"));
    assert!(
        user_data(&[
            "--role",
            "control-plane",
            "--etcd-members",
            "a=10.0.0.1,a=10.0.0.2"
        ])
        .contains("static[1].name")
    );
    assert!(user_data(&["--role", "control-plane", "--record", "s3://b/c"]).contains("--record-region"));
    assert!(
        user_data(&[
            "--role",
            "control-plane",
            "--etcd-members",
            "a=10.0.0.1",
            "--record-file",
            "/x"
        ])
        .contains("cannot be used")
    );
    assert!(
        user_data(&["--role", "worker", "--label", "node-role.kubernetes.io/x="]).contains("NodeRestriction")
    );
    assert!(user_data(&["--role", "worker", "--taint", "x"]).contains("node.taints[0]"));
    assert!(user_data(&["--role", "worker", "--label", "a=1", "--label", "a=2"]).contains("twice"));

    let toml = folder.path().join("prod/cluster.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace("[timing]", "[timing]\nleaderLease = 3")).unwrap();
    assert!(user_data(&["--role", "worker"]).contains("leaderLease"));
    fs::write(
        &toml,
        text.replace("leaderLeaseSeconds = 15", "leaderLeaseSeconds = 0"),
    )
    .unwrap();
    assert!(user_data(&["--role", "worker"]).contains("timing.leaderLeaseSeconds"));
    fs::write(
        &toml,
        text.replace("leaderLeaseSeconds = 15", "leaderLeaseSeconds = 60"),
    )
    .unwrap();
    assert_eq!(
        document(folder.path(), &["--role", "worker"])
            .timing
            .leader_lease_seconds,
        60
    );
    // An authority whose key is another's is named, and nothing of it is shown.
    fs::copy(
        folder.path().join("prod/etcd-ca.key"),
        folder.path().join("prod/ca.key"),
    )
    .unwrap();
    let output = kimage(folder.path(), &["cluster", "kubeconfig", "--dir", "prod"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        std::str::from_utf8(&output.stderr)
            .unwrap()
            .contains("belongs to another certificate")
    );
    assert!(!std::str::from_utf8(&output.stderr).unwrap().contains("PRIVATE"));
}

#[test]
fn a_kubeconfig_holds_a_client_certificate_of_the_chosen_life() {
    let folder = tempfile::tempdir().unwrap();
    new(folder.path(), &[]);
    let arguments = ["cluster", "kubeconfig", "--dir", "prod"];
    let read = |text: &str| -> (serde_json::Value, String) {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let certificate = value["users"][0]["user"]["client-certificate-data"]
            .as_str()
            .unwrap();
        let certificate = String::from_utf8(STANDARD.decode(certificate).unwrap()).unwrap();
        (value, certificate)
    };
    let (value, certificate) = read(&output_of(folder.path(), &arguments));
    assert_eq!(
        value["clusters"][0]["cluster"]["server"],
        "https://lb.example.com:6443"
    );
    assert_eq!(value["current-context"], "kubernetes-admin@prod");
    let Validity { from, until } = validity_of(&certificate).unwrap();
    assert_eq!(until - from, 8 * 3600 + 300);

    let more = [
        "--lifetime",
        "30d",
        "--user",
        "alice",
        "--group",
        "developers",
        "--server",
        "127.0.0.1:7000",
        "--output",
        "alice",
    ];
    let written = [&arguments, &more[..]].concat();
    assert!(output_of(folder.path(), &written).is_empty());
    assert_eq!(mode(&folder.path().join("alice")), 0o600);
    let (value, certificate) = read(&fs::read_to_string(folder.path().join("alice")).unwrap());
    assert_eq!(
        value["clusters"][0]["cluster"]["server"],
        "https://127.0.0.1:7000"
    );
    let Validity { from, until } = validity_of(&certificate).unwrap();
    assert_eq!(until - from, 30 * 86_400 + 300);
    fs::write(folder.path().join("alice.crt"), certificate).unwrap();
    let openssl = |arguments: &[&str]| {
        let tool = Tool::new("openssl")
            .args(arguments)
            .directory(folder.path())
            .inherit(&["PATH"]);
        String::from_utf8(tool.run().unwrap()).unwrap()
    };
    let subject = openssl(&["x509", "-noout", "-subject", "-in", "alice.crt"]);
    assert_eq!(subject.trim_end(), "subject=O = developers, CN = alice");
    openssl(&[
        "verify",
        "-purpose",
        "sslclient",
        "-CAfile",
        "prod/ca.crt",
        "alice.crt",
    ]);

    assert!(refusal(folder.path(), &written).contains("--force"));
    output_of(folder.path(), &[&written, &["--force"][..]].concat());
    assert!(refusal(folder.path(), &[&arguments, &["--lifetime", "0h"][..]].concat()).contains("30d"));
}

#[test]
fn a_large_document_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    // A token without an end would be warned about too.
    new(folder.path(), &["--token-lifetime", "24h"]);
    let members: Vec<String> = (1..250)
        .map(|n| format!("{}-{n}=10.0.0.{n}", "m".repeat(50)))
        .collect();
    let members = members.join(",");
    let arguments = [
        "cluster",
        "user-data",
        "--dir",
        "prod",
        "--role",
        "control-plane",
        "--etcd-members",
        &members,
    ];
    let output = kimage(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("EC2"), "{}", text(&output.stderr));
    let arguments = [
        "cluster",
        "user-data",
        "--dir",
        "prod",
        "--role",
        "control-plane",
        "--etcd-members",
        MEMBERS,
    ];
    let output = kimage(folder.path(), &arguments);
    assert!(
        output.stderr.is_empty() && output.stdout.len() < 6000,
        "{} bytes",
        output.stdout.len()
    );
}

#[test]
fn help_teaches_the_way_from_keys_to_kubectl() {
    let folder = tempfile::tempdir().unwrap();
    for (command, words) in [
        (
            &["cluster", "--help"][..],
            &["new", "user-data", "kubeconfig"][..],
        ),
        (
            &["cluster", "new", "--help"],
            &["kimage cluster new ./prod", "/readyz", "external"],
        ),
        (
            &["cluster", "user-data", "--help"],
            &["--record-region", "control-plane", "inventory.key"],
        ),
        (
            &["cluster", "kubeconfig", "--help"],
            &["system:masters", "[default: 8h]"],
        ),
    ] {
        let help = output_of(folder.path(), command);
        for word in words {
            assert!(help.contains(word), "{word}: {help}");
        }
    }
}
