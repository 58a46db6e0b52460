//! A cluster on bench A. Machines share a folder: the record of etcd's formation and the inventory are files in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::machine::{Blueprint, Contained, SHARED, Special};
use crate::clock::Clock;
use crate::cluster::machine::{Machine, Site};
use crate::cluster::{Cluster, Shape, until, zone};
use crate::images::release;

const CHECKS: Duration = Duration::from_secs(1);
/// A write that fails is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const INVENTORY: &str = "inventory";

/// What machines in namespaces share.
#[derive(Debug)]
pub struct Shared {
    folder: PathBuf,
    releases: BTreeMap<&'static str, PathBuf>,
}

impl Site for Shared {
    fn publish(&self, document: &[u8]) -> Result<()> {
        let beside = self.folder.join("inventory.new");
        fs::write(&beside, document)?;
        Ok(fs::rename(beside, self.folder.join(INVENTORY))?)
    }
}

impl Cluster<Contained> {
    /// All machines of `shape`, switched off, with empty disks.
    pub fn new(shape: Shape) -> Result<Self> {
        Self::described(shape, |text| text)
    }

    /// The same, in a cluster whose description `change` has changed.
    pub fn described(shape: Shape, change: impl FnOnce(String) -> String) -> Result<Self> {
        let mut cluster = Self::without_machines(shape, CHECKS, Clock::wall(), |_, folder| {
            let folder = folder.join("shared");
            fs::create_dir(&folder)?;
            Ok(Shared {
                folder,
                releases: BTreeMap::new(),
            })
        })?;
        cluster.keys.describe(change)?;
        for (role, name, address) in shape.machines() {
            cluster.add(role, &name, address)?;
        }
        cluster.publish()?;
        Ok(cluster)
    }

    /// The NodeConfig of a role.
    pub fn user_data(&self, role: &str) -> Result<String> {
        let (record, inventory) = (format!("{SHARED}/record"), format!("{SHARED}/{INVENTORY}"));
        let more = ["--record-file", &record, "--inventory-file", &inventory];
        self.keys
            .user_data(role, if role == "worker" { &[] } else { &more })
    }

    fn add(&mut self, role: &'static str, name: &str, address: Ipv4Addr) -> Result<()> {
        let config = self.user_data(role)?;
        let machine = self.ordinary(role, name, address, &config)?;
        self.add_machine(machine)
    }

    /// Makes a machine of `blueprint`, switched off.
    pub fn add_machine(&mut self, blueprint: Blueprint) -> Result<()> {
        self.machines.push(Contained::new(&self.network, blueprint)?);
        Ok(())
    }

    /// What an ordinary machine is made of: an instance that the next inventory names.
    pub fn ordinary(
        &mut self,
        role: &'static str,
        name: &str,
        address: Ipv4Addr,
        config: &str,
    ) -> Result<Blueprint> {
        let site = &mut self.site;
        if !site.releases.contains_key(role) {
            site.releases.insert(role, release("ubuntu-24.04", role)?);
        }
        Ok(Blueprint {
            release: site.releases[role].clone(),
            name: name.to_owned(),
            address,
            config: config.to_owned(),
            instance: self.instances.add(name),
            zone: zone(address).to_owned(),
            shared: site.folder.clone(),
            special: Special::default(),
        })
    }

    /// Makes a machine, which is off, anew with little room for etcd: two logs, a snapshot and not much more.
    pub fn give_small_disk(&mut self, name: &str) -> Result<()> {
        let mut blueprint = self.take(name)?.into_blueprint();
        blueprint.special.disks = vec![("/var/lib/etcd", 256, 900)];
        self.add_machine(blueprint)
    }

    /// The inventory says from now on that the Node called `name` has `addresses`.
    pub fn publish_place(&mut self, name: &str, addresses: Vec<IpAddr>) -> Result<()> {
        self.instances.place(name, addresses);
        self.publish()
    }

    /// Destroys the machine called `name` for good, tells the inventory, and starts another one of the same role, called
    /// `successor`, at `address`.
    pub fn move_machine(&mut self, name: &str, successor: &str, address: Ipv4Addr) -> Result<()> {
        let mut blueprint = self.take(name)?.into_blueprint();
        self.instances.remove(&blueprint.instance);
        blueprint.instance = self.instances.add(successor);
        blueprint.name = successor.to_owned();
        blueprint.address = address;
        blueprint.zone = zone(address).to_owned();
        self.add_machine(blueprint)?;
        self.publish()?;
        self.machine(successor).start()
    }

    /// Waits until every kubelet has a serving certificate that our approver signed off.
    pub fn wait_for_serving_certificates(&self, deadline: Duration) -> Result<()> {
        let wanted = self.node_names();
        until(deadline, "serving certificates", || {
            let requests = self.items("/apis/certificates.k8s.io/v1/certificatesigningrequests")?;
            let issued = requests.iter().filter(|request| {
                request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
                    && request["status"]["certificate"].is_string()
            });
            let issued = issued
                .filter_map(|request| request["spec"]["username"].as_str()?.strip_prefix("system:node:"))
                .map(str::to_owned)
                .collect();
            ensure!(wanted == issued, "of {issued:?} only");
            Ok(())
        })
    }

    /// Writes so many objects of nearly a megabyte. Each is tried again: a member that falls over may be the leader.
    pub fn write_bulk(&self, count: u32) -> Result<()> {
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
                        Err(_) => std::thread::sleep(Duration::from_millis(200)),
                        Ok(_) => break,
                    }
                }
            }
            Ok(())
        })
    }

    /// Waits until every control plane's API server was started with the members that etcd has now.
    pub fn wait_for_api_servers_to_follow(&self, deadline: Duration) -> Result<()> {
        until(deadline, "API servers with the members of now", || {
            let lagging = self.api_servers_that_lag()?;
            ensure!(lagging.is_empty(), "{lagging:?} have others");
            Ok(())
        })
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
}
