//! `kimage-firstboot agent`: what goes on for as long as a machine is in service. On a member of etcd it keeps the
//! membership; on a control plane it follows an etcd that is elsewhere and signs off serving certificates; where this
//! machine issued certificates it renews them.

use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::node_config::NodeRole;

use crate::action::{Action, Member, Worker};
use crate::approver;
use crate::failure::Failure;
use crate::host::Host;
use crate::metadata::Machine;
use crate::plan::{is_stacked, plan};
use crate::report::{self, Reporter};
use crate::{boot, role};

/// Between two looks at the requests that wait: a kubelet asks once and waits.
const APPROVALS: Duration = Duration::from_secs(2);
/// Between two looks at the members of etcd.
const MEMBERSHIP: Duration = Duration::from_secs(10);
/// Between two looks at the ages of certificates.
const RENEWAL: Duration = Duration::from_secs(6 * 3600);

/// Runs until it is stopped.
pub fn run(host: &Host) -> Result<(), Failure> {
    let role = role::read().map_err(Failure::internal)?;
    let machine = boot::learn(host, &role.role, &mut Reporter::silent(host, &role.role))?;
    let mut chores = chores(host, &machine)?;
    let mut last_words: Vec<String> = vec![String::new(); chores.len()];
    loop {
        for (chore, last) in chores.iter_mut().zip(&mut last_words) {
            if chore.due > Instant::now() {
                continue;
            }
            chore.due = Instant::now() + chore.every;
            let said = (chore.work)().unwrap_or_else(|failure| failure.to_string());
            // The same trouble every ten seconds is one line, not thousands.
            if said != *last && !said.is_empty() {
                report::say(host, &format!("kimage-agent: {}: {said}", chore.name));
            }
            *last = said;
        }
        let Some(next) = chores.iter().map(|chore| chore.due).min() else {
            // A worker has none: its certificates are the kubelet's own.
            return Ok(());
        };
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Something done again and again; it answers with what a person should know.
struct Chore<'a> {
    name: &'static str,
    every: Duration,
    due: Instant,
    work: Box<dyn FnMut() -> Result<String, Failure> + 'a>,
}

fn chores<'a>(host: &'a Host, machine: &'a Machine) -> Result<Vec<Chore<'a>>, Failure> {
    let mut chores = Vec::new();
    let mut every = |name, every, work: Box<dyn FnMut() -> Result<String, Failure> + 'a>| {
        chores.push(Chore {
            name,
            every,
            due: Instant::now(),
            work,
        });
    };
    let role = machine.config.role;
    if role == NodeRole::Etcd || role == NodeRole::ControlPlane && is_stacked(&machine.config) {
        let mut member = Member::new(host, machine)?;
        every(
            "etcd",
            MEMBERSHIP,
            Box::new(move || Ok(member.advance()?.notes.join("; "))),
        );
    }
    if role == NodeRole::ControlPlane && !is_stacked(&machine.config) {
        let mut worker = Worker::new(host, machine);
        every("etcd", MEMBERSHIP, Box::new(move || worker.follow_etcd()));
    }
    if role == NodeRole::ControlPlane {
        let worker = Worker::new(host, machine);
        every("approver", APPROVALS, Box::new(move || approve(&worker)));
    }
    if role != NodeRole::Worker {
        every("certificates", RENEWAL, Box::new(move || renew(host, machine)));
    }
    Ok(chores)
}

fn approve(worker: &Worker) -> Result<String, Failure> {
    let lines = approver::approve_waiting(&worker.own_api()?);
    let lines = lines.map_err(|error| error.failure(Cause::ApiServerNotReady))?;
    Ok(lines.join("; "))
}

/// Issues anew what has less than a third of its life left. API server and etcd read the files again by themselves.
fn renew(host: &Host, machine: &Machine) -> Result<String, Failure> {
    let mut worker = Worker::new(host, machine);
    for step in plan(machine)?.steps {
        if let Action::Issue(_) = step.action {
            worker.apply(&step.action)?;
        }
    }
    Ok(String::new())
}
