//! A cluster on bench B: dnsmasq gives addresses, and the bench is the platform. Its metadata service has the NodeConfigs
//! of machines that come in by that door, and the list of instances; the record of etcd's formation is in another etcd.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::metadata::Metadata;
use super::record::RecordKeeper;
use super::{Door, Order, Shipped};
use crate::clock::Clock;
use crate::cluster::machine::{Machine, Site};
use crate::cluster::{Cluster, Shape, zone};
use crate::images::release;
use crate::namespaces::leases::Leases;
use crate::namespaces::network::Network;

/// With it emulated machines on two cores lose no election and no node to slowness. By a slower clock they keep the
/// product's own times.
const TIMING: &str = r#"{"etcdHeartbeatMilliseconds": 500, "etcdElectionMilliseconds": 5000,
    "leaderLeaseSeconds": 60, "nodeGraceSeconds": 120}"#;
/// Generous: an emulated control plane that has half a core to itself answers only after a quarter of an hour.
pub const FORMATION: Duration = Duration::from_secs(1500);
/// For everything that a cluster does by itself once it runs.
pub const SOON: Duration = Duration::from_secs(600);
/// A handshake costs an emulated server dearly, and may take as long as this.
const CHECKS: Duration = Duration::from_secs(4);

/// What virtual machines find around them.
pub struct Platform {
    shape: Shape,
    metadata: Metadata,
    _record: RecordKeeper,
    _leases: Leases,
}

impl Site for Platform {
    fn publish(&self, document: &[u8]) -> Result<()> {
        self.metadata.publish(document);
        Ok(())
    }
}

impl Platform {
    /// A machine with a fresh disk, switched off, whose metadata the platform has.
    pub(super) fn make(&self, network: &Network, order: Order) -> Result<Shipped> {
        if order.door == Door::Ec2 {
            self.metadata.add(&order);
        }
        Shipped::new(network, order)
    }
}

impl Cluster<Shipped> {
    /// A cluster that may grow to `shape` and lives by the wall's clock; no machines yet.
    pub fn new(shape: Shape) -> Result<Self> {
        Self::living_by(Clock::wall(), shape)
    }

    /// As [`Cluster::new`], by `clock`.
    pub fn living_by(clock: Clock, shape: Shape) -> Result<Self> {
        Self::without_machines(shape, CHECKS, clock, |network, _| {
            Ok(Platform {
                shape,
                metadata: Metadata::serve(network)?,
                _record: RecordKeeper::start(network)?,
                _leases: Leases::serve(network, shape.machines().map(|(_, _, address)| address))?,
            })
        })
        .inspect(|cluster| {
            if clock.slowness() > 1 {
                cluster.say(&format!(
                    "a second of the machines' clocks takes {}",
                    clock.slowness()
                ));
            }
        })
    }

    /// Adds the machine called `name` of the cluster's shape, which gets its NodeConfig through `door`, and switches it on.
    pub fn start(&mut self, name: &str, door: Door) -> Result<()> {
        let mut all = self.site.shape.machines();
        let (role, name, address) = all
            .find(|(_, known, _)| known == name)
            .with_context(|| format!("the shape has no {name}"))?;
        let order = Order {
            release: release("ubuntu-24.04", role)?,
            address,
            config: self.user_data(role)?,
            door,
            instance: self.instances.add(&name),
            zone: zone(address).to_owned(),
            memory_mb: if role == "worker" { 2048 } else { 3072 },
            clock: self.clock,
            name,
        };
        let mut machine = self.site.make(&self.network, order)?;
        self.publish()?;
        machine.start()?;
        self.machines.push(machine);
        Ok(())
    }

    /// Starts more machines at once, as [`Cluster::start`], and waits until they are in service.
    pub fn bring_into_service(&mut self, names: &[&str], door: Door) -> Result<()> {
        for name in names {
            self.start(name, door)?;
        }
        for name in names {
            self.wait_for_one(name, FORMATION)?;
            self.say(&format!("{name} is in service"));
            let transcript = self.machine(name).transcript();
            ensure!(transcript.contains("UEFI Secure Boot is enabled"), "{transcript}");
        }
        Ok(())
    }

    fn user_data(&self, role: &str) -> Result<String> {
        let (record, inventory) = (RecordKeeper::url(), Metadata::inventory());
        let more = ["--record-etcd", &record, "--inventory-http", &inventory];
        let config = self
            .keys
            .user_data(role, if role == "worker" { &[] } else { &more })?;
        let mut config: Value = serde_json::from_str(&config)?;
        if self.clock.slowness() == 1 {
            config["timing"] = serde_json::from_str(TIMING)?;
        }
        Ok(config.to_string())
    }

    /// What the metadata service was asked, and how it answered.
    pub fn metadata_log(&self) -> Vec<String> {
        self.site.metadata.log()
    }
}
