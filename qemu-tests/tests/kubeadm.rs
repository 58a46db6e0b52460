//! What first boot makes is what kubeadm makes: the real one, built from its Go module, is asked and every field
//! compared. `kubeadm/tables.rs` lists what differs on purpose.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

#[path = "kubeadm/certificate.rs"]
mod certificate;
#[path = "kubeadm/cluster.rs"]
mod cluster;
#[path = "kubeadm/difference.rs"]
mod difference;
#[path = "kubeadm/oracle.rs"]
mod oracle;
#[path = "kubeadm/tables.rs"]
mod tables;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_firstboot::arguments::Arguments;
use kimage_firstboot::control_plane::identity::{self, Signer};
use kimage_firstboot::control_plane::{api_server, controller_manager, scheduler};
use kimage_firstboot::kubelet;
use kimage_roles::certificate::{Authority, Credentials, Kubeconfig, LEAF_LIFETIME, issue};
use kimage_roles::node_config::KeyPair;
use serde_json::{Map, Value, json};

use difference::{Deviation, assert_decided};
use oracle::{machine, node_config, yaml};

/// Authorities that both sides name alike.
struct Authorities {
    kubernetes: KeyPair,
    front_proxy: KeyPair,
    etcd: KeyPair,
}

impl Authorities {
    fn new() -> Self {
        let create = |name: &str| Authority::create(name, SystemTime::now()).unwrap();
        Self {
            kubernetes: create("kubernetes"),
            front_proxy: create("front-proxy-ca"),
            etcd: create("etcd-ca"),
        }
    }

    fn of(&self, signer: Signer) -> Authority {
        Authority::from_pair(match signer {
            Signer::Kubernetes => &self.kubernetes,
            Signer::FrontProxy => &self.front_proxy,
            Signer::Etcd => &self.etcd,
        })
        .unwrap()
    }

    fn secrets(&self) -> Value {
        let pair = |pair: &KeyPair| json!({"certificate": pair.certificate, "key": pair.key.reveal()});
        json!({
            "etcdCa": pair(&self.etcd),
            "ca": pair(&self.kubernetes),
            "frontProxyCa": pair(&self.front_proxy),
            "serviceAccountKey": kimage_roles::certificate::new_key().unwrap().reveal(),
            "encryptionKey": STANDARD.encode([7; 32]),
            "bootstrapTokens": [{"token": oracle::TOKEN}],
        })
    }
}

/// Flags as a document, from `--name=value` each.
fn flags<'a>(words: impl IntoIterator<Item = &'a str>) -> Value {
    let mut found = Map::new();
    for word in words {
        let (name, value) = word.strip_prefix("--").unwrap().split_once('=').unwrap();
        let twice = found.insert(name.to_owned(), json!(value));
        assert_eq!(twice, None, "--{name} is given twice");
    }
    Value::Object(found)
}

fn same_flags(files: &Path, name: &str, ours: &Arguments, table: &[Deviation]) {
    let pod = yaml(&files.join(format!("{name}.yaml")));
    let words = pod["spec"]["containers"][0]["command"].as_array().unwrap();
    let theirs = flags(words[1..].iter().map(|word| word.as_str().unwrap()));
    let ours = ours.words();
    assert_decided(name, &theirs, &flags(ours.iter().map(String::as_str)), table);
}

#[test]
fn services_of_a_control_plane_have_kubeadms_flags() {
    let kubeadm = oracle::kubeadm_with_files();
    let files = kubeadm.files();
    let config = node_config(&Authorities::new().secrets());
    let etcd = ["https://127.0.0.1:2379".to_owned()];
    let api_server = api_server::arguments(&config, &machine(), &etcd);
    same_flags(&files, "kube-apiserver", &api_server, tables::API_SERVER);
    same_flags(
        &files,
        "kube-controller-manager",
        &controller_manager::arguments(&config),
        tables::CONTROLLER_MANAGER,
    );
    same_flags(
        &files,
        "kube-scheduler",
        &scheduler::arguments(&config),
        tables::SCHEDULER,
    );
}

#[test]
fn a_kubelet_has_kubeadms_configuration_and_flags() {
    let kubeadm = oracle::kubeadm_with_files();
    let theirs = |name: &str| std::fs::read_to_string(kubeadm.files().join(name)).unwrap();
    let config = node_config(&Authorities::new().secrets());
    let cluster = kubelet::cluster_configuration(&config);
    let files = kubelet::files(&config, &machine(), &cluster).unwrap();
    let ours = |name: &str| {
        let file = files.iter().find(|file| file.path.ends_with(name)).unwrap();
        assert_eq!(file.mode, 0o600, "{name}");
        file.content.clone()
    };
    let read = |text: &str| -> Value { serde_saphyr::from_str(text).unwrap() };
    assert_decided(
        "config.yaml",
        &read(&theirs("config.yaml")),
        &read(&ours("config.yaml")),
        tables::KUBELET,
    );
    assert_eq!(
        read(&theirs("instance-config.yaml")),
        read(&ours("instance-config.yaml"))
    );
    let flags_of = |text: &str| {
        let line = text.strip_prefix("KUBELET_KUBEADM_ARGS=\"").unwrap();
        flags(line.trim_end().trim_end_matches('"').split_whitespace())
    };
    assert_decided(
        "kubeadm-flags.env",
        &flags_of(&theirs("kubeadm-flags.env")),
        &flags_of(&ours("kubeadm-flags.env")),
        tables::KUBELET_FLAGS,
    );
}

#[test]
fn certificates_of_a_control_plane_say_what_kubeadms_say() {
    let kubeadm = oracle::kubeadm_with_files();
    let authorities = Authorities::new();
    let config = node_config(&authorities.secrets());
    let mut ours = Map::new();
    let mut say = |name: &str, pair: &KeyPair| {
        let name = name.trim_start_matches("/etc/kubernetes/pki/");
        ours.insert(
            name.to_owned(),
            certificate::describe(pair.certificate.as_bytes()),
        );
    };
    say("ca", &authorities.kubernetes);
    say("front-proxy-ca", &authorities.front_proxy);
    say("etcd/ca", &authorities.etcd);
    for leaf in identity::certificates(&config, &machine()) {
        let authority = authorities.of(leaf.signer);
        let pair = issue(&authority, &leaf.profile, SystemTime::now(), LEAF_LIFETIME).unwrap();
        say(&leaf.path, &pair);
    }
    let mut theirs = Map::new();
    for folder in ["", "etcd/"] {
        for entry in std::fs::read_dir(kubeadm.files().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "crt") {
                let name = format!("{folder}{}", path.file_stem().unwrap().to_str().unwrap());
                theirs.insert(name, certificate::describe(&std::fs::read(path).unwrap()));
            }
        }
    }
    assert_eq!(theirs.len(), 10, "kubeadm's certificates");
    assert_decided(
        "certificates",
        &Value::Object(theirs),
        &Value::Object(ours),
        tables::CERTIFICATES,
    );
}

#[test]
fn kubeconfigs_of_a_control_plane_are_kubeadms_but_for_the_balancer() {
    let kubeadm = oracle::kubeadm_with_files();
    let authorities = Authorities::new();
    let config = node_config(&authorities.secrets());
    let ca = authorities.of(Signer::Kubernetes);
    let mut ours = Map::new();
    for client in identity::kubeconfigs(&config, &machine()) {
        let pair = issue(&ca, &client.profile, SystemTime::now(), LEAF_LIFETIME).unwrap();
        let text = Kubeconfig {
            cluster: &client.cluster,
            server: &client.server,
            ca_certificate: &authorities.kubernetes.certificate,
            user: client.profile.common_name(),
            credentials: Credentials::Certificate(&pair),
        }
        .to_json();
        let name = Path::new(client.path).file_name().unwrap().to_str().unwrap();
        ours.insert(
            name.replace('.', "_"),
            opened(serde_json::from_str(text.reveal()).unwrap()),
        );
    }
    let mut theirs = Map::new();
    for name in [
        "admin",
        "super-admin",
        "controller-manager",
        "scheduler",
        "kubelet",
    ] {
        let kubeconfig = yaml(&kubeadm.files().join(format!("{name}.conf")));
        theirs.insert(format!("{name}_conf"), opened(kubeconfig));
    }
    assert_decided(
        "kubeconfigs",
        &Value::Object(theirs),
        &Value::Object(ours),
        tables::KUBECONFIGS,
    );
}

/// A kubeconfig with what its certificates say in place of their bytes.
fn opened(mut kubeconfig: Value) -> Value {
    let describe = |value: &mut Value| {
        let pem = STANDARD.decode(value.as_str().unwrap()).unwrap();
        *value = certificate::describe(&pem);
    };
    describe(&mut kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]);
    let user = &mut kubeconfig["users"][0]["user"];
    describe(&mut user["client-certificate-data"]);
    let key = user.as_object_mut().unwrap().remove("client-key-data");
    assert!(key.is_some_and(|key| !key.as_str().unwrap().is_empty()));
    kubeconfig
}

#[test]
fn a_real_control_plane_takes_our_files_and_its_objects_are_kubeadms() {
    let authorities = Authorities::new();
    let config = node_config(&authorities.secrets());
    let cluster = cluster::Cluster::start(&config, &authorities);
    cluster.elects_leaders();
    cluster.refuses_strangers();
    cluster.settles();

    let before: BTreeSet<String> = cluster.objects().keys().cloned().collect();
    let made = |mut objects: cluster::Objects| {
        objects.retain(|name, _| !before.contains(name));
        serde_json::to_value(objects).unwrap()
    };
    let etcd = "https://10.0.0.5:2379";
    let kubeadm = oracle::kubeadm(&format!(
        "{{external: {{endpoints: [\"{etcd}\"], caFile: /etc/kubernetes/pki/etcd/ca.crt, \
         certFile: /etc/kubernetes/pki/apiserver-etcd-client.crt, \
         keyFile: /etc/kubernetes/pki/apiserver-etcd-client.key}}}}"
    ));
    let kubeconfig = cluster.kubeconfig();
    for phase in ["upload-config all", "bootstrap-token", "addon all"] {
        kubeadm
            .phase(phase, &["--kubeconfig", kubeconfig.to_str().unwrap()])
            .unwrap();
    }
    let theirs = made(cluster.objects());
    cluster.delete_all_but(&before);

    let mut objects = kimage_firstboot::objects::all(&config, &[etcd.to_owned()]).unwrap();
    let tokens = kimage_firstboot::objects::tokens(&config, std::time::SystemTime::now()).unwrap();
    objects.extend(tokens.into_iter().map(|(_, secret)| secret));
    cluster.apply(&objects);
    cluster.apply(&objects);
    let ours = made(cluster.objects());
    assert_decided("objects", &theirs, &ours, tables::OBJECTS);
    cluster.lets_strangers_discover();
    cluster.keeps_secrets();
}
