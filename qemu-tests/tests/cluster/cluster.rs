//! A whole cluster in namespaces: `kimage cluster` makes its keys and user-data, HAProxy stands in front.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_firstboot::etcd::Id;
use kimage_firstboot::etcd::client::Gateway;
use kimage_firstboot::http::{self, Client, Trust};
use kimage_firstboot::join::is_ready;
use kimage_firstboot::kubernetes::{Api, Caller};
use kimage_qemu_tests::images::{command, finish, kimage, release};
use kimage_qemu_tests::namespaces::balancer::{Balancer, PORT};
use kimage_qemu_tests::namespaces::machine::{Blueprint, Machine, SHARED, Special};
use kimage_qemu_tests::namespaces::network::{BENCH, Network};
use kimage_roles::certificate::{Authority, Profile, issue};
use kimage_roles::inventory::{Instance, InstanceList, InstanceState};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;
use kimage_roles::status::Phase;
use serde_json::Value;
use tempfile::TempDir;

use super::random::shuffle;
use super::writer::{Record, Writer};

const POLL: Duration = Duration::from_millis(200);
/// A write that fails is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const ZONES: [&str; 3] = ["a", "b", "c"];

/// How many machines of each role; without machines for etcd it runs on the control planes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) etcd: u8,
    pub(crate) control_planes: u8,
    pub(crate) workers: u8,
}

/// The cluster.
pub(crate) struct Cluster {
    machines: Vec<Machine>,
    configs: BTreeMap<String, String>,
    inventory: Vec<Instance>,
    sequence: u64,
    keys: PathBuf,
    shared: PathBuf,
    releases: BTreeMap<&'static str, PathBuf>,
    shape: Shape,
    balancer: Option<Balancer>,
    network: Network,
    _folder: TempDir,
}

impl Cluster {
    /// All machines, switched off, with empty disks.
    pub(crate) fn new(shape: Shape) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (keys, shared) = (folder.path().join("keys"), folder.path().join("shared"));
        std::fs::create_dir(&shared)?;
        let endpoint = format!("{BENCH}:{PORT}");
        run_kimage(&[
            "cluster",
            "new",
            path(&keys)?,
            "--name",
            "bench",
            "--endpoint",
            &endpoint,
            "--etcd",
            if shape.etcd == 0 { "stacked" } else { "external" },
        ])?;
        let network = Network::new()?;
        let mut cluster = Self {
            machines: Vec::new(),
            configs: BTreeMap::new(),
            inventory: Vec::new(),
            sequence: 0,
            shape,
            balancer: None,
            keys,
            shared,
            releases: BTreeMap::new(),
            network,
            _folder: folder,
        };
        for (prefix, role, count) in [
            ("e", "etcd", shape.etcd),
            ("cp", "control-plane", shape.control_planes),
            ("w", "worker", shape.workers),
        ] {
            if count == 0 {
                continue;
            }
            let config = cluster.user_data(role)?;
            for number in 1..=count {
                cluster.add(
                    role,
                    &format!("{prefix}{number}"),
                    address(prefix, number),
                    &config,
                    1,
                )?;
            }
        }
        cluster.sign_inventory()?;
        cluster.start_balancer()?;
        Ok(cluster)
    }

    /// Puts the balancer in front of the control planes.
    pub(crate) fn start_balancer(&mut self) -> Result<()> {
        let backends: Vec<Ipv4Addr> = (1..=self.shape.control_planes)
            .map(|number| address("cp", number))
            .collect();
        let ca = std::fs::read_to_string(self.keys.join("ca.crt"))?;
        self.balancer = Some(Balancer::start(&self.network, &backends, &ca)?);
        Ok(())
    }

    pub(crate) fn stop_balancer(&mut self) {
        self.balancer = None;
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The NodeConfig of a role.
    pub(crate) fn user_data(&self, role: &str) -> Result<String> {
        let mut words = vec!["cluster", "user-data", "--dir", path(&self.keys)?, "--role", role];
        let (record, inventory) = (format!("{SHARED}/record"), format!("{SHARED}/inventory"));
        if role != "worker" {
            words.extend(["--record-file", &record, "--inventory-file", &inventory]);
        }
        run_kimage(&words)
    }

    fn add(
        &mut self,
        role: &'static str,
        name: &str,
        address: Ipv4Addr,
        config: &str,
        generation: u32,
    ) -> Result<()> {
        let machine = self.ordinary(role, name, address, config, generation)?;
        self.add_machine(machine)
    }

    pub(crate) fn add_machine(&mut self, blueprint: Blueprint) -> Result<()> {
        self.machines.push(Machine::new(&self.network, blueprint)?);
        Ok(())
    }

    /// What an ordinary machine is made of, which the inventory knows from now on.
    pub(crate) fn ordinary(
        &mut self,
        role: &'static str,
        name: &str,
        address: Ipv4Addr,
        config: &str,
        generation: u32,
    ) -> Result<Blueprint> {
        let instance = format!("i-{name}-{generation}");
        self.inventory.push(Instance {
            id: instance.clone(),
            state: InstanceState::Running,
        });
        self.configs.insert(name.to_owned(), config.to_owned());
        if !self.releases.contains_key(role) {
            self.releases.insert(role, release("ubuntu-24.04", role)?);
        }
        Ok(Blueprint {
            release: self.releases[role].clone(),
            name: name.to_owned(),
            address,
            config: config.to_owned(),
            instance,
            zone: ZONES[usize::from(address.octets()[3]) % ZONES.len()].to_owned(),
            shared: self.shared.clone(),
            special: Special::default(),
        })
    }

    /// Publishes who exists, as a platform would.
    fn sign_inventory(&mut self) -> Result<()> {
        self.sequence += 1;
        let list = InstanceList {
            cluster: "bench".to_owned(),
            sequence: self.sequence,
            issued_at: 0,
            expires_at: u64::MAX,
            complete: true,
            instances: self.inventory.clone(),
        };
        let key = Secret::new(std::fs::read_to_string(self.keys.join("inventory.key"))?);
        let beside = self.shared.join("inventory.new");
        std::fs::write(&beside, list.sign(&key)?)?;
        Ok(std::fs::rename(beside, self.shared.join("inventory"))?)
    }

    pub(crate) fn len(&self) -> usize {
        self.machines.len()
    }

    pub(crate) fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines
            .iter_mut()
            .find(|machine| machine.name() == name)
            .unwrap()
    }

    /// Makes a machine, which is off, anew with little room for etcd: two logs, a snapshot and not much more.
    pub(crate) fn give_small_disk(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let mut blueprint = self.machines.remove(index).into_blueprint();
        blueprint.special.disks = vec![("/var/lib/etcd", 256, 900)];
        self.add_machine(blueprint)
    }

    fn index(&self, name: &str) -> Result<usize> {
        let named = |machine: &Machine| machine.name() == name;
        self.machines
            .iter()
            .position(named)
            .with_context(|| name.to_owned())
    }

    /// The NodeConfig that a machine was made with.
    pub(crate) fn config_of(&self, name: &str) -> String {
        self.configs[name].clone()
    }

    /// Switches all machines on at once, in an order whose seed is printed.
    pub(crate) fn start_all_shuffled(&mut self) -> Result<()> {
        shuffle(&mut self.machines);
        self.machines.iter_mut().try_for_each(Machine::start)
    }

    pub(crate) fn kill_all(&mut self) -> Result<()> {
        self.machines.iter_mut().try_for_each(Machine::kill)
    }

    /// Waits until every machine says that it is in service.
    pub(crate) fn wait_for_service(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        for machine in &mut self.machines {
            machine.wait_for(Phase::InService, end.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    pub(crate) fn wait_for_one(&mut self, name: &str, deadline: Duration) -> Result<()> {
        self.machine(name).wait_for(Phase::InService, deadline).map(drop)
    }

    /// Destroys an etcd machine for good, tells the inventory, and starts a new one elsewhere.
    pub(crate) fn replace_etcd(&mut self, name: &str) -> Result<()> {
        self.machines.retain(|machine| machine.name() != name);
        let id = format!("i-{name}-1");
        self.inventory.retain(|instance| instance.id != id);
        let config = self.config_of(name);
        self.add("etcd", "e9", address("e", 9), &config, 1)?;
        self.sign_inventory()?;
        self.machine("e9").start()
    }

    pub(crate) fn print_phases(&self) {
        for machine in &self.machines {
            println!("{:<5} {}", machine.name(), machine.phases().join("  "));
        }
    }

    /// The API through the balancer, as an administrator.
    pub(crate) fn api(&self) -> Result<Api> {
        let pair = self.issue("ca", &Profile::super_admin())?;
        let ca = std::fs::read_to_string(self.keys.join("ca.crt"))?;
        Ok(Api::new(
            &format!("https://{BENCH}:{PORT}"),
            Trust::Pinned(ca),
            Caller::Certificate(pair),
        )?)
    }

    fn issue(&self, authority: &str, profile: &Profile) -> Result<KeyPair> {
        let read = |ending: &str| std::fs::read_to_string(self.keys.join(format!("{authority}.{ending}")));
        let pair = KeyPair {
            certificate: read("crt")?,
            key: Secret::new(read("key")?),
        };
        let now = std::time::SystemTime::now();
        Ok(issue(
            &Authority::from_pair(&pair)?,
            profile,
            now,
            Duration::from_secs(86_400),
        )?)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>> {
        let api = self.api()?;
        self.network.within(|| Ok(api.get(path)?))
    }

    pub(crate) fn items(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.get(path)?.with_context(|| format!("no {path}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Names of the machines that are to be Nodes.
    pub(crate) fn node_names(&self) -> BTreeSet<String> {
        let names = self.machines.iter().map(Machine::name);
        names
            .filter(|name| !name.starts_with('e'))
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn ready_nodes(&self) -> Result<BTreeSet<String>> {
        let nodes = self.items("/api/v1/nodes")?;
        let ready = nodes.iter().filter(|node| is_ready(node));
        Ok(ready
            .filter_map(|node| node["metadata"]["name"].as_str())
            .map(str::to_owned)
            .collect())
    }

    /// Waits until every kubelet has a serving certificate that our approver signed off.
    pub(crate) fn wait_for_serving_certificates(&self, deadline: Duration) -> Result<()> {
        let wanted: BTreeSet<String> = self
            .node_names()
            .iter()
            .map(|name| format!("system:node:{name}"))
            .collect();
        let end = Instant::now() + deadline;
        loop {
            let requests = self.items("/apis/certificates.k8s.io/v1/certificatesigningrequests")?;
            let issued = requests.iter().filter(|request| {
                request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
                    && request["status"]["certificate"].is_string()
            });
            let issued: BTreeSet<String> = issued
                .filter_map(|request| request["spec"]["username"].as_str())
                .map(str::to_owned)
                .collect();
            if issued == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < end, "serving certificates of {issued:?} only");
            std::thread::sleep(POLL);
        }
    }

    fn gateway(&self) -> Result<(Gateway, Vec<String>)> {
        let pair = self.issue("etcd-ca", &Profile::etcd_healthcheck_client())?;
        let settings = http::Settings {
            connect: Duration::from_secs(2),
            trust: Trust::Pinned(std::fs::read_to_string(self.keys.join("etcd-ca.crt"))?),
            identity: Some(http::Identity {
                certificate: pair.certificate,
                key: pair.key,
            }),
            ..http::Settings::default()
        };
        let prefix = if self.shape.etcd == 0 { "cp" } else { "e" };
        let members = self
            .machines
            .iter()
            .filter(|machine| machine.name().starts_with(prefix));
        let endpoints = members
            .map(|machine| format!("https://{}:2379", machine.address()))
            .collect();
        Ok((Gateway::new(Client::new(&settings)?), endpoints))
    }

    /// Ids of etcd's voting members, which all members agree on; one cluster.
    pub(crate) fn etcd_member_ids(&self) -> Result<BTreeSet<Id>> {
        let (gateway, endpoints) = self.gateway()?;
        self.network.within(|| {
            let mut views = BTreeSet::new();
            for endpoint in &endpoints {
                let (cluster, members) = gateway.members(endpoint, true)?;
                let voters: BTreeSet<Id> = members
                    .iter()
                    .filter(|member| !member.learner)
                    .map(|member| member.id)
                    .collect();
                views.insert((cluster, voters));
            }
            ensure!(views.len() == 1, "members disagree: {views:?}");
            views.pop_first().map(|(_, voters)| voters).context("no members")
        })
    }

    pub(crate) fn etcd_members(&self) -> Result<usize> {
        Ok(self.etcd_member_ids()?.len())
    }

    /// Waits until so many members vote and all answer.
    pub(crate) fn wait_for_etcd(&self, count: usize, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.etcd_member_ids() {
                Ok(members) if members.len() == count => return Ok(()),
                other if Instant::now() > end => bail!("members {other:?}"),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Writes so many objects of nearly a megabyte. Each is tried again: a member that falls over may be the leader.
    pub(crate) fn write_bulk(&self, count: u32) -> Result<()> {
        let api = self.api()?;
        self.network.within(|| {
            for number in 0..count {
                let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": format!("bulk-{number}")}, "data": {"zeros": "0".repeat(900 << 10)}});
                let end = Instant::now() + PATIENCE;
                loop {
                    match api.create("/api/v1/namespaces/kube-public/configmaps", &object) {
                        Err(error) if error.code() == Some(409) => break,
                        Err(error) if Instant::now() > end => return Err(error.into()),
                        Err(_) => std::thread::sleep(POLL),
                        Ok(_) => break,
                    }
                }
            }
            Ok(())
        })
    }

    /// Waits until a member of `old` has gone and as many members vote again.
    pub(crate) fn wait_for_etcd_without(&self, old: &BTreeSet<Id>, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.etcd_member_ids() {
                Ok(now) if now.len() == old.len() && now != *old => return Ok(()),
                other if Instant::now() > end => bail!("members {other:?}, before {old:?}"),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Waits until every control plane's API server was started with the members that etcd has now.
    pub(crate) fn wait_for_api_servers_to_follow(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.api_servers_that_lag() {
                Ok(lagging) if lagging.is_empty() => return Ok(()),
                other if Instant::now() > end => bail!("API servers with other members: {other:?}"),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    fn api_servers_that_lag(&self) -> Result<Vec<String>> {
        let (gateway, endpoints) = self.gateway()?;
        let view = self.network.within(|| Ok(gateway.view(&endpoints)?))?;
        let mut urls: Vec<&str> = view
            .voters()
            .flat_map(|member| member.client_urls.iter().map(String::as_str))
            .collect();
        urls.sort_unstable();
        let wanted = format!("--etcd-servers={}", urls.join(","));
        let mut lagging = Vec::new();
        for machine in self
            .machines
            .iter()
            .filter(|machine| machine.name().starts_with("cp"))
        {
            let show = [
                "systemctl",
                "show",
                "--property=MainPID",
                "--value",
                "kube-apiserver.service",
            ];
            let process = machine.run(&show)?;
            let line = machine.run(&["cat", &format!("/proc/{}/cmdline", process.trim())])?;
            if !line.split('\0').any(|word| word == wanted) {
                lagging.push(machine.name().to_owned());
            }
        }
        Ok(lagging)
    }

    /// Whether a Secret that the API has is unreadable in etcd itself.
    pub(crate) fn secret_in_etcd_is_ciphertext(&self) -> Result<bool> {
        let api = self.api()?;
        let clear = "a-word-that-must-not-be-read";
        let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "probe"},
            "stringData": {"word": clear}});
        self.network
            .within(|| Ok(api.create("/api/v1/namespaces/default/secrets", &secret)?))?;
        let (gateway, endpoints) = self.gateway()?;
        let key = STANDARD.encode("/registry/secrets/default/probe");
        let body = serde_json::json!({"key": key});
        let answer = self
            .network
            .within(|| Ok(gateway.call_any(&endpoints, "/v3/kv/range", &body)?))?;
        let value = answer["kvs"][0]["value"]
            .as_str()
            .context("etcd has no such key")?;
        let value = STANDARD.decode(value)?;
        let text = String::from_utf8_lossy(&value);
        Ok(text.starts_with("k8s:enc:secretbox:") && !text.contains(clear))
    }

    /// Starts the client that writes through the balancer.
    pub(crate) fn start_writer(&self) -> Result<Writer> {
        let api = self.api()?;
        let network = self.network.name().to_owned();
        Ok(Writer::start(api, |work| -> JoinHandle<Record> {
            std::thread::spawn(move || {
                Network::enter(&network).unwrap();
                work()
            })
        }))
    }

    /// Acknowledged writes that the cluster doesn't have.
    pub(crate) fn lost(&self, record: &Record) -> Result<Vec<String>> {
        let found = self.items("/api/v1/namespaces/default/configmaps")?;
        let found: BTreeSet<&str> = found
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        let lost = record
            .acknowledged
            .iter()
            .filter(|name| !found.contains(name.as_str()));
        Ok(lost.cloned().collect())
    }
}

pub(crate) fn address(prefix: &str, number: u8) -> Ipv4Addr {
    let first = match prefix {
        "e" => 10,
        "cp" => 20,
        _ => 30,
    };
    Ipv4Addr::new(10, 89, 0, first + number)
}

pub(crate) fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path is text")
}

pub(crate) fn run_kimage(words: &[&str]) -> Result<String> {
    let output = finish(command(kimage()?).args(words))?;
    Ok(String::from_utf8(output.stdout)?)
}
