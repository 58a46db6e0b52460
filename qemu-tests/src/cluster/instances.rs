//! Which instances of the cluster exist, as its platform knows it.

use anyhow::Result;
use kimage_roles::inventory::{Instance, InstanceList, InstanceState};
use kimage_roles::secret::Secret;

/// The platform's list; each signing makes the next edition of it.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    running: Vec<String>,
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
    }

    /// The instance is gone for good and another one stands in its place; returns its id.
    pub(crate) fn replace(&mut self, id: &str) -> String {
        self.remove(id);
        // `i-NAME-NUMBER`
        let name = id.split('-').nth(1).unwrap_or(id).to_owned();
        self.add(&name)
    }

    /// The list of all that exist.
    pub(crate) fn sign(&mut self, cluster: &str, key: &Secret) -> Result<Vec<u8>> {
        self.sequence += 1;
        let instances = self.running.iter().map(|id| Instance {
            id: id.clone(),
            state: InstanceState::Running,
        });
        let list = InstanceList {
            cluster: cluster.to_owned(),
            sequence: self.sequence,
            issued_at: 0,
            expires_at: u64::MAX,
            complete: true,
            instances: instances.collect(),
        };
        Ok(list.sign(key)?)
    }
}
