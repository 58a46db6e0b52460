//! Which instances of the cluster exist, as its platform knows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use anyhow::Result;
use kimage_roles::inventory::{Instance, InstanceList, InstanceState, MAX_VALIDITY};
use kimage_roles::secret::Secret;

/// The platform's list; each signing makes the next edition of it. Like most platforms it shows for a while what is no
/// more.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    running: Vec<String>,
    terminated: Vec<String>,
    /// Where Nodes are, as far as the list says so.
    places: BTreeMap<String, Vec<IpAddr>>,
    made: u32,
    sequence: u64,
}

impl Instances {
    /// A new instance for the machine called `name`; returns its id.
    pub(crate) fn add(&mut self, name: &str) -> String {
        self.made += 1;
        let id = format!("i-{name}-{}", self.made);
        self.running.push(id.clone());
        id
    }

    /// The instance is gone for good.
    pub(crate) fn remove(&mut self, id: &str) {
        self.running.retain(|known| known != id);
        self.terminated.push(id.to_owned());
    }

    /// The instance is gone for good and another one stands in its place; returns its id.
    pub(crate) fn replace(&mut self, id: &str) -> String {
        self.remove(id);
        self.add(name_in(id))
    }

    /// From now on the list says that the machine called `name` is at `addresses`.
    pub(crate) fn place(&mut self, name: &str, addresses: Vec<IpAddr>) {
        self.places.insert(name.to_owned(), addresses);
    }

    /// The list of all that exist at the moment `now`.
    pub(crate) fn sign(&mut self, cluster: &str, now: SystemTime, key: &Secret) -> Result<Vec<u8>> {
        self.sequence += 1;
        let instances = |ids: &[String], state| {
            let instance = |id: &String| Instance::new(id.clone(), state);
            ids.iter().map(instance).collect::<Vec<_>>()
        };
        let mut all = instances(&self.running, InstanceState::Running);
        for instance in &mut all {
            let name = name_in(&instance.id);
            if let Some(addresses) = self.places.get(name) {
                *instance = instance.clone().at(name, addresses.clone());
            }
        }
        all.extend(instances(&self.terminated, InstanceState::Terminated));
        let issued_at = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let list = InstanceList {
            cluster: cluster.to_owned(),
            sequence: self.sequence,
            issued_at,
            expires_at: issued_at + MAX_VALIDITY.as_secs(),
            complete: true,
            instances: all,
        };
        Ok(list.sign(key)?)
    }
}

/// The machine's name in `i-NAME-NUMBER`.
fn name_in(id: &str) -> &str {
    id.split('-').nth(1).unwrap_or(id)
}
