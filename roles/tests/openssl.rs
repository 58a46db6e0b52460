//! OpenSSL reads what `certificate` and `inventory` write, and the other way round.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and openssl is its oracle"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use kimage_roles::certificate::{
    self, Authority, Kubeconfig, LEAF_LIFETIME, Profile, issue, new_key, public_key_hash, public_key_pem,
    request,
};
use kimage_roles::inventory::{self, Expected, Instance, InstanceList, InstanceState};
use kimage_roles::node_config::{Cidr, Cluster, KeyPair};
use kimage_roles::secret::Secret;

/// Runs openssl in `folder` and gives what it prints. Needs the package `openssl`, at least version 3.
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output();
    let output = output.expect("`openssl` runs: install the package openssl");
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text.into_owned()
}

fn write(folder: &Path, name: &str, pair: &KeyPair) {
    fs::write(folder.join(format!("{name}.crt")), &pair.certificate).unwrap();
    fs::write(folder.join(format!("{name}.key")), pair.key.reveal()).unwrap();
}

fn cluster() -> Cluster {
    Cluster {
        name: "prod".to_owned(),
        endpoint: "lb.example.com:6443".parse().unwrap(),
        api_names: vec!["192.0.2.7".to_owned()],
        service_subnet: Cidr::services(),
        pod_subnet: Cidr::pods(),
        dns_domain: "cluster.local".to_owned(),
    }
}

/// Name of the file, profile, and what `openssl x509 -text` must show besides what all leaves have.
fn leaves() -> Vec<(&'static str, Profile, Vec<&'static str>)> {
    const CLIENT: &str = "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n";
    const SERVER: &str = "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n";
    const BOTH: &str = "X509v3 Extended Key Usage: \n                TLS Web Server Authentication, TLS Web Client Authentication\n";
    let address = "10.0.0.5".parse().unwrap();
    let etcd = "DNS:etcd-1, DNS:localhost, IP Address:10.0.0.5, IP Address:127.0.0.1, \
                IP Address:0:0:0:0:0:0:0:1\n";
    vec![
        (
            "apiserver",
            Profile::api_server(&cluster(), "cp-1", address),
            vec![
                "Subject: CN = kube-apiserver\n",
                SERVER,
                "DNS:cp-1, DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, \
                 DNS:kubernetes.default.svc.cluster.local, DNS:lb.example.com, IP Address:10.0.0.5, \
                 IP Address:10.96.0.1, IP Address:192.0.2.7\n",
            ],
        ),
        (
            "apiserver-kubelet-client",
            Profile::api_server_kubelet_client(),
            vec!["Subject: CN = kube-apiserver-kubelet-client\n", CLIENT],
        ),
        (
            "front-proxy-client",
            Profile::front_proxy_client(),
            vec!["Subject: CN = front-proxy-client\n", CLIENT],
        ),
        (
            "apiserver-etcd-client",
            Profile::api_server_etcd_client(),
            vec!["Subject: CN = kube-apiserver-etcd-client\n", CLIENT],
        ),
        (
            "healthcheck-client",
            Profile::etcd_healthcheck_client(),
            vec!["Subject: CN = kube-etcd-healthcheck-client\n", CLIENT],
        ),
        (
            "server",
            Profile::etcd_server("etcd-1", address),
            vec!["Subject: CN = etcd-1\n", BOTH, etcd],
        ),
        (
            "peer",
            Profile::etcd_peer("etcd-1", address),
            vec!["Subject: CN = etcd-1\n", BOTH, etcd],
        ),
        (
            "admin",
            Profile::admin(),
            vec![
                "Subject: O = kubeadm:cluster-admins, CN = kubernetes-admin\n",
                CLIENT,
            ],
        ),
        (
            "super-admin",
            Profile::super_admin(),
            vec![
                "Subject: O = system:masters, CN = kubernetes-super-admin\n",
                CLIENT,
            ],
        ),
        (
            "controller-manager",
            Profile::controller_manager(),
            vec!["Subject: CN = system:kube-controller-manager\n", CLIENT],
        ),
        (
            "scheduler",
            Profile::scheduler(),
            vec!["Subject: CN = system:kube-scheduler\n", CLIENT],
        ),
        (
            "kubelet",
            Profile::kubelet_client("cp-1"),
            vec!["Subject: O = system:nodes, CN = system:node:cp-1\n", CLIENT],
        ),
    ]
}

#[test]
fn openssl_reads_every_leaf_as_kubeadm_would_make_it() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let pair = Authority::create("kubernetes", now).unwrap();
    write(folder.path(), "ca", &pair);
    let text = openssl(folder.path(), &["x509", "-in", "ca.crt", "-noout", "-text"]);
    for expected in [
        "Issuer: CN = kubernetes\n",
        "Subject: CN = kubernetes\n",
        "X509v3 Basic Constraints: critical\n                CA:TRUE\n",
        "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment, Certificate Sign\n",
        "X509v3 Subject Alternative Name: \n                DNS:kubernetes\n",
        "X509v3 Subject Key Identifier: \n",
        "ASN1 OID: prime256v1\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let authority = Authority::from_pair(&pair).unwrap();
    for (name, profile, expected) in leaves() {
        let leaf = issue(&authority, &profile, now, LEAF_LIFETIME).unwrap();
        write(folder.path(), name, &leaf);
        let certificate = format!("{name}.crt");
        let text = openssl(folder.path(), &["x509", "-in", &certificate, "-noout", "-text"]);
        let all = [
            "Version: 3 (0x2)\n",
            "Issuer: CN = kubernetes\n",
            "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
            "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment\n",
            "X509v3 Authority Key Identifier: \n",
            "ASN1 OID: prime256v1\n",
        ];
        for expected in expected.iter().chain(&all) {
            assert!(text.contains(expected), "{name}: {expected}\n{text}");
        }
        let purpose = if text.contains("Web Client") {
            "sslclient"
        } else {
            "sslserver"
        };
        openssl(
            folder.path(),
            &[
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                "ca.crt",
                &certificate,
            ],
        );
        let key = openssl(folder.path(), &["pkey", "-in", &format!("{name}.key"), "-pubout"]);
        let public = openssl(folder.path(), &["x509", "-in", &certificate, "-noout", "-pubkey"]);
        assert_eq!(key, public, "{name}");
        assert_eq!(public_key_pem(&leaf.key).unwrap(), public, "{name}");
        assert!(
            certificate::is_current(&leaf, &profile, &authority, now),
            "{name}"
        );
    }
    openssl(
        folder.path(),
        &[
            "verify",
            "-CAfile",
            "ca.crt",
            "-verify_hostname",
            "lb.example.com",
            "apiserver.crt",
        ],
    );
    openssl(
        folder.path(),
        &[
            "verify",
            "-CAfile",
            "ca.crt",
            "-verify_ip",
            "10.96.0.1",
            "apiserver.crt",
        ],
    );
    let der =
        "openssl x509 -in ca.crt -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -r";
    let output = Command::new("sh")
        .args(["-c", der])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let digest = String::from_utf8(output.stdout).unwrap();
    let digest = digest.split_whitespace().next().unwrap();
    assert_eq!(
        public_key_hash(&pair.certificate).unwrap(),
        format!("sha256:{digest}")
    );
}

/// kubeadm's own authorities have RSA keys in PKCS#1 or EC keys in SEC1.
#[test]
fn openssl_reads_a_request_that_asks_for_a_name_only() {
    let folder = tempfile::tempdir().unwrap();
    let text = request(&Profile::kubelet_client("w1"), &new_key().unwrap()).unwrap();
    fs::write(folder.path().join("request.pem"), text).unwrap();
    let words = ["req", "-in", "request.pem", "-noout", "-verify", "-text"];
    let said = openssl(folder.path(), &words).replace(' ', "");
    assert!(said.contains("verifyOK"), "{said}");
    assert!(
        said.contains("Subject:O=system:nodes,CN=system:node:w1\n"),
        "{said}"
    );
    assert!(!said.contains("X509v3"), "{said}");
}

#[test]
fn authorities_made_by_openssl_can_sign() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    openssl(here, &["genrsa", "-traditional", "-out", "rsa.key", "2048"]);
    openssl(
        here,
        &["ecparam", "-name", "prime256v1", "-genkey", "-out", "ec256.key"],
    );
    openssl(
        here,
        &[
            "ecparam",
            "-name",
            "secp384r1",
            "-genkey",
            "-noout",
            "-out",
            "ec384.key",
        ],
    );
    openssl(
        here,
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
            "pkcs8.key",
        ],
    );
    for (name, first_line) in [
        ("rsa", "RSA PRIVATE KEY"),
        ("ec256", "EC PARAMETERS"),
        ("ec384", "EC PRIVATE KEY"),
        ("pkcs8", "PRIVATE KEY"),
    ] {
        let key = fs::read_to_string(here.join(format!("{name}.key"))).unwrap();
        assert!(key.lines().next().unwrap().contains(first_line), "{name}");
        let (key_file, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        openssl(
            here,
            &[
                "req",
                "-x509",
                "-new",
                "-key",
                &key_file,
                "-out",
                &certificate,
                "-days",
                "30",
                "-subj",
                "/C=DE/O=Example GmbH/CN=Our CA",
                "-addext",
                "keyUsage=critical,keyCertSign,digitalSignature",
            ],
        );
        let pair = KeyPair {
            certificate: fs::read_to_string(here.join(&certificate)).unwrap(),
            key: Secret::new(key),
        };
        let authority = Authority::from_pair(&pair).unwrap();
        let profile = Profile::admin();
        let leaf = issue(&authority, &profile, SystemTime::now(), LEAF_LIFETIME).unwrap();
        write(here, "leaf", &leaf);
        openssl(
            here,
            &[
                "verify",
                "-purpose",
                "sslclient",
                "-CAfile",
                &certificate,
                "leaf.crt",
            ],
        );
        assert!(
            certificate::is_current(&leaf, &profile, &authority, SystemTime::now()),
            "{name}"
        );
    }
}

#[test]
fn a_service_account_key_signs_es256() {
    let folder = tempfile::tempdir().unwrap();
    let key = new_key().unwrap();
    fs::write(folder.path().join("sa.key"), key.reveal()).unwrap();
    fs::write(folder.path().join("sa.pub"), public_key_pem(&key).unwrap()).unwrap();
    fs::write(folder.path().join("message"), "a token").unwrap();
    openssl(
        folder.path(),
        &[
            "dgst",
            "-sha256",
            "-sign",
            "sa.key",
            "-out",
            "signature",
            "message",
        ],
    );
    openssl(
        folder.path(),
        &[
            "dgst",
            "-sha256",
            "-verify",
            "sa.pub",
            "-signature",
            "signature",
            "message",
        ],
    );
}

#[test]
fn a_list_signed_by_openssl_is_believed() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    openssl(
        here,
        &["genpkey", "-algorithm", "ed25519", "-out", "inventory.key"],
    );
    let public_key = openssl(here, &["pkey", "-in", "inventory.key", "-pubout"]);
    let list = InstanceList {
        cluster: "prod".to_owned(),
        sequence: 1,
        issued_at: 1_795_000_000,
        expires_at: 1_795_003_600,
        complete: true,
        instances: vec![Instance::new("i-1".to_owned(), InstanceState::Running)],
    };
    let json = serde_json::to_vec(&list).unwrap();
    fs::write(
        here.join("message"),
        [inventory::CONTEXT, json.as_slice()].concat(),
    )
    .unwrap();
    openssl(
        here,
        &[
            "pkeyutl",
            "-sign",
            "-rawin",
            "-inkey",
            "inventory.key",
            "-in",
            "message",
            "-out",
            "signature",
        ],
    );
    let signature = fs::read(here.join("signature")).unwrap();
    let document = format!(
        r#"{{"list":"{}","signature":"{}"}}"#,
        STANDARD.encode(&json),
        STANDARD.encode(&signature)
    );
    let expected = Expected {
        cluster: "prod",
        public_key: &public_key,
        seen: None,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_001),
    };
    assert_eq!(
        InstanceList::verify(document.as_bytes(), &expected).unwrap(),
        list
    );
    // Ed25519 is deterministic, so our signature over the same bytes is the same.
    let private = Secret::new(fs::read_to_string(here.join("inventory.key")).unwrap());
    assert_eq!(list.sign(&private).unwrap(), document.as_bytes());
}

#[test]
fn a_kubeconfig_is_what_client_go_reads() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let now = SystemTime::now();
    let ca = Authority::create("kubernetes", now).unwrap();
    let admin = issue(
        &Authority::from_pair(&ca).unwrap(),
        &Profile::admin(),
        now,
        LEAF_LIFETIME,
    )
    .unwrap();
    let kubeconfig = Kubeconfig {
        cluster: "kubernetes",
        server: "https://lb.example.com:6443",
        ca_certificate: &ca.certificate,
        user: "kubernetes-admin",
        credentials: certificate::Credentials::Certificate(&admin),
    };
    let value: serde_json::Value = serde_json::from_str(kubeconfig.to_json().reveal()).unwrap();
    let field = |pointer: &str| value.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let decoded = |pointer: &str| String::from_utf8(STANDARD.decode(field(pointer)).unwrap()).unwrap();
    assert_eq!(field("/clusters/0/cluster/server"), "https://lb.example.com:6443");
    assert_eq!(
        decoded("/clusters/0/cluster/certificate-authority-data"),
        ca.certificate
    );
    assert_eq!(
        decoded("/users/0/user/client-certificate-data"),
        admin.certificate
    );
    assert_eq!(decoded("/users/0/user/client-key-data"), admin.key.reveal());
}
