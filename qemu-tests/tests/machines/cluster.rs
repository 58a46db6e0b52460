//! A cluster of virtual machines: `kimage cluster` makes its keys and user-data, HAProxy stands in front, dnsmasq gives
//! addresses, and the bench is the platform.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_firstboot::etcd::client::Gateway;
use kimage_firstboot::http::{self, Client, Trust};
use kimage_firstboot::join::is_ready;
use kimage_firstboot::kubernetes::{Api, Caller};
use kimage_qemu_tests::images::{command, finish, kimage, release};
use kimage_qemu_tests::namespaces::balancer::{Balancer, PORT};
use kimage_qemu_tests::namespaces::leases::Leases;
use kimage_qemu_tests::namespaces::network::{BENCH, Network};
use kimage_qemu_tests::shipped::{Door, Order, Shipped};
use kimage_roles::certificate::{Authority, Profile, issue};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Kubectl, until};
use super::metadata::Metadata;
use super::question::Kind;

/// Emulated machines on two cores lose no election and no node to slowness.
const TIMING: &str = r#"{"etcdHeartbeatMilliseconds": 500, "etcdElectionMilliseconds": 5000,
    "leaderLeaseSeconds": 60, "nodeGraceSeconds": 120}"#;
/// Between two checks of the balancer.
const CHECKS: Duration = Duration::from_secs(4);
/// Address of the cluster's DNS.
pub(crate) const DNS: &str = "10.96.0.10";

/// The cluster.
pub(crate) struct Cluster {
    // Machines go before the network that they are plugged into.
    machines: Vec<Shipped>,
    kubectl: Kubectl,
    keys: PathBuf,
    metadata: Metadata,
    _leases: Leases,
    _balancer: Balancer,
    network: Network,
    _folder: TempDir,
    began: Instant,
}

impl Cluster {
    /// A control plane that carries etcd and gets its NodeConfig from a NoCloud disk, and a worker that gets it from
    /// EC2's service. Both are switched off.
    pub(crate) fn of_two() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let keys = folder.path().join("keys");
        let endpoint = format!("{BENCH}:{PORT}");
        kimage_cluster(&["new", text(&keys)?, "--name", "bench", "--endpoint", &endpoint])?;
        let network = Network::new()?;
        let (control_plane, worker) = (Ipv4Addr::new(10, 89, 0, 21), Ipv4Addr::new(10, 89, 0, 31));
        let members = format!("cp1={control_plane}");
        let order = |name: &str, role, address, door, zone: &str, memory_mb| -> Result<Order> {
            let mut words = vec!["user-data", "--dir", text(&keys)?, "--role", role];
            if role == "control-plane" {
                words.extend(["--etcd-members", &members]);
            }
            let mut config: Value = serde_json::from_str(&kimage_cluster(&words)?)?;
            config["timing"] = serde_json::from_str(TIMING)?;
            Ok(Order {
                release: release("ubuntu-24.04", role)?,
                name: name.to_owned(),
                address,
                config: config.to_string(),
                door,
                instance: format!("i-{name}-1"),
                zone: zone.to_owned(),
                memory_mb,
            })
        };
        let orders = [
            order("cp1", "control-plane", control_plane, Door::NoCloud, "a", 3072)?,
            order("w1", "worker", worker, Door::Ec2, "b", 2048)?,
        ];
        let metadata = Metadata::serve(&network)?;
        let mut machines = Vec::new();
        for order in orders {
            if order.door == Door::Ec2 {
                metadata.add(&order);
            }
            machines.push(Shipped::new(&network, order)?);
        }
        let taps: Vec<_> = machines.iter().map(Shipped::tap).collect();
        let leases = Leases::serve(&network, &taps)?;
        let ca = std::fs::read_to_string(keys.join("ca.crt"))?;
        let balancer = Balancer::checking_every(CHECKS, &network, &[control_plane], &ca)?;
        let kubeconfig = folder.path().join("kubeconfig");
        kimage_cluster(&[
            "kubeconfig",
            "--dir",
            text(&keys)?,
            "--output",
            text(&kubeconfig)?,
        ])?;
        Ok(Self {
            machines,
            kubectl: Kubectl::new(&kubeconfig)?,
            keys,
            metadata,
            _leases: leases,
            _balancer: balancer,
            network,
            _folder: folder,
            began: Instant::now(),
        })
    }

    /// Says when something was reached.
    pub(crate) fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// The machine called `name`.
    pub(crate) fn machine(&mut self, name: &str) -> Result<&mut Shipped> {
        let mut machines = self.machines.iter_mut();
        machines
            .find(|machine| machine.name() == name)
            .with_context(|| format!("no machine {name}"))
    }

    /// All machines.
    pub(crate) fn machines(&mut self) -> &mut [Shipped] {
        &mut self.machines
    }

    /// What the metadata service was asked, and how it answered.
    pub(crate) fn metadata_log(&self) -> Vec<String> {
        self.metadata.log()
    }

    /// A table: what each machine did since it was switched on, and how long each took.
    pub(crate) fn print_phases(&mut self) {
        let columns: Vec<(String, BTreeMap<String, Duration>)> = self
            .machines
            .iter_mut()
            .map(|machine| {
                let rows = machine.phases().into_iter().collect();
                (machine.name().to_owned(), rows)
            })
            .collect();
        let names: String = columns.iter().map(|(name, _)| format!("{name:>10}")).collect();
        println!("{:<28}{names}", "phase");
        for row in ROWS {
            let mut line = format!("{row:<28}");
            for (_, rows) in &columns {
                let cell = rows
                    .get(row)
                    .map_or("-".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()));
                line.push_str(&format!("{cell:>10}"));
            }
            println!("{line}");
        }
    }

    fn issue(&self, authority: &str, profile: &Profile) -> Result<KeyPair> {
        let read = |ending: &str| std::fs::read_to_string(self.keys.join(format!("{authority}.{ending}")));
        let pair = KeyPair {
            certificate: read("crt")?,
            key: Secret::new(read("key")?),
        };
        let (now, life) = (std::time::SystemTime::now(), Duration::from_secs(86_400));
        Ok(issue(&Authority::from_pair(&pair)?, profile, now, life)?)
    }

    /// The API through the balancer, as an administrator.
    pub(crate) fn api(&self) -> Result<Api> {
        let ca = std::fs::read_to_string(self.keys.join("ca.crt"))?;
        let caller = Caller::Certificate(self.issue("ca", &Profile::super_admin())?);
        Ok(Api::new(
            &format!("https://{BENCH}:{PORT}"),
            Trust::Pinned(ca),
            caller,
        )?)
    }

    /// Makes all `objects` be.
    pub(crate) fn apply(&self, objects: &[Value], deadline: Duration) -> Result<()> {
        let api = self.api()?;
        for object in objects {
            let what = format!("apply {} {}", object["kind"], object["metadata"]["name"]);
            until(deadline, &what, || self.network.within(|| Ok(api.apply(object)?)))?;
        }
        Ok(())
    }

    /// The object at `path`.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let api = self.api()?;
        let found = self.network.within(|| Ok(api.get(path)?))?;
        found.with_context(|| format!("no {path}"))
    }

    /// The objects at `path`.
    pub(crate) fn items(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.get(path)?["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until all machines are Nodes and Ready; returns the Nodes, sorted by name.
    pub(crate) fn ready_nodes(&self, deadline: Duration) -> Result<Vec<Value>> {
        until(deadline, "all Nodes Ready", || {
            let nodes = self.items("/api/v1/nodes")?;
            let ready = nodes.iter().filter(|node| is_ready(node)).count();
            let wanted = self.machines.len();
            ensure!(ready == wanted, "{ready} of {wanted} Nodes are Ready");
            Ok(nodes)
        })
    }

    /// What kubectl prints.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl.run(&self.network, words)
    }

    /// What the client pod answers to a question.
    pub(crate) fn ask(&self, name: &str, kind: Kind) -> Result<Vec<Vec<u8>>> {
        self.kubectl.ask(&self.network, name, kind)
    }

    /// The bytes of a key in etcd itself, from the member on the control plane.
    pub(crate) fn in_etcd(&mut self, key: &str) -> Result<Vec<u8>> {
        let pair = self.issue("etcd-ca", &Profile::etcd_healthcheck_client())?;
        let settings = http::Settings {
            trust: Trust::Pinned(std::fs::read_to_string(self.keys.join("etcd-ca.crt"))?),
            identity: Some(http::Identity {
                certificate: pair.certificate,
                key: pair.key,
            }),
            ..http::Settings::default()
        };
        let gateway = Gateway::new(Client::new(&settings)?);
        let endpoint = format!("https://{}:2379", self.machine("cp1")?.order().address);
        let body = json!({"key": STANDARD.encode(key)});
        let answer = self
            .network
            .within(|| Ok(gateway.call_any(&[endpoint], "/v3/kv/range", &body)?))?;
        let value = answer["kvs"][0]["value"]
            .as_str()
            .with_context(|| format!("etcd has no key {key}"))?;
        Ok(STANDARD.decode(value)?)
    }
}

/// The table's rows, in order.
const ROWS: [&str; 11] = [
    "firmware, kernel, stage 0",
    "systemd until first boot",
    "platform",
    "metadata",
    "plan",
    "configure",
    "etcd",
    "control-plane",
    "join",
    "node",
    "in all",
];

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is text")
}

fn kimage_cluster(words: &[&str]) -> Result<String> {
    let output = finish(command(kimage()?).arg("cluster").args(words))?;
    Ok(String::from_utf8(output.stdout)?)
}
