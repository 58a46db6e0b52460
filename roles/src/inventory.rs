//! The signed list that says which instances of a cluster's etcd machines exist: the platform's word, served over HTTP
//! or in a file. Who holds the signing key can make kimage remove etcd members, so a list names its cluster, ends
//! soon, and never goes back behind one that was seen.
//!
//! The document is JSON: `{"list": "<base64>", "signature": "<base64>"}`. `list` is the JSON of an [`InstanceList`];
//! `signature` is Ed25519 (RFC 8032) over [`CONTEXT`] followed by the bytes that `list` stands for, so
//! `openssl pkeyutl -sign -rawin` can make it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::node_config::is_dns_name;
use crate::pem;
use crate::secret::Secret;

/// Largest document that is read, in bytes.
pub const MAX_INVENTORY: usize = 1 << 20;
/// What every signature covers before the list, so that it can mean nothing else.
pub const CONTEXT: &[u8] = b"kimage.dev/v1 InstanceList\n";
/// How far the clocks of signer and reader may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Longest time from the issue of a list to its end.
pub const MAX_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// `SubjectPublicKeyInfo` of an Ed25519 key up to its 32 bytes (RFC 8410).
const PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// PKCS#8 of an Ed25519 key up to its seed; version 1, which OpenSSL reads.
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Which instances exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InstanceList {
    /// `cluster.name` of the NodeConfig.
    pub cluster: String,
    /// Grows with every list that says something new. A reader refuses one that is behind what it has seen.
    pub sequence: u64,
    /// When its signer began to ask what exists, in seconds since 1970. Never goes back.
    pub issued_at: u64,
    /// From when it says nothing any more, in seconds since 1970; at most [`MAX_VALIDITY`] after `issued_at`.
    pub expires_at: u64,
    /// Whether the list names every instance that existed when it was issued: then one that it doesn't name, and that
    /// was there before it, is gone. Otherwise only what it calls terminated is.
    #[serde(default)]
    pub complete: bool,
    /// The instances, each id once.
    pub instances: Vec<Instance>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Instance {
    /// The platform's id of the machine: what its metadata calls instance id.
    pub id: String,
    /// What the platform says about it.
    pub state: InstanceState,
    /// The name of its Node, if the list says where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// With `node`: all addresses that this Node's certificates may have. No other instance has one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl Instance {
    /// An instance of which the list doesn't say where it is.
    pub fn new(id: impl Into<String>, state: InstanceState) -> Self {
        Self {
            id: id.into(),
            state,
            node: None,
            addresses: Vec::new(),
        }
    }

    /// The same one, called `node` and at `addresses`.
    #[must_use]
    pub fn at(self, node: impl Into<String>, addresses: Vec<IpAddr>) -> Self {
        Self {
            node: Some(node.into()),
            addresses,
            ..self
        }
    }
}

/// What the platform says about an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It exists. That includes stopped and unreachable machines, whose disks may come back.
    Running,
    /// It and its disk will never come back.
    Terminated,
}

/// What is known of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists.
    Present,
    /// It was deleted and never comes back.
    Gone,
    /// It is not on a complete list, which may be older than the instance.
    Newer,
    /// Nobody says.
    Unknown,
}

/// Which edition of its signer's word a list is. Neither number ever goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Edition {
    /// [`InstanceList::sequence`].
    pub sequence: u64,
    /// [`InstanceList::issued_at`], in seconds since 1970.
    pub issued_at: u64,
}

impl Edition {
    /// Whether it is older than `other` by either number.
    fn is_behind(self, other: Self) -> bool {
        self.sequence < other.sequence || self.issued_at < other.issued_at
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (issued at {})", self.sequence, self.issued_at)
    }
}

/// Whether "not on the list" means "gone" for an instance that came into being at `since` (by its own clock, in seconds
/// since 1970; `None`: nobody knows when), if the list is of `issued_at`. The clocks may differ by [`CLOCK_SKEW`], so
/// the list must be later by at least that.
pub fn speaks_of(issued_at: u64, since: Option<u64>) -> bool {
    since.is_some_and(|since| issued_at >= since.saturating_add(CLOCK_SKEW.as_secs()))
}

/// Why a list is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InventoryError {
    /// Not a document of this kind.
    Malformed(String),
    /// The public key is not PEM of an Ed25519 key.
    PublicKey,
    /// The private key is not PEM of an Ed25519 key.
    PrivateKey,
    /// Signed by another key, or changed since.
    Signature,
    /// For another cluster.
    Cluster,
    /// Its time is over.
    Expired,
    /// It comes from the future: a clock is wrong.
    Future,
    /// It is valid for longer than [`MAX_VALIDITY`].
    Validity,
    /// A newer list has been seen.
    Replayed {
        /// Of this list.
        edition: Edition,
        /// The newest that was seen.
        seen: Edition,
    },
}

impl fmt::Display for InventoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(problem) => write!(f, "not a signed list of instances: {problem}"),
            Self::PublicKey => f.write_str("the public key is not PEM of an Ed25519 key"),
            Self::PrivateKey => f.write_str("the private key is not PEM of an Ed25519 key"),
            Self::Signature => {
                f.write_str("the list of instances is not signed by the key of the NodeConfig")
            }
            Self::Cluster => f.write_str("the list of instances is for another cluster"),
            Self::Expired => f.write_str("the list of instances has expired"),
            Self::Future => f.write_str("the list of instances was signed in the future: a clock is wrong"),
            Self::Validity => write!(
                f,
                "the list of instances is valid for longer than {} h: sign a new one now and then",
                MAX_VALIDITY.as_secs() / 3600
            ),
            Self::Replayed { edition, seen } => write!(
                f,
                "the list of instances has sequence {edition}, and {seen} has been seen"
            ),
        }
    }
}

impl std::error::Error for InventoryError {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    list: String,
    signature: String,
}

/// What a reader knows before it reads.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// `cluster.name` of the NodeConfig.
    pub cluster: &'a str,
    /// PEM of the Ed25519 key that must have signed.
    pub public_key: &'a str,
    /// The newest edition that this reader has seen, whenever that was; `None` before the first.
    pub seen: Option<Edition>,
    /// The time.
    pub now: SystemTime,
}

impl InstanceList {
    /// What the list says about the instance `id`, which came into being at `since` by its own clock (in seconds since
    /// 1970). That it is terminated is said for ever; that it isn't named counts only against what was there before.
    pub fn standing(&self, id: &str, since: Option<u64>) -> Standing {
        let instance = self.instances.iter().find(|instance| instance.id == id);
        match instance.map(|instance| instance.state) {
            Some(InstanceState::Running) => Standing::Present,
            Some(InstanceState::Terminated) => Standing::Gone,
            None if !self.complete => Standing::Unknown,
            None if speaks_of(self.issued_at, since) => Standing::Gone,
            None => Standing::Newer,
        }
    }

    /// Addresses of the Nodes of instances that exist, where the list says them.
    pub fn nodes(&self) -> BTreeMap<&str, BTreeSet<IpAddr>> {
        let running = self
            .instances
            .iter()
            .filter(|instance| instance.state == InstanceState::Running);
        running
            .filter_map(|instance| {
                Some((
                    instance.node.as_deref()?,
                    instance.addresses.iter().copied().collect(),
                ))
            })
            .collect()
    }

    /// Which edition it is.
    pub fn edition(&self) -> Edition {
        Edition {
            sequence: self.sequence,
            issued_at: self.issued_at,
        }
    }

    /// The signed document.
    pub fn sign(&self, private_key: &Secret) -> Result<Vec<u8>, InventoryError> {
        self.check()?;
        let der = pem::decode("PRIVATE KEY", private_key.reveal()).map_err(|_| InventoryError::PrivateKey)?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| InventoryError::PrivateKey)?;
        let list = serde_json::to_vec(self).map_err(|error| InventoryError::Malformed(error.to_string()))?;
        let signature = key.sign(&[CONTEXT, list.as_slice()].concat());
        let signed = Signed {
            list: STANDARD.encode(list),
            signature: STANDARD.encode(signature.as_ref()),
        };
        serde_json::to_vec(&signed).map_err(|error| InventoryError::Malformed(error.to_string()))
    }

    /// Reads a signed document and believes it only if everything fits.
    pub fn verify(document: &[u8], expected: &Expected<'_>) -> Result<Self, InventoryError> {
        let malformed = |problem: &str| InventoryError::Malformed(problem.to_owned());
        if document.len() > MAX_INVENTORY {
            return Err(malformed("too large"));
        }
        let signed: Signed =
            serde_json::from_slice(document).map_err(|error| InventoryError::Malformed(error.to_string()))?;
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| malformed("not base64"));
        let (list, signature) = (decode(&signed.list)?, decode(&signed.signature)?);
        let key = public_key(expected.public_key)?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&[CONTEXT, list.as_slice()].concat(), &signature)
            .map_err(|_| InventoryError::Signature)?;
        let list: Self =
            serde_json::from_slice(&list).map_err(|error| InventoryError::Malformed(error.to_string()))?;
        list.check()?;
        list.believe(expected)?;
        Ok(list)
    }

    fn check(&self) -> Result<(), InventoryError> {
        let ids: BTreeSet<&str> = self
            .instances
            .iter()
            .map(|instance| instance.id.as_str())
            .collect();
        if ids.len() != self.instances.len() || ids.contains("") {
            return Err(InventoryError::Malformed(
                "an instance without an id of its own".to_owned(),
            ));
        }
        self.check_addresses()?;
        let validity = self
            .expires_at
            .checked_sub(self.issued_at)
            .filter(|seconds| *seconds > 0);
        match validity {
            None => Err(InventoryError::Malformed(
                "it ends before it was issued".to_owned(),
            )),
            Some(seconds) if seconds > MAX_VALIDITY.as_secs() => Err(InventoryError::Validity),
            Some(_) => Ok(()),
        }
    }

    /// Names of Nodes and addresses that exist are of one instance each.
    fn check_addresses(&self) -> Result<(), InventoryError> {
        let malformed = |problem: String| Err(InventoryError::Malformed(problem));
        let (mut nodes, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for instance in &self.instances {
            if instance.node.is_some() == instance.addresses.is_empty() {
                let id = &instance.id;
                return malformed(format!(
                    "instance {id} has `node` or `addresses` without the other"
                ));
            }
            if instance.state != InstanceState::Running {
                continue;
            }
            if let Some(node) = instance.node.as_deref()
                && (!is_dns_name(node) || !nodes.insert(node))
            {
                return malformed(format!("`{node}` is no name of a Node, or of two"));
            }
            if let Some(address) = instance
                .addresses
                .iter()
                .find(|address| !addresses.insert(**address))
            {
                return malformed(format!("{address} is there twice"));
            }
        }
        Ok(())
    }

    /// Whether a list that its signer signed is believed: it is of this cluster, of now, and not behind what was seen.
    pub fn believe(&self, expected: &Expected<'_>) -> Result<(), InventoryError> {
        if self.cluster != expected.cluster {
            return Err(InventoryError::Cluster);
        }
        // A clock before 1970 makes every list one of the future.
        let now = expected
            .now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if self.issued_at > now.saturating_add(CLOCK_SKEW).as_secs() {
            return Err(InventoryError::Future);
        }
        if self.expires_at <= now.as_secs() {
            return Err(InventoryError::Expired);
        }
        let edition = self.edition();
        match expected.seen.filter(|seen| edition.is_behind(*seen)) {
            Some(seen) => Err(InventoryError::Replayed { edition, seen }),
            None => Ok(()),
        }
    }
}

/// A new Ed25519 key for signing lists: private PEM (PKCS#8) and public PEM. `None` when the system has no entropy.
pub fn new_key() -> Option<(Secret, String)> {
    let mut private = PRIVATE_PREFIX.to_vec();
    private.resize(PRIVATE_PREFIX.len() + 32, 0);
    SystemRandom::new()
        .fill(&mut private[PRIVATE_PREFIX.len()..])
        .ok()?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private).ok()?;
    let public = [&PUBLIC_PREFIX, key.public_key().as_ref()].concat();
    Some((
        Secret::new(pem::encode("PRIVATE KEY", &private)),
        pem::encode("PUBLIC KEY", &public),
    ))
}

/// Checks that `text` is PEM of an Ed25519 public key.
pub fn check_public_key(text: &str) -> Result<(), InventoryError> {
    public_key(text).map(drop)
}

/// Name of whoever has the key whose public half is `text` (PEM): `sha256:` and the digest of its 32 bytes.
pub fn issuer(text: &str) -> Result<String, InventoryError> {
    let digest = digest(&SHA256, &public_key(text)?);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// The 32 bytes of an Ed25519 public key in PEM.
fn public_key(text: &str) -> Result<Vec<u8>, InventoryError> {
    let der = pem::decode("PUBLIC KEY", text).map_err(|_| InventoryError::PublicKey)?;
    let key = der.strip_prefix(&PUBLIC_PREFIX).filter(|key| key.len() == 32);
    key.map(<[u8]>::to_vec).ok_or(InventoryError::PublicKey)
}

#[cfg(test)]
mod tests;
