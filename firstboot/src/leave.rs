//! `kimage-firstboot leave`: what happens before a machine with a member of etcd is destroyed on purpose. Whoever scales
//! a group in calls it; the machine doesn't come back into etcd afterwards.

use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::node_config::NodeRole;

use crate::action::Member;
use crate::boot::{self, AGENT};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::metadata::Machine;
use crate::plan::is_stacked;
use crate::report::Reporter;
use crate::role;

/// How long the others are waited for before the machine is left as it was.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(1);
/// Without its etcd a stacked API server serves nobody: it ends first, in good order, so that the balancer turns away.
const API_SERVER: &str = "kube-apiserver.service";

/// Leaves etcd. An error leaves the machine as it was: a member, in service.
pub fn run(host: &Host) -> Result<(), Failure> {
    let role = role::read().map_err(Failure::internal)?;
    let machine = boot::learn(host, &role.role, &mut Reporter::silent(host, &role.role))?;
    let mut units = vec![AGENT];
    match machine.config.role {
        NodeRole::Etcd => {}
        NodeRole::ControlPlane if is_stacked(&machine.config) => units.push(API_SERVER),
        _ => {
            host::print("kimage: no etcd runs on this machine: there is nothing to leave\n");
            return Ok(());
        }
    }
    let mut member = Member::new(host, &machine)?;
    // The agent keeps the member what it is; it must not see this happen.
    systemctl("stop", &units)?;
    match leave(&mut member) {
        Ok(()) => {
            say_farewell(&machine);
            Ok(())
        }
        Err(failure) => {
            systemctl("start", &units)?;
            Err(failure)
        }
    }
}

fn leave(member: &mut Member) -> Result<(), Failure> {
    let begin = Instant::now();
    loop {
        match member.leave() {
            Ok(()) => return Ok(()),
            Err(failure) if failure.cause.is_lasting() || begin.elapsed() > PATIENCE => return Err(failure),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn say_farewell(machine: &Machine) {
    let name = &machine.name;
    host::print(&format!("kimage: {name} has left etcd; destroy the machine\n"));
}

fn systemctl(verb: &str, units: &[&str]) -> Result<(), Failure> {
    let arguments = std::iter::once(&verb).chain(units).map(|word| (*word).to_owned());
    let arguments: Vec<String> = arguments.collect();
    host::output("systemctl", &arguments)
        .map(drop)
        .map_err(Failure::internal)
}
