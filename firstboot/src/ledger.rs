//! What this machine has done so far: `/var/lib/kimage/ledger.json`, on the disk that survives a reboot.
//!
//! Every step is safe to repeat; the ledger is not what makes a boot correct. It says what must not change under a
//! machine (its cluster, its role, its networks), which instance did what (a cloned or re-attached disk shows), which
//! step was under way when the power went, and which services run with files that have changed since they were started.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use kimage_roles::cause::Cause;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::host::{self, Host};

/// Where the file lies in the machine.
pub const LEDGER_PATH: &str = "/var/lib/kimage/ledger.json";
/// Version of the format.
const SCHEMA: u32 = 1;
/// Largest ledger that is read, in bytes.
const MAX_LEDGER: u64 = 1 << 20;

/// What must stay the same for as long as a disk is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// Name and certificate authority of the cluster: `prod sha256:…`.
    pub cluster: String,
    /// Role of the image.
    pub role: String,
    /// Name of the node.
    pub node: String,
    /// Everything else that can't change: ranges of addresses, domain, layout of etcd. By key.
    pub fixed: BTreeMap<String, String>,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Record {
    schema: u32,
    identity: Identity,
    /// Instances that used this disk, the newest last.
    instances: Vec<String>,
    /// Steps that were done at least once, with the instance that did them.
    done: BTreeMap<String, String>,
    /// The step that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    under_way: Option<String>,
    /// Steps that start services, and have not done so since a file changed or may have changed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    stale: BTreeSet<String>,
}

/// The ledger of this machine, open for writing.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    record: Record,
    interrupted: Option<String>,
    /// What was stale before the step that is under way.
    stale_before: BTreeSet<String>,
}

impl Ledger {
    /// Opens the ledger for this identity and instance, or begins one. A disk of another cluster is refused
    /// ([`Cause::StateForeign`]), so is a change of what can't change ([`Cause::ConfigChanged`]).
    pub fn open(host: &Host, identity: &Identity, instance: &str) -> Result<Self, Failure> {
        let path = host.path(LEDGER_PATH);
        let found = read(&path).map_err(Failure::internal)?;
        let mut record = match found {
            Some(record) => {
                compare(&record.identity, identity)?;
                record
            }
            None => Record {
                schema: SCHEMA,
                identity: identity.clone(),
                instances: Vec::new(),
                done: BTreeMap::new(),
                under_way: None,
                stale: BTreeSet::new(),
            },
        };
        if record.instances.last().map(String::as_str) != Some(instance) {
            record.instances.push(instance.to_owned());
        }
        let interrupted = record.under_way.take();
        let mut ledger = Self {
            path,
            stale_before: record.stale.clone(),
            record,
            interrupted,
        };
        ledger.save()?;
        Ok(ledger)
    }

    /// Whether the machine stopped during a step, or has services that run with older files.
    pub(crate) fn is_unfinished(host: &Host) -> bool {
        let found = read(&host.path(LEDGER_PATH)).ok().flatten();
        found.is_some_and(|record| record.under_way.is_some() || !record.stale.is_empty())
    }

    /// The step during which this machine stopped last time, if it stopped during one.
    pub fn interrupted(&self) -> Option<&str> {
        self.interrupted.as_deref()
    }

    /// Whether a disk comes from another instance than this one: re-attached, cloned or restored.
    pub fn is_inherited(&self) -> bool {
        self.record.instances.len() > 1
    }

    /// Whether `step` was ever done with this disk.
    #[cfg(test)]
    fn is_done(&self, step: &str) -> bool {
        self.record.done.contains_key(step)
    }

    /// Writes down that `step` begins. Whoever finds it unfinished must take it that the services of the steps
    /// `at_stake` run with older files.
    pub fn begin(&mut self, step: &str, at_stake: &[&str]) -> Result<(), Failure> {
        self.record.under_way = Some(step.to_owned());
        self.stale_before = self.record.stale.clone();
        let at_stake = at_stake.iter().map(|step| (*step).to_owned());
        self.record.stale.extend(at_stake);
        self.save()
    }

    /// Whether services that `step` starts run with older files, as far as is known from the steps before.
    pub fn is_stale(&self, step: &str) -> bool {
        self.stale_before.contains(step)
    }

    /// Writes down that `step` is done, and whether it has changed files.
    pub fn finish(&mut self, step: &str, changed: bool) -> Result<(), Failure> {
        let instance = self.record.instances.last().cloned().unwrap_or_default();
        self.record.under_way = None;
        if !changed {
            self.record.stale.clone_from(&self.stale_before);
        }
        self.record.stale.remove(step);
        self.record.done.insert(step.to_owned(), instance);
        self.save()
    }

    fn save(&mut self) -> Result<(), Failure> {
        let write = || -> Result<()> {
            let mut bytes = serde_json::to_vec_pretty(&self.record)?;
            bytes.push(b'\n');
            host::write(&self.path, &bytes, 0o600).map(drop)
        };
        write().context("write the ledger").map_err(Failure::internal)
    }
}

fn read(path: &std::path::Path) -> Result<Option<Record>> {
    let bytes = match host::read_bounded(path, MAX_LEDGER) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let record: Record =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no ledger", path.display()))?;
    anyhow::ensure!(
        record.schema == SCHEMA,
        "{} has schema {}, not the known {SCHEMA}",
        path.display(),
        record.schema
    );
    Ok(Some(record))
}

fn compare(old: &Identity, new: &Identity) -> Result<(), Failure> {
    if old.cluster != new.cluster {
        return Err(Failure::new(
            Cause::StateForeign,
            anyhow!(
                "the disk belongs to cluster `{}`, the NodeConfig is of `{}`",
                old.cluster,
                new.cluster
            ),
        ));
    }
    let mut changes = Vec::new();
    let mut differ = |key: &str, old: &str, new: &str| {
        if old != new {
            changes.push(format!("{key} was `{old}`, is `{new}`"));
        }
    };
    differ("role", &old.role, &new.role);
    differ("node.name", &old.node, &new.node);
    let nothing = String::new();
    let keys: BTreeSet<&String> = old.fixed.keys().chain(new.fixed.keys()).collect();
    for key in keys {
        let value = |of: &Identity| of.fixed.get(key).unwrap_or(&nothing).clone();
        differ(key, &value(old), &value(new));
    }
    if changes.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Cause::ConfigChanged,
        anyhow!("{}", changes.join("; ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster: "prod sha256:00".to_owned(),
            role: "worker".to_owned(),
            node: "w1".to_owned(),
            fixed: BTreeMap::from([("cluster.podSubnet".to_owned(), "10.244.0.0/16".to_owned())]),
        }
    }

    #[test]
    fn steps_survive_a_restart_and_an_interrupted_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let mut ledger = Ledger::open(&host, &identity(), "i-1").unwrap();
        ledger.begin("certificates", &[]).unwrap();
        ledger.finish("certificates", false).unwrap();
        ledger.begin("etcd", &[]).unwrap();
        let again = Ledger::open(&host, &identity(), "i-1").unwrap();
        assert!(again.is_done("certificates") && !again.is_done("etcd"));
        assert_eq!(again.interrupted(), Some("etcd"));
        assert!(!again.is_inherited());
        assert!(Ledger::open(&host, &identity(), "i-2").unwrap().is_inherited());
    }

    #[test]
    fn a_disk_of_another_cluster_and_a_changed_config_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        Ledger::open(&host, &identity(), "i-1").unwrap();
        let mut other = identity();
        other.cluster = "stage sha256:11".to_owned();
        let failure = Ledger::open(&host, &other, "i-1").unwrap_err();
        assert_eq!(failure.cause, Cause::StateForeign);
        let mut changed = identity();
        changed
            .fixed
            .insert("cluster.podSubnet".to_owned(), "10.0.0.0/16".to_owned());
        let failure = Ledger::open(&host, &changed, "i-1").unwrap_err();
        assert_eq!(failure.cause, Cause::ConfigChanged);
        assert!(
            failure
                .error
                .to_string()
                .contains("cluster.podSubnet was `10.244.0.0/16`")
        );
    }
}
