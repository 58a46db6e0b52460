//! A cluster that kubeadm made: its certificates, its kubeconfigs, its flags, its objects. What it would have started as
//! static pods runs as processes in a namespace of the bench's network, behind HAProxy. Of kubeadm's flags only the
//! folder of the files is another one.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::images::{command, finish, release};
use kimage_qemu_tests::kubeadm::{self, Kubeadm};
use kimage_qemu_tests::namespaces::balancer::{Balancer, PORT};
use kimage_qemu_tests::namespaces::machine::{Blueprint, Contained, Special};
use kimage_qemu_tests::namespaces::network::{BENCH, Cable, Network};
use kimage_qemu_tests::processes::start_for_good;
use serde_json::Value;
use tempfile::TempDir;

/// The control plane's own address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 21);
const WORKER: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 31);
/// Nothing of this cluster is what kimage's would be.
pub(crate) const DNS_DOMAIN: &str = "foreign.example";
pub(crate) const DNS_SERVER: &str = "10.112.0.10";
pub(crate) const POD_SUBNET: &str = "10.50.0.0/16";
const SERVICE_SUBNET: &str = "10.112.0.0/16";
/// Generous: the host may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

/// What `kubeadm token create --print-join-command` tells an operator.
pub(crate) struct JoinCommand {
    pub(crate) endpoint: String,
    pub(crate) token: String,
    pub(crate) ca_cert_hash: String,
}

/// The running cluster. Dropping it ends it.
pub(crate) struct Cluster {
    services: Vec<(String, Child)>,
    _balancer: Balancer,
    cable: Cable,
    network: Network,
    kubeadm: Kubeadm,
    folder: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, service) in self.services.iter_mut().rev() {
            drop(service.kill());
            drop(service.wait());
        }
    }
}

impl Cluster {
    /// Has kubeadm make everything that needs no kubelet, in the order of `kubeadm init`.
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeadm = Kubeadm::new(&configuration(folder.path()))?;
        for phase in ["certs all", "kubeconfig all", "etcd local", "control-plane all"] {
            kubeadm.phase(phase, &["--dry-run"])?;
        }
        let ca = std::fs::read_to_string(kubeadm.files().join("ca.crt"))?;
        let network = Network::new()?;
        let mut cluster = Self {
            services: Vec::new(),
            _balancer: Balancer::start(&network, &[ADDRESS], &ca)?,
            cable: network.connect("cp1", ADDRESS)?,
            network,
            kubeadm,
            folder,
        };
        link_programs(&cluster.programs())?;
        for name in [
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            cluster.start_static_pod(name)?;
        }
        cluster.wait_for_api()?;
        for phase in ["upload-config all", "bootstrap-token", "addon all"] {
            let mut kubeadm = cluster.kubeadm(cluster.kubeadm.phase_words(phase));
            finish(kubeadm.arg("--kubeconfig").arg(cluster.kubeconfig()))?;
        }
        Ok(cluster)
    }

    fn programs(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// That of the administrator whom no object of the cluster must know.
    fn kubeconfig(&self) -> PathBuf {
        self.kubeadm.files().join("super-admin.conf")
    }

    /// kubeadm, to be run beside the control plane.
    fn kubeadm<Word: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Command {
        let mut kubeadm = self.beside(&kubeadm::program());
        kubeadm.args(words);
        kubeadm
    }

    /// A program where the control plane is.
    fn beside(&self, program: &Path) -> Command {
        let mut enter = command("nsenter");
        enter
            .arg(format!("--net={}", self.cable.namespace()))
            .arg(program);
        enter
    }

    /// Runs the command of a static pod that kubeadm wrote.
    fn start_static_pod(&mut self, name: &str) -> Result<()> {
        let files = self.kubeadm.files();
        let text = std::fs::read_to_string(files.join(format!("{name}.yaml")))?;
        let pod: Value = serde_saphyr::from_str(&text)?;
        let words = pod["spec"]["containers"][0]["command"].as_array();
        let words = words.with_context(|| format!("{name} has no command"))?;
        let words = words.iter().filter_map(Value::as_str);
        let words: Vec<String> = words.map(|word| kubeadm::moved(word, &files)).collect();
        let log = File::create(self.log(name))?;
        let mut service = self.beside(&self.programs().join(&words[0]));
        service.args(&words[1..]).stdout(log.try_clone()?).stderr(log);
        self.services.push((name.to_owned(), start_for_good(service)?));
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// Waits until the API is ready behind the balancer. Services that start before etcd does may end; so would pods.
    fn wait_for_api(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self.kubectl(&["get", "--raw", "/readyz"])?.status.success() {
            for (name, service) in &mut self.services {
                if let Some(status) = service.try_wait()? {
                    let log = std::fs::read_to_string(self.folder.path().join(format!("{name}.log")))?;
                    bail!("{name} ended ({status}): {}", last_lines(&log));
                }
            }
            ensure!(
                Instant::now() < end,
                "the API is not ready: {}",
                self.last_words()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let words = self.services.iter().map(|(name, _)| {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            format!("\n{name}:\n{}", last_lines(&log))
        });
        words.collect()
    }

    /// kubectl as an administrator, through the balancer.
    fn kubectl(&self, words: &[&str]) -> Result<Output> {
        let program = self.programs().join("kubectl");
        let mut kubectl = self.network.command(program.to_str().context("a path is text")?);
        kubectl.args(words).arg("--kubeconfig").arg(self.kubeconfig());
        Ok(kubectl.env("HOME", self.folder.path()).output()?)
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = self.kubectl(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {said}{}", self.last_words());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Objects of a kind, or `kind/name`; those of `kube-system` where the kind has namespaces.
    pub(crate) fn get(&self, what: &str) -> Result<Value> {
        self.ask(&["get", what, "--namespace=kube-system", "--output=json"])
    }

    /// What the API answers at a path.
    pub(crate) fn raw(&self, path: &str) -> Result<Value> {
        self.ask(&["get", "--raw", path])
    }

    /// Asks kubeadm how a node may join, as an operator would.
    pub(crate) fn join_command(&self) -> Result<JoinCommand> {
        let mut create = self.kubeadm(["token", "create", "--print-join-command", "--kubeconfig"]);
        let text = String::from_utf8(finish(create.arg(self.kubeconfig()))?.stdout)?;
        // kubeadm join 10.0.0.1:6443 --token t --discovery-token-ca-cert-hash sha256:h
        let words: Vec<&str> = text.split_whitespace().collect();
        let [
            "kubeadm",
            "join",
            endpoint,
            "--token",
            token,
            "--discovery-token-ca-cert-hash",
            hash,
        ] = words[..]
        else {
            bail!("a join command: {text}");
        };
        Ok(JoinCommand {
            endpoint: endpoint.to_owned(),
            token: token.to_owned(),
            ca_cert_hash: hash.to_owned(),
        })
    }

    /// A machine from the worker image, switched off.
    pub(crate) fn worker(&self, name: &str, config: &str) -> Result<Contained> {
        let shared = self.folder.path().join("shared");
        std::fs::create_dir_all(&shared)?;
        let blueprint = Blueprint {
            release: release("ubuntu-24.04", "worker")?,
            name: name.to_owned(),
            address: WORKER,
            config: config.to_owned(),
            instance: format!("i-{name}"),
            zone: "a".to_owned(),
            shared,
            special: Special::default(),
        };
        Contained::new(&self.network, blueprint)
    }
}

/// A cluster as kubeadm makes it by itself (RSA keys, no encryption at rest), behind the bench's balancer.
fn configuration(folder: &Path) -> String {
    format!(
        r#"apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {ADDRESS}, bindPort: {PORT}}}
nodeRegistration: {{name: cp1, criSocket: "unix:///run/containerd/containerd.sock"}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: foreign
controlPlaneEndpoint: {BENCH}:{PORT}
kubernetesVersion: v1.36.3
networking: {{podSubnet: {POD_SUBNET}, serviceSubnet: {SERVICE_SUBNET}, dnsDomain: {DNS_DOMAIN}}}
etcd: {{local: {{dataDir: {}}}}}
"#,
        folder.join("etcd").display()
    )
}

fn link_programs(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    let link = |source: &Path, name: &str| std::os::unix::fs::symlink(source, folder.join(name));
    let kubernetes = &component("kubernetes-control-plane").files[0].source;
    for name in [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
    ] {
        link(kubernetes, name)?;
    }
    let etcd = component("etcd").files;
    let etcd = etcd.iter().find(|file| file.path.ends_with("/etcd"));
    link(&etcd.context("the component has no etcd")?.source, "etcd")?;
    Ok(())
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
