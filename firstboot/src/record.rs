//! The record of a formation: one small document in a store that all etcd machines share and that can compare and swap.
//! It says who began, which cluster came of it and whom to ask. Never delete it while the cluster lives: a fresh machine
//! that finds none forms a cluster.

use std::time::Duration;

use kimage_roles::cause::Cause;
use kimage_roles::node_config::RecordStore as Place;
use serde::{Deserialize, Serialize};

use crate::etcd::Id;
use crate::failure::Failure;
use crate::http::{Client, Settings, Trust};
use crate::inventory::Claim;

pub mod etcd;
pub mod file;
pub mod http;
pub mod s3;

/// Most bytes that a record may have.
pub const MAX_RECORD: usize = 64 * 1024;

/// What a record says of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A seed makes it and serves nobody yet.
    Forming,
    /// It exists: join it, never make another.
    Formed,
    /// It is being restored from a snapshot.
    Restoring,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// How far it is.
    pub phase: Phase,
    /// Counts the claims, from 1. Every generation is claimed once.
    pub generation: u64,
    /// Instance id of the machine that makes the cluster.
    pub seed: String,
    /// etcd's initial-cluster-token of this generation.
    pub token: String,
    /// Id of the cluster, once it is formed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Id>,
    /// Client URLs of the voting members, sorted.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// When this phase began by its writer's clock (RFC 3339): for people, and so that no older list of instances takes
    /// the seed for gone.
    pub since: String,
}

impl Record {
    /// The seed, and since when it forms. What isn't a time is none: then only the explicit word that it is terminated
    /// counts.
    pub fn claim(&self) -> Claim {
        let since: Option<jiff::Timestamp> = self.since.parse().ok();
        Claim {
            instance: self.seed.clone(),
            since: since.and_then(|since| u64::try_from(since.as_second()).ok()),
        }
    }
}

/// The store's own word for one version of the record (an ETag, a revision).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// What came of a conditional write that the store answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The record is what was written.
    Done,
    /// Somebody else wrote first; nothing was changed.
    Conflict,
}

/// A store that can compare and swap. An error of a write means that nobody knows whether it was done.
pub trait RecordStore {
    /// The record and its version.
    fn get(&self) -> Result<Option<(Record, Version)>, Failure>;
    /// Writes the record if there is none.
    fn create(&self, record: &Record) -> Result<Written, Failure>;
    /// Writes the record if it is still at `version`.
    fn replace(&self, version: &Version, record: &Record) -> Result<Written, Failure>;
}

/// The store that a NodeConfig names.
pub fn open(place: &Place) -> Result<Box<dyn RecordStore>, Failure> {
    let trust = match place {
        Place::Etcd {
            ca_certificate: Some(pem),
            ..
        } => Trust::Pinned(pem.clone()),
        _ => Trust::System,
    };
    let settings = Settings {
        connect: Duration::from_secs(5),
        total: Duration::from_secs(15),
        max_body: MAX_RECORD * 2,
        trust,
        identity: None,
    };
    let client = Client::new(&settings).map_err(|error| Failure::new(Cause::ConfigInvalid, error))?;
    Ok(match place.clone() {
        Place::S3 {
            endpoint,
            region,
            bucket,
            key,
            credentials,
        } => {
            let keys = match credentials {
                Some(credentials) => s3::Keys::Fixed(credentials),
                None => s3::Keys::Instance,
            };
            Box::new(s3::S3 {
                client,
                endpoint,
                region,
                bucket,
                key,
                keys,
            })
        }
        Place::Etcd { endpoints, key, .. } => Box::new(etcd::EtcdKey {
            client,
            endpoints,
            key,
        }),
        Place::Http { url, token } => Box::new(http::HttpResource { client, url, token }),
        Place::File { path } => Box::new(file::RecordFile::new(path)),
    })
}

/// Reads the bytes of a record.
fn parse(bytes: &[u8], place: &str) -> Result<Record, Failure> {
    if bytes.len() > MAX_RECORD {
        return Err(broken(format!(
            "the record at {place} has more than {MAX_RECORD} bytes"
        )));
    }
    serde_json::from_slice(bytes).map_err(|error| broken(format!("the record at {place} is none: {error}")))
}

fn bytes_of(record: &Record) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(record).map_err(|error| Failure::new(Cause::Internal, error))
}

/// The store doesn't do what it should; formation waits.
fn broken(text: impl std::fmt::Display) -> Failure {
    Failure::because(Cause::EtcdForming, text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(seed: usize) -> Record {
        Record {
            phase: Phase::Formed,
            generation: 1,
            seed: format!("i-{seed}"),
            token: "t".to_owned(),
            cluster: Some(Id(0xff)),
            endpoints: vec!["https://10.0.0.1:2379".to_owned()],
            since: "2026-11-21T00:00:00Z".to_owned(),
        }
    }

    /// What formation relies on, of any store.
    pub(crate) fn contract(store: &dyn RecordStore) {
        let never = Version("\"kimage-never\"".to_owned());
        assert_eq!(store.get().unwrap(), None);
        assert_eq!(store.replace(&never, &record(0)).unwrap(), Written::Conflict);
        assert_eq!(store.get().unwrap(), None);
        assert_eq!(store.create(&record(1)).unwrap(), Written::Done);
        assert_eq!(store.create(&record(2)).unwrap(), Written::Conflict);
        let (first, version) = store.get().unwrap().unwrap();
        assert_eq!(first, record(1));
        assert_eq!(store.replace(&never, &record(3)).unwrap(), Written::Conflict);
        assert_eq!(store.replace(&version, &record(3)).unwrap(), Written::Done);
        assert_eq!(store.replace(&version, &record(4)).unwrap(), Written::Conflict);
        let (second, next) = store.get().unwrap().unwrap();
        assert_eq!(second, record(3));
        assert_ne!(version, next);
    }

    #[test]
    fn a_record_reads_as_it_is_written() {
        let text = r#"{"phase":"formed","generation":1,"seed":"i-1","token":"t","cluster":"00000000000000ff","endpoints":["https://10.0.0.1:2379"],"since":"2026-11-21T00:00:00Z"}"#;
        assert_eq!(String::from_utf8(bytes_of(&record(1)).unwrap()).unwrap(), text);
        assert_eq!(parse(text.as_bytes(), "x").unwrap(), record(1));
        assert!(parse(&[b' '; MAX_RECORD + 1], "x").is_err());
        assert!(parse(b"{}", "x").is_err());
    }
}
