//! Who is gone: the word of whoever makes the machines. Members of etcd are removed, and an unfinished formation taken
//! over, by this word only.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::cause::Cause;
use kimage_roles::inventory::{InstanceState, InventoryList, MAX_INVENTORY, SCHEMA, SignedInventory};
use kimage_roles::node_config;
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::failure::Failure;
use crate::http::{Answer, Client, Request, Settings};

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
    key: [u8; 32],
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
        let key = ed25519_key(public_key).ok_or_else(|| {
            let text = "inventory.publicKey is no PEM of an Ed25519 public key";
            Failure::because(Cause::ConfigInvalid, text)
        })?;
        Ok(Self {
            source,
            cluster: cluster.to_owned(),
            key,
        })
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        match &self.source {
            Source::Http(url, client) => {
                let answer = client.send(&Request::get(url.as_str())).and_then(Answer::success);
                Ok(answer.map_err(|error| error.to_string())?.body)
            }
            Source::File(path) => read_bounded(Path::new(path)).map_err(|error| format!("{path}: {error}")),
        }
    }
}

impl Inventory for Signed {
    fn standing(&self, instance: &str) -> Result<Standing, Failure> {
        // No inventory means: nobody is removed. The cause is that of the waiting that follows.
        let failure = |text: String| Failure::because(Cause::EtcdUnavailable, format!("inventory: {text}"));
        let bytes = self.bytes().map_err(failure)?;
        let list = verify(&bytes, &self.key, &self.cluster).map_err(failure)?;
        let found = list.instances.iter().filter(|known| known.id == instance);
        // A list that says both is a fault of its maker; the word that destroys nothing counts.
        Ok(found.fold(Standing::Unknown, |standing, known| {
            match (standing, known.state) {
                (Standing::Present, _) | (_, InstanceState::Present) => Standing::Present,
                (_, InstanceState::Gone) => Standing::Gone,
            }
        }))
    }
}

/// Checks signature and cluster of a signed list.
fn verify(bytes: &[u8], key: &[u8; 32], cluster: &str) -> Result<InventoryList, String> {
    if bytes.len() > MAX_INVENTORY {
        return Err(format!("more than {MAX_INVENTORY} bytes"));
    }
    let signed: SignedInventory = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let list = STANDARD
        .decode(signed.list)
        .map_err(|error| format!("list: {error}"))?;
    let signature = STANDARD
        .decode(signed.signature)
        .map_err(|error| format!("signature: {error}"))?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&list, &signature)
        .map_err(|_| "the signature is not by inventory.publicKey".to_owned())?;
    let list: InventoryList = serde_json::from_slice(&list).map_err(|error| format!("list: {error}"))?;
    if list.schema != SCHEMA {
        return Err(format!("schema {} is not {SCHEMA}", list.schema));
    }
    if list.cluster != cluster {
        return Err(format!(
            "the list is of cluster `{}`, not `{cluster}`",
            list.cluster
        ));
    }
    Ok(list)
}

/// The 32 bytes in a PEM of an Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4).
fn ed25519_key(pem: &str) -> Option<[u8; 32]> {
    const HEAD: [u8; 12] = [
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (text, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let text: String = text.split_ascii_whitespace().collect();
    let der = STANDARD.decode(text).ok()?;
    der.strip_prefix(&HEAD)?.try_into().ok()
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;

    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_INVENTORY).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use kimage_roles::inventory::Instance;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    fn key() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
    }

    fn pem(key: &Ed25519KeyPair) -> String {
        let head = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        let der = [head.as_slice(), key.public_key().as_ref()].concat();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(der)
        )
    }

    fn signed(cluster: &str, instances: &[(&str, InstanceState)]) -> String {
        let instances = instances.iter().map(|(id, state)| Instance {
            id: (*id).to_owned(),
            state: *state,
        });
        let list = InventoryList {
            schema: SCHEMA,
            cluster: cluster.to_owned(),
            issued: "2026-11-21T00:00:00Z".to_owned(),
            instances: instances.collect(),
        };
        let list = serde_json::to_vec(&list).unwrap();
        let signed = SignedInventory {
            signature: STANDARD.encode(key().sign(&list)),
            list: STANDARD.encode(list),
        };
        serde_json::to_string(&signed).unwrap()
    }

    fn ask(text: &str, instance: &str) -> Result<Standing, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inventory.json");
        std::fs::write(&path, text).unwrap();
        let source = Source::File(path.to_string_lossy().into_owned());
        Signed::new(source, "prod", &pem(&key()))
            .unwrap()
            .standing(instance)
    }

    #[test]
    fn a_signed_list_is_believed_word_for_word() {
        let states = [("a", InstanceState::Gone), ("b", InstanceState::Present)];
        let text = signed("prod", &states);
        let standings = ["a", "b", "c"].map(|instance| ask(&text, instance).unwrap());
        assert_eq!(standings, [Standing::Gone, Standing::Present, Standing::Unknown]);
    }

    #[test]
    fn a_list_that_says_both_destroys_nothing() {
        let states = [("a", InstanceState::Present), ("a", InstanceState::Gone)];
        assert_eq!(ask(&signed("prod", &states), "a").unwrap(), Standing::Present);
    }

    #[test]
    fn a_list_of_another_cluster_or_a_changed_one_is_not_believed() {
        let text = signed("test", &[("a", InstanceState::Gone)]);
        assert!(
            ask(&text, "a")
                .unwrap_err()
                .to_string()
                .contains("of cluster `test`")
        );
        let mut changed: SignedInventory =
            serde_json::from_str(&signed("prod", &[("a", InstanceState::Present)])).unwrap();
        let list = String::from_utf8(STANDARD.decode(&changed.list).unwrap()).unwrap();
        changed.list = STANDARD.encode(list.replace("present", "gone"));
        let text = serde_json::to_string(&changed).unwrap();
        assert!(ask(&text, "a").unwrap_err().to_string().contains("signature"));
        assert!(ask(&" ".repeat(MAX_INVENTORY + 1), "a").is_err());
        assert!(ask("{", "a").is_err());
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
