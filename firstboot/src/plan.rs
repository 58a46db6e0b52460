//! What this machine is going to do, decided before anything is done: role and metadata in, a list of steps out. Pure;
//! `kimage-firstboot boot --dry-run` prints it.

use std::collections::BTreeMap;
use std::fmt;

use kimage_roles::certificate::public_key_hash;
use kimage_roles::node_config::{EtcdLayout, NodeConfig, NodeRole};
use kimage_roles::status::Phase;

use crate::action::Action;
use crate::failure::{Failure, OrFailure};
use crate::ledger::Identity;
use crate::metadata::Machine;

mod control_plane;
mod etcd;
mod files;
mod worker;

/// One thing to do. Doing it twice is the same as doing it once.
#[derive(Debug, Clone)]
pub struct Step {
    /// Name in the ledger.
    pub name: &'static str,
    /// Where the machine is on its way while this is done.
    pub phase: Phase,
    /// What is done.
    pub action: Action,
}

/// All steps of a boot, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What must not change from boot to boot.
    pub identity: Identity,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Names of the steps whose services have to be started anew if the step at `index` changes a file.
    pub fn at_stake(&self, index: usize) -> Vec<&'static str> {
        let Some((step, later)) = self.steps[index..].split_first() else {
            return Vec::new();
        };
        if !step.action.changes_files() {
            return Vec::new();
        }
        let all = std::iter::once(step).chain(later);
        all.filter(|step| step.action.starts_services())
            .map(|step| step.name)
            .collect()
    }
}

/// Decides what to do.
pub fn plan(machine: &Machine) -> Result<Plan, Failure> {
    let steps = match machine.config.role {
        NodeRole::ControlPlane => control_plane::steps(machine)?,
        NodeRole::Etcd => etcd::steps(machine)?,
        NodeRole::Worker => worker::steps(machine),
    };
    Ok(Plan {
        identity: identity(machine)?,
        steps,
    })
}

fn step(name: &'static str, phase: Phase, action: Action) -> Step {
    Step { name, phase, action }
}

/// Whether etcd runs on the control planes.
pub(crate) fn is_stacked(config: &NodeConfig) -> bool {
    let stacked = |etcd: &kimage_roles::node_config::Etcd| etcd.layout == EtcdLayout::Stacked;
    config.etcd.as_ref().is_some_and(stacked)
}

fn identity(machine: &Machine) -> Result<Identity, Failure> {
    let config = &machine.config;
    let cluster = &config.cluster;
    // The authority that this role always has: a rotation keeps the first.
    let authority = match (&config.secrets, &config.join) {
        (Some(secrets), _) => {
            let ca = secrets.ca.as_ref().unwrap_or(&secrets.etcd_ca);
            public_key_hash(&ca.certificate).or_failure(kimage_roles::cause::Cause::ConfigInvalid)?
        }
        // A worker's list of hashes grows and shrinks with rotations.
        (None, _) => String::new(),
    };
    let mut fixed = BTreeMap::new();
    let mut keep = |key: &str, value: String| drop(fixed.insert(key.to_owned(), value));
    keep("cluster.dnsDomain", cluster.dns_domain.clone());
    keep("cluster.podSubnet", cluster.pod_subnet.to_string());
    keep("cluster.serviceSubnet", cluster.service_subnet.to_string());
    if config.etcd.is_some() {
        let layout = if is_stacked(config) { "stacked" } else { "external" };
        keep("etcd.layout", layout.to_owned());
    }
    Ok(Identity {
        cluster: format!("{} {authority}", cluster.name).trim_end().to_owned(),
        role: config.role.as_str().to_owned(),
        node: machine.name.clone(),
        fixed,
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            cluster, role, node, ..
        } = &self.identity;
        writeln!(f, "{role} {node} of cluster {cluster}")?;
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(
                f,
                "{:3}. {:<14} {:<24} {}",
                index + 1,
                step.phase.as_str(),
                step.name,
                step.action
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
