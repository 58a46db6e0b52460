//! Who is gone: the word of whoever makes the machines. Members of etcd are removed, and an unfinished formation taken
//! over, by this word only.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use kimage_roles::cause::Cause;
use kimage_roles::inventory::{Expected, InstanceList, InstanceState, MAX_INVENTORY, check_public_key};
use kimage_roles::node_config;

use crate::failure::Failure;
use crate::host::read_bounded;
use crate::http::{Client, Settings};

/// What is known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists.
    Present,
    /// It was deleted and never comes back.
    Gone,
    /// Nobody says.
    Unknown,
}

/// Says what is known of instances.
pub trait Inventory {
    /// What is known of `instance` now. An error means that the source can't be asked or believed.
    fn standing(&self, instance: &str) -> Result<Standing, Failure>;
}

/// No inventory: nothing is known of anybody.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Inventory for Nobody {
    fn standing(&self, _instance: &str) -> Result<Standing, Failure> {
        Ok(Standing::Unknown)
    }
}

/// The instances that exist; all others are gone.
#[derive(Debug, Clone)]
pub struct Fixed(pub Vec<String>);

impl Inventory for Fixed {
    fn standing(&self, instance: &str) -> Result<Standing, Failure> {
        let present = self.0.iter().any(|id| id == instance);
        Ok(if present {
            Standing::Present
        } else {
            Standing::Gone
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
    /// Highest sequence that was believed.
    seen: AtomicU64,
}

/// The inventory that a NodeConfig names.
pub fn open(config: Option<&node_config::Inventory>, cluster: &str) -> Result<Box<dyn Inventory>, Failure> {
    let (source, key) = match config.cloned() {
        None => return Ok(Box::new(Nobody)),
        Some(node_config::Inventory::Static(instances)) => return Ok(Box::new(Fixed(instances))),
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
    Ok(Box::new(Signed::new(source, cluster, &key)?))
}

impl Signed {
    /// A signed list of `cluster`, believed if the Ed25519 key `public_key` (PEM, SubjectPublicKeyInfo) signed it.
    pub fn new(source: Source, cluster: &str, public_key: &str) -> Result<Self, Failure> {
        check_public_key(public_key).map_err(|error| {
            Failure::because(Cause::ConfigInvalid, format!("inventory.publicKey: {error}"))
        })?;
        Ok(Self {
            source,
            cluster: cluster.to_owned(),
            public_key: public_key.to_owned(),
            seen: AtomicU64::new(0),
        })
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        match &self.source {
            Source::Http(url, client) => client.get(url).map_err(|error| error.to_string()),
            Source::File(path) => read_bounded(Path::new(path), MAX_INVENTORY as u64)
                .map_err(|error| format!("{path}: {error}")),
        }
    }
}

impl Inventory for Signed {
    fn standing(&self, instance: &str) -> Result<Standing, Failure> {
        // No inventory means: nobody is removed. The cause is that of the waiting that follows.
        let failure = |text: String| Failure::because(Cause::EtcdUnavailable, format!("inventory: {text}"));
        let bytes = self.bytes().map_err(failure)?;
        let expected = Expected {
            cluster: &self.cluster,
            public_key: &self.public_key,
            seen: self.seen.load(Ordering::Relaxed),
            now: SystemTime::now(),
        };
        let list = InstanceList::verify(&bytes, &expected).map_err(|error| failure(error.to_string()))?;
        self.seen.fetch_max(list.sequence, Ordering::Relaxed);
        let known = list.instances.iter().find(|known| known.id == instance);
        Ok(match known.map(|known| known.state) {
            Some(InstanceState::Running) => Standing::Present,
            Some(InstanceState::Terminated) => Standing::Gone,
            None if list.is_gone(instance) => Standing::Gone,
            None => Standing::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use kimage_roles::inventory::{Instance, new_key};
    use kimage_roles::secret::Secret;

    use super::*;

    fn signed(key: &Secret, cluster: &str, sequence: u64, instances: &[(&str, InstanceState)]) -> Vec<u8> {
        let instances = instances.iter().map(|(id, state)| Instance {
            id: (*id).to_owned(),
            state: *state,
        });
        let list = InstanceList {
            cluster: cluster.to_owned(),
            sequence,
            issued_at: 0,
            expires_at: u64::MAX,
            complete: false,
            instances: instances.collect(),
        };
        list.sign(key).unwrap()
    }

    #[test]
    fn a_signed_list_is_believed_word_for_word_and_never_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inventory.json");
        let (key, public_key) = new_key().unwrap();
        let source = Source::File(path.to_string_lossy().into_owned());
        let inventory = Signed::new(source, "prod", &public_key).unwrap();
        let states = [("a", InstanceState::Terminated), ("b", InstanceState::Running)];
        std::fs::write(&path, signed(&key, "prod", 7, &states)).unwrap();
        let standings = ["a", "b", "c"].map(|instance| inventory.standing(instance).unwrap());
        assert_eq!(standings, [Standing::Gone, Standing::Present, Standing::Unknown]);
        std::fs::write(&path, signed(&key, "prod", 6, &states)).unwrap();
        assert!(inventory.standing("a").is_err());
        std::fs::write(&path, signed(&key, "test", 8, &states)).unwrap();
        assert!(inventory.standing("a").is_err());
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"] {
            assert!(Signed::new(Source::File(String::new()), "prod", text).is_err());
        }
    }

    #[test]
    fn whoever_is_not_on_a_fixed_list_is_gone_and_without_inventory_nobody_is() {
        let fixed = Fixed(vec!["a".to_owned()]);
        assert_eq!(fixed.standing("a").unwrap(), Standing::Present);
        assert_eq!(fixed.standing("b").unwrap(), Standing::Gone);
        assert_eq!(Nobody.standing("b").unwrap(), Standing::Unknown);
    }
}
