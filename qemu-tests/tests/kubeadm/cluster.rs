//! etcd and the services of a control plane, run right here from the components that images are made of, with the files
//! that first boot renders. Only paths and ports differ from a machine's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use kimage_firstboot::arguments::Arguments;
use kimage_firstboot::control_plane::identity::{self, Signer};
use kimage_firstboot::control_plane::{self, api_server, controller_manager, scheduler};
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::images::command;
use kimage_qemu_tests::processes::start_for_good;
use kimage_roles::certificate::{Credentials, Kubeconfig, LEAF_LIFETIME, Profile, issue, public_key_pem};
use kimage_roles::node_config::{KeyPair, NodeConfig};
use serde_json::{Value, json};

use super::Authorities;
use super::oracle::machine;

/// Objects by kind, namespace and name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// All kinds that kubeadm or kimage makes.
const KINDS: &str = "namespaces,configmaps,secrets,serviceaccounts,services,deployments.apps,daemonsets.apps,\
    roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,\
    clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io";

/// A control plane.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    port: u16,
    store: u16,
    children: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Cluster {
    /// Starts etcd, kube-apiserver, kube-controller-manager and kube-scheduler, and waits until the API is ready.
    pub(crate) fn start(config: &NodeConfig, authorities: &Authorities) -> Self {
        let mut cluster = Self {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            store: free_port(),
            children: Vec::new(),
        };
        cluster.link_programs();
        cluster.write_files(config, authorities);
        let store = format!("http://127.0.0.1:{}", cluster.store);
        let peers = format!("http://127.0.0.1:{}", free_port());
        let data = cluster.path("etcd").display().to_string();
        let listen = ["--listen-client-urls", &store, "--advertise-client-urls", &store];
        let peer = [
            "--listen-peer-urls",
            &peers,
            "--initial-advertise-peer-urls",
            &peers,
        ];
        let initial = format!("default={peers}");
        let words = [
            &listen[..],
            &peer,
            &["--initial-cluster", &initial, "--data-dir", &data],
        ]
        .concat();
        cluster.spawn(
            "etcd",
            &words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(),
        );

        let arguments = api_server::arguments(config, &machine(), std::slice::from_ref(&store));
        let mut words = cluster.here(&arguments, cluster.port);
        words.push("--bind-address=127.0.0.1".into());
        cluster.spawn("kube-apiserver", &words);
        cluster.wait("the API", |cluster| {
            cluster.get(&["--raw", "/readyz"]).status.success()
        });
        for (name, arguments) in [
            ("kube-controller-manager", controller_manager::arguments(config)),
            ("kube-scheduler", scheduler::arguments(config)),
        ] {
            let words = cluster.here(&arguments, free_port());
            cluster.spawn(name, &words);
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("super-admin.conf")
    }

    fn link_programs(&self) {
        std::fs::create_dir(self.path("bin")).unwrap();
        let link = |source: &Path, name: &str| {
            std::os::unix::fs::symlink(source, self.path("bin").join(name)).unwrap();
        };
        let kubernetes = &component("kubernetes-control-plane").files[0].source;
        for name in [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubectl",
        ] {
            link(kubernetes, name);
        }
        for file in &component("etcd").files {
            let name = Path::new(&file.path).file_name().unwrap();
            link(&file.source, name.to_str().unwrap());
        }
    }

    /// What first boot puts below /etc/kubernetes.
    fn write_files(&self, config: &NodeConfig, authorities: &Authorities) {
        let own = |path: &str| PathBuf::from(self.moved(path));
        for file in control_plane::files(config, &machine(), &[]).unwrap() {
            write(&own(&file.path), &file.content);
        }
        let pair = |path: &str, pair: &KeyPair| {
            write(&own(&format!("{path}.crt")), &pair.certificate);
            write(&own(&format!("{path}.key")), pair.key.reveal());
        };
        pair("/etc/kubernetes/pki/ca", &authorities.kubernetes);
        pair("/etc/kubernetes/pki/front-proxy-ca", &authorities.front_proxy);
        let key = config
            .secrets
            .as_ref()
            .unwrap()
            .service_account_key
            .as_ref()
            .unwrap();
        write(&own("/etc/kubernetes/pki/sa.key"), key.reveal());
        write(&own("/etc/kubernetes/pki/sa.pub"), &public_key_pem(key).unwrap());
        let now = SystemTime::now();
        for leaf in identity::certificates(config, &machine()) {
            let made = issue(&authorities.of(leaf.signer), &leaf.profile, now, LEAF_LIFETIME).unwrap();
            pair(&leaf.path, &made);
        }
        let clients = identity::kubeconfigs(config, &machine());
        let clients = clients.iter().map(|client| (client.path, &client.profile));
        let super_admin = Profile::super_admin();
        let super_admin = ("/etc/kubernetes/super-admin.conf", &super_admin);
        for (path, profile) in clients.chain([super_admin]) {
            let made = issue(&authorities.of(Signer::Kubernetes), profile, now, LEAF_LIFETIME).unwrap();
            let text = Kubeconfig {
                cluster: "demo",
                server: &format!("https://127.0.0.1:{}", self.port),
                ca_certificate: &authorities.kubernetes.certificate,
                user: profile.common_name(),
                credentials: Credentials::Certificate(&made),
            }
            .to_json();
            let mut kubeconfig: Value = serde_json::from_str(text.reveal()).unwrap();
            // The certificate is for the machine, which this is not.
            kubeconfig["clusters"][0]["cluster"]["tls-server-name"] = json!("kubernetes");
            write(&own(path), &kubeconfig.to_string());
        }
    }

    /// A machine's path below this folder.
    fn moved(&self, text: &str) -> String {
        let folder = self.folder.path().display();
        text.replace("/etc/kubernetes", &folder.to_string())
            .replace("/var/log/kubernetes", &format!("{folder}/log"))
    }

    /// First boot's arguments, with paths and ports of here. etcd is not the matter of this test: it speaks HTTP.
    fn here(&self, arguments: &Arguments, port: u16) -> Vec<String> {
        let mut words: Vec<String> = arguments
            .words()
            .iter()
            .filter(|word| {
                ![
                    "--etcd-cafile",
                    "--etcd-certfile",
                    "--etcd-keyfile",
                    "--secure-port",
                ]
                .iter()
                .any(|start| word.starts_with(start))
            })
            .map(|word| self.moved(word))
            .collect();
        words.push(format!("--secure-port={port}"));
        words
    }

    fn spawn(&mut self, name: &str, words: &[String]) {
        let log = File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut service = command(self.path("bin").join(name));
        service.args(words).stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(start_for_good(service).unwrap());
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            let ended = self
                .children
                .iter_mut()
                .any(|child| child.try_wait().unwrap().is_some());
            assert!(
                !ended && begun.elapsed() < PATIENCE,
                "{what}: {}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        for name in [
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!(
                "\n{name}:\n{}",
                lines[lines.len().saturating_sub(8)..].join("\n")
            ));
        }
        text
    }

    fn kubectl(&self, words: &[&str]) -> std::process::Command {
        let mut kubectl = command(self.path("bin/kubectl"));
        kubectl
            .args(words)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.folder.path());
        kubectl
    }

    fn get(&self, words: &[&str]) -> Output {
        self.kubectl(&[&["get"], words].concat()).output().unwrap()
    }

    /// Controller manager and scheduler run on our arguments: each holds its lease.
    pub(crate) fn elects_leaders(&self) {
        let begun = Instant::now();
        let held = |name: &str| {
            let lease = self.get(&[
                "lease",
                "-n",
                "kube-system",
                name,
                "-o",
                "jsonpath={.spec.leaseDurationSeconds}",
            ]);
            lease.status.success() && lease.stdout == b"15"
        };
        while !(held("kube-controller-manager") && held("kube-scheduler")) {
            assert!(begun.elapsed() < PATIENCE, "no leader: {}", self.last_words());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the controllers have made all that they make by themselves.
    pub(crate) fn settles(&self) {
        let names = || self.objects().into_keys().collect::<Vec<_>>();
        let (mut before, mut since, begun) = (names(), Instant::now(), Instant::now());
        while since.elapsed() < Duration::from_secs(6) {
            assert!(begun.elapsed() < PATIENCE, "controllers make more and more");
            std::thread::sleep(Duration::from_secs(1));
            let now = names();
            if now != before {
                (before, since) = (now, Instant::now());
            }
        }
    }

    /// Status and answer of an anonymous GET. kubectl never asks without credentials.
    fn stranger(&self, path: &str) -> (u16, String) {
        let mut child = command("openssl")
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                "-servername",
                "kubernetes",
            ])
            .arg("-CAfile")
            .arg(self.path("pki/ca.crt"))
            .args(["-connect", &format!("127.0.0.1:{}", self.port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: kubernetes\r\nConnection: close\r\n\r\n");
        // Open until the answer is whole: openssl hangs up when its input ends.
        let mut input = child.stdin.take().unwrap();
        input.write_all(request.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(input);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{path}: {answer}")), answer)
    }

    /// Health is for everybody, everything else is refused before authorization.
    pub(crate) fn refuses_strangers(&self) {
        for path in ["/livez", "/readyz", "/healthz"] {
            assert_eq!(self.stranger(path).0, 200, "{path}");
        }
        for path in [
            "/",
            "/version",
            "/api",
            "/metrics",
            "/livez/etcd",
            "/debug/pprof/",
        ] {
            assert_eq!(self.stranger(path).0, 401, "{path}");
        }
        let profile = self.get(&["--raw", "/debug/pprof/"]);
        assert!(
            !profile.status.success(),
            "profiling is off even for administrators"
        );
    }

    /// A machine that wants to join sees the cluster's identity, signed, and nothing beside it.
    pub(crate) fn lets_strangers_discover(&self) {
        let maps = "/api/v1/namespaces/kube-public/configmaps";
        let begun = Instant::now();
        // The signature that joining machines check is made with the token of our Secret.
        loop {
            let (status, answer) = self.stranger(&format!("{maps}/cluster-info"));
            assert_eq!(status, 200, "{answer}");
            if answer.contains("jws-kubeconfig-abcdef") {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "no signature: {}", self.last_words());
            std::thread::sleep(Duration::from_millis(500));
        }
        assert_eq!(self.stranger(maps).0, 401);
    }

    /// A Secret is ciphertext in etcd; the audit log knows of it and not what is in it.
    pub(crate) fn keeps_secrets(&self) {
        let words = [
            "create",
            "secret",
            "generic",
            "probe",
            "-n",
            "kube-system",
            "--from-literal=a=kimage-plain-text",
        ];
        assert!(self.kubectl(&words).status().unwrap().success());
        let stored = command(self.path("bin/etcdctl"))
            .args(["--endpoints", &format!("http://127.0.0.1:{}", self.store)])
            .args(["get", "--print-value-only", "/registry/secrets/kube-system/probe"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&stored.stdout);
        assert!(text.starts_with("k8s:enc:secretbox:v1:key-"), "{text}");
        assert!(!text.contains("kimage-plain-text"));
        let log = std::fs::read_to_string(self.path("log/audit/audit.log")).unwrap();
        let line = log
            .lines()
            .find(|line| line.contains("\"name\":\"probe\""))
            .unwrap();
        assert!(line.contains("\"level\":\"Metadata\""), "{line}");
        let plain = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "kimage-plain-text");
        assert!(!log.contains(&plain) && !log.contains("kimage-plain-text"));
    }

    /// All objects, without what the server says about them.
    pub(crate) fn objects(&self) -> Objects {
        let output = self.get(&[KINDS, "--all-namespaces", "-o", "json"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|object| (name_of(object), stripped(object.clone())))
            .collect()
    }

    /// Removes what is not in `keep`.
    pub(crate) fn delete_all_but(&self, keep: &std::collections::BTreeSet<String>) {
        for name in self.objects().keys().filter(|name| !keep.contains(*name)) {
            let mut words = name.split(' ');
            let (kind, place) = (words.next().unwrap(), words.next().unwrap());
            let (namespace, name) = place.split_once('/').unwrap();
            let mut delete = self.kubectl(&["delete", "--cascade=background", "--wait=true", kind, name]);
            if !namespace.is_empty() {
                delete.args(["-n", namespace]);
            }
            let output = delete.output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    /// Applies objects as first boot does: server-side.
    pub(crate) fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut child = self
            .kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--field-manager=kimage",
                "-f",
                "-",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(list.to_string().as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success(), "kubectl apply");
    }
}

fn name_of(object: &Value) -> String {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

/// Without the server's own fields; configuration inside of ConfigMaps is opened.
fn stripped(mut object: Value) -> Value {
    let members = object.as_object_mut().unwrap();
    members.remove("status");
    let metadata = members["metadata"].as_object_mut().unwrap();
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
    ] {
        metadata.remove(field);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("deployment.kubernetes.io/revision");
        annotations.remove("deprecated.daemonset.template.generation");
    }
    if members["kind"] == "ConfigMap" {
        let data = members["data"].as_object_mut().unwrap();
        // The controller manager's signature over the rest.
        data.retain(|key, _| !key.starts_with("jws-kubeconfig-"));
        for text in data.values_mut() {
            let inner: Result<Value, _> = serde_saphyr::from_str(text.as_str().unwrap());
            if let Ok(inner @ Value::Object(_)) = inner {
                *text = inner;
            }
        }
    }
    object
}

fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
