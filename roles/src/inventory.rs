//! The signed list that says which instances of a cluster's etcd machines exist: the platform's word, served over HTTP
//! or in a file. Who holds the signing key can make kimage remove etcd members, so a list names its cluster, ends
//! soon, and never goes back behind one that was seen.
//!
//! The document is JSON: `{"list": "<base64>", "signature": "<base64>"}`. `list` is the JSON of an [`InstanceList`];
//! `signature` is Ed25519 (RFC 8032) over [`CONTEXT`] followed by the bytes that `list` stands for, so
//! `openssl pkeyutl -sign -rawin` can make it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::pem;
use crate::secret::Secret;

/// Largest document that is read, in bytes.
pub const MAX_INVENTORY: usize = 1 << 20;
/// What every signature covers before the list, so that it can mean nothing else.
pub const CONTEXT: &[u8] = b"kimage.dev/v1 InstanceList\n";
/// How far the clocks of signer and reader may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

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
    /// When it was signed, in seconds since 1970.
    pub issued_at: u64,
    /// From when it says nothing any more, in seconds since 1970.
    pub expires_at: u64,
    /// Whether the list names every instance that exists: then one that it doesn't name is gone. Otherwise only what
    /// it calls terminated is.
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
    /// A newer list has been seen.
    Replayed {
        /// Sequence of this list.
        sequence: u64,
        /// Highest sequence seen.
        seen: u64,
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
            Self::Replayed { sequence, seen } => {
                write!(
                    f,
                    "the list of instances has sequence {sequence}, and {seen} has been seen"
                )
            }
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
    /// Highest sequence that this reader has seen; 0 before the first.
    pub seen: u64,
    /// The time.
    pub now: SystemTime,
}

impl InstanceList {
    /// Whether the platform says that this instance will never come back.
    pub fn is_gone(&self, id: &str) -> bool {
        let instance = self.instances.iter().find(|instance| instance.id == id);
        match instance.map(|instance| instance.state) {
            Some(InstanceState::Running) => false,
            Some(InstanceState::Terminated) => true,
            None => self.complete,
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
        let key = pem::decode("PUBLIC KEY", expected.public_key).map_err(|_| InventoryError::PublicKey)?;
        let key = key
            .strip_prefix(&PUBLIC_PREFIX)
            .filter(|key| key.len() == 32)
            .ok_or(InventoryError::PublicKey)?;
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
        Ok(())
    }

    fn believe(&self, expected: &Expected<'_>) -> Result<(), InventoryError> {
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
        if self.sequence < expected.seen {
            return Err(InventoryError::Replayed {
                sequence: self.sequence,
                seen: expected.seen,
            });
        }
        Ok(())
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
    let der = pem::decode("PUBLIC KEY", text).map_err(|_| InventoryError::PublicKey)?;
    let key = der
        .strip_prefix(&PUBLIC_PREFIX)
        .ok_or(InventoryError::PublicKey)?;
    if key.len() == 32 {
        Ok(())
    } else {
        Err(InventoryError::PublicKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    const NOW: u64 = 1_795_000_000;

    fn list() -> InstanceList {
        let instance = |id: &str, state| Instance {
            id: id.to_owned(),
            state,
        };
        InstanceList {
            cluster: "prod".to_owned(),
            sequence: 7,
            issued_at: NOW,
            expires_at: NOW + 3600,
            complete: false,
            instances: vec![
                instance("i-1", InstanceState::Running),
                instance("i-2", InstanceState::Terminated),
            ],
        }
    }

    fn read(document: &[u8], public_key: &str, seen: u64, now: u64) -> Result<InstanceList, InventoryError> {
        InstanceList::verify(
            document,
            &Expected {
                cluster: "prod",
                public_key,
                seen,
                now: SystemTime::UNIX_EPOCH + Duration::from_secs(now),
            },
        )
    }

    #[test]
    fn a_signed_list_reads_back() {
        let (private, public) = new_key().unwrap();
        let document = list().sign(&private).unwrap();
        assert_eq!(read(&document, &public, 7, NOW).unwrap(), list());
        assert!(check_public_key(&public).is_ok() && check_public_key(private.reveal()).is_err());
    }

    #[test]
    fn an_old_early_replayed_foreign_or_changed_list_is_refused() {
        let (private, public) = new_key().unwrap();
        let document = list().sign(&private).unwrap();
        let error = |seen, now| read(&document, &public, seen, now).unwrap_err();
        assert_eq!(error(0, NOW + 3600), InventoryError::Expired);
        assert_eq!(error(0, NOW - 301), InventoryError::Future);
        assert_eq!(error(8, NOW), InventoryError::Replayed { sequence: 7, seen: 8 });
        let other = new_key().unwrap().1;
        assert_eq!(read(&document, &other, 0, NOW), Err(InventoryError::Signature));
        assert_eq!(read(&document, "", 0, NOW), Err(InventoryError::PublicKey));
        let foreign = InstanceList {
            cluster: "test".to_owned(),
            ..list()
        };
        let foreign = foreign.sign(&private).unwrap();
        assert_eq!(read(&foreign, &public, 0, NOW), Err(InventoryError::Cluster));
        let mut twice = list();
        twice.instances.push(twice.instances[0].clone());
        assert!(matches!(twice.sign(&private), Err(InventoryError::Malformed(_))));
        assert!(matches!(
            read(&vec![b' '; MAX_INVENTORY + 1], &public, 0, NOW),
            Err(InventoryError::Malformed(_))
        ));
    }

    #[test]
    fn only_a_complete_list_says_that_the_unnamed_is_gone() {
        let gone = |list: &InstanceList| ["i-1", "i-2", "i-3"].map(|id| list.is_gone(id));
        assert_eq!(gone(&list()), [false, true, false]);
        assert_eq!(
            gone(&InstanceList {
                complete: true,
                ..list()
            }),
            [false, true, true]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_changed_byte_is_believed(at in 0usize..1000, flip in 1u8..=255, other: Vec<u8>) {
            let (private, public) = new_key().unwrap();
            let mut document = list().sign(&private).unwrap();
            let length = document.len();
            document[at % length] ^= flip;
            // A changed byte of the JSON around may mean the same (its last base64 digit can't, decoding is strict).
            prop_assert!(read(&document, &public, 0, NOW).is_err());
            prop_assert!(read(&other, &public, 0, NOW).is_err());
        }
    }
}
