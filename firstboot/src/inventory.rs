//! Who is gone, and who is where: the word of whoever makes the machines. Members of etcd are removed, and an unfinished
//! formation taken over, by this word only, and only if it is newer than the machine that it would remove.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use kimage_roles::cause::Cause;
use kimage_roles::inventory::{self, Edition, Expected, InstanceList, MAX_INVENTORY};
use kimage_roles::node_config;

use crate::failure::Failure;
use crate::host::read_bounded;
use crate::http::{Client, Settings};

mod seen;

pub use kimage_roles::inventory::Standing;
pub use seen::SeenLists;

/// An instance that takes part, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The platform's id of it.
    pub instance: String,
    /// When it said so last by its own clock, in seconds since 1970: it existed then. `None` when nobody knows.
    pub since: Option<u64>,
}

/// Says what is known of instances.
pub trait Inventory {
    /// What is known of an instance now. An error means that the source can't be asked or believed.
    fn standing(&self, claim: &Claim) -> Result<Standing, Failure>;

    /// All addresses that Nodes have, by their names, where it says so.
    fn nodes(&self) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Failure> {
        Ok(BTreeMap::new())
    }
}

/// No inventory: nothing is known of anybody.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Inventory for Nobody {
    fn standing(&self, _claim: &Claim) -> Result<Standing, Failure> {
        Ok(Standing::Unknown)
    }
}

/// The instances that existed when a NodeConfig was written; others that were there before are gone. The NodeConfig
/// doesn't say when that was: at the latest when this machine read it first, and it is noted then. A list that doesn't
/// name the machine which reads it is older than that machine and says nothing.
#[derive(Debug, Clone)]
pub struct Fixed {
    instances: Vec<String>,
    own: String,
    /// Stands for this very list among those that were seen.
    issuer: String,
    seen: SeenLists,
}

impl Fixed {
    /// The list `instances` on the instance `own`.
    pub fn new(mut instances: Vec<String>, own: &str, seen: SeenLists) -> Self {
        instances.sort();
        let digest = ring::digest::digest(&ring::digest::SHA256, instances.join("\n").as_bytes());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            instances,
            own: own.to_owned(),
            issuer: format!("static:{hex}"),
            seen,
        }
    }

    fn first_seen(&self) -> anyhow::Result<u64> {
        if let Some(edition) = self.seen.newest(&self.issuer)? {
            return Ok(edition.issued_at);
        }
        let edition = Edition {
            sequence: 0,
            issued_at: seconds(SystemTime::now()),
        };
        self.seen.note(&self.issuer, edition)?;
        Ok(edition.issued_at)
    }
}

impl Inventory for Fixed {
    fn standing(&self, claim: &Claim) -> Result<Standing, Failure> {
        let names = |instance: &String| self.instances.contains(instance);
        if !names(&self.own) {
            return Err(doubt(format!(
                "inventory.static doesn't name this instance ({}), so it is older; hint: name all instances in the \
                 NodeConfig",
                self.own
            )));
        }
        if names(&claim.instance) {
            return Ok(Standing::Present);
        }
        let issued_at = self.first_seen().map_err(|error| doubt(format!("{error:#}")))?;
        Ok(if inventory::speaks_of(issued_at, claim.since) {
            Standing::Gone
        } else {
            Standing::Newer
        })
    }
}

/// Where a signed list lies.
pub enum Source {
    /// On a web server.
    Http(String, Client),
    /// In a file.
    File(String),
}

/// A signed list ([`kimage_roles::inventory`]), read anew for every question.
pub struct Signed {
    source: Source,
    cluster: String,
    public_key: String,
    issuer: String,
    seen: SeenLists,
}

/// The inventory that the NodeConfig of the instance `own` names. `seen` outlives the process.
pub fn open(
    config: Option<&node_config::Inventory>,
    cluster: &str,
    own: &str,
    seen: SeenLists,
) -> Result<Box<dyn Inventory>, Failure> {
    let (source, key) = match config.cloned() {
        None => return Ok(Box::new(Nobody)),
        Some(node_config::Inventory::Static(instances)) => {
            return Ok(Box::new(Fixed::new(instances, own, seen)));
        }
        Some(node_config::Inventory::Http { url, public_key }) => {
            let settings = Settings {
                max_body: MAX_INVENTORY,
                ..Settings::default()
            };
            let client = Client::new(&settings).map_err(|error| Failure::new(Cause::Internal, error))?;
            (Source::Http(url, client), public_key)
        }
        Some(node_config::Inventory::File { path, public_key }) => (Source::File(path), public_key),
    };
    Ok(Box::new(Signed::new(source, cluster, &key, seen)?))
}

impl Signed {
    /// A signed list of `cluster`, believed if the Ed25519 key `public_key` (PEM, SubjectPublicKeyInfo) signed it and it
    /// isn't behind one that this machine has seen.
    pub fn new(source: Source, cluster: &str, public_key: &str, seen: SeenLists) -> Result<Self, Failure> {
        let issuer = inventory::issuer(public_key).map_err(|error| {
            Failure::because(Cause::ConfigInvalid, format!("inventory.publicKey: {error}"))
        })?;
        Ok(Self {
            source,
            cluster: cluster.to_owned(),
            public_key: public_key.to_owned(),
            issuer,
            seen,
        })
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        match &self.source {
            Source::Http(url, client) => Ok(client.get(url)?),
            Source::File(path) => Ok(read_bounded(Path::new(path), MAX_INVENTORY as u64)
                .map_err(|error| anyhow::anyhow!("{path}: {error}"))?),
        }
    }

    /// The list that lies there now. That it was seen is on the disk before anybody hears of it.
    fn list(&self) -> anyhow::Result<InstanceList> {
        let seen = self.seen.newest(&self.issuer)?;
        let expected = Expected {
            cluster: &self.cluster,
            public_key: &self.public_key,
            seen,
            now: SystemTime::now(),
        };
        let list = InstanceList::verify(&self.bytes()?, &expected)?;
        if seen != Some(list.edition()) {
            self.seen.note(&self.issuer, list.edition())?;
        }
        Ok(list)
    }
}

impl Inventory for Signed {
    fn standing(&self, claim: &Claim) -> Result<Standing, Failure> {
        let list = self.list().map_err(|error| doubt(format!("{error:#}")))?;
        Ok(list.standing(&claim.instance, claim.since))
    }

    fn nodes(&self) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Failure> {
        let list = self.list().map_err(|error| doubt(format!("{error:#}")))?;
        let nodes = list.nodes().into_iter();
        Ok(nodes
            .map(|(node, addresses)| (node.to_owned(), addresses))
            .collect())
    }
}

/// No inventory means: nobody is removed. The cause is that of the waiting that follows.
fn doubt(text: String) -> Failure {
    Failure::because(Cause::EtcdUnavailable, format!("inventory: {text}"))
}

/// Seconds since 1970; 0 before.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
