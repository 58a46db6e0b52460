//! `kimage-firstboot agent`: what goes on for as long as a machine is in service, as chores that don't know each other.
//! On a member of etcd one keeps the membership; on a control plane one follows an etcd that is elsewhere and one signs
//! off serving certificates; one watches over the kubelet's credential. On every machine one renews what has
//! an end, and one asks the platform again what the machine is told to be.
//!
//! The agent never ends by itself: what fails is said once and tried again, and what the platform said last that made
//! sense counts until it says something else that does.

use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::node_config::{NodeConfig, NodeRole};

use crate::action::{Member, Worker};
use crate::approver::Approver;
use crate::failure::Failure;
use crate::host::Host;
use crate::inventory::{self, SeenLists};
use crate::layout::SEEN_LISTS;
use crate::plan::is_stacked;
use crate::role;

mod configuration;
mod kubelet;
mod panics;
mod renewal;
mod supervisor;
mod voice;

use configuration::Configuration;
use supervisor::{Chore, Shift, Work};

/// Between an approver that failed and the next one.
const APPROVALS: Duration = Duration::from_secs(2);
/// So long an approver works on end.
const SESSION: Duration = Duration::from_secs(600);
/// Between two looks at the members of etcd.
const MEMBERSHIP: Duration = Duration::from_secs(10);

/// Runs until it is stopped.
pub fn run(host: &Host) -> Result<(), Failure> {
    let role = role::read().map_err(Failure::internal)?;
    panics::remember();
    let configuration = Configuration::begin(host, &role.role);
    let chores = chores(&configuration.now().1.config);
    supervisor::run(host, &configuration, &chores);
    Ok(())
}

/// What a machine with this NodeConfig has to do.
fn chores(config: &NodeConfig) -> Vec<Chore> {
    let mut chores = vec![Chore {
        name: "configuration",
        begin: configuration::chore,
    }];
    let mut add = |name, begin| chores.push(Chore { name, begin });
    if config.role == NodeRole::Etcd || config.role == NodeRole::ControlPlane && is_stacked(config) {
        add("etcd", keep_membership);
    }
    if config.role == NodeRole::ControlPlane && !is_stacked(config) {
        add("etcd", follow_etcd);
    }
    if config.role == NodeRole::ControlPlane {
        add("approver", approve);
    }
    add("certificates", renewal::chore);
    match config.role {
        NodeRole::Worker => add("kubelet", kubelet::worker),
        NodeRole::ControlPlane => add("kubelet", kubelet::control_plane),
        NodeRole::Etcd => {}
    }
    chores
}

fn keep_membership<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let mut member = Member::new(shift.host, &shift.machine)?;
    Ok(Box::new(move || {
        shift.say(&member.advance()?.notes.join("; "));
        Ok(MEMBERSHIP)
    }))
}

fn follow_etcd<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let mut worker = Worker::new(shift.host, &shift.machine);
    Ok(Box::new(move || {
        shift.say(&worker.follow_etcd()?);
        Ok(MEMBERSHIP)
    }))
}

/// Approves requests as they come.
fn approve<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    let machine = &shift.machine;
    let worker = Worker::new(shift.host, machine);
    let inventory = inventory::open(
        machine.config.inventory.as_ref(),
        &machine.config.cluster.name,
        &machine.instance_id,
        SeenLists::at(shift.host.path(SEEN_LISTS)),
    )?;
    let mut approver = Approver::new(&machine.config, &machine.name, machine.address, inventory);
    Ok(Box::new(move || {
        let api = worker.own_api()?;
        let began = Instant::now();
        // The caller's certificate lives an hour.
        let is_over = || began.elapsed() > SESSION || shift.is_over();
        let worked = approver.work(&api, &|text| shift.say(text), &is_over);
        worked.map_err(|error| error.failure(Cause::ApiServerNotReady))?;
        Ok(APPROVALS)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::machine;

    #[test]
    fn every_machine_has_chores_of_its_role() {
        let names = |role, layout| {
            let chores = chores(&machine(role, layout).config);
            chores.iter().map(|chore| chore.name).collect::<Vec<_>>()
        };
        assert_eq!(names("worker", ""), ["configuration", "certificates", "kubelet"]);
        assert_eq!(
            names("etcd", "external"),
            ["configuration", "etcd", "certificates"]
        );
        for layout in ["stacked", "external"] {
            assert_eq!(
                names("control-plane", layout),
                ["configuration", "etcd", "approver", "certificates", "kubelet"]
            );
        }
    }
}
