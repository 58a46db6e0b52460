//! `kimage-firstboot boot`: from a platform to a machine in service, at every boot. It may be killed anywhere and begins
//! again; what it finds done stays.

use std::thread;
use std::time::Duration;

use kimage_roles::cause::Cause;
use kimage_roles::node_config::NodeRole;
use kimage_roles::status::Phase;

use crate::action::Worker;
use crate::backoff::Backoff;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::ledger::Ledger;
use crate::metadata::{self, Machine, remembered};
use crate::plan::{Plan, Step, plan};
use crate::platform;
use crate::platform::pin::Pin;
use crate::platform::source::Answer;
use crate::prerequisites::{check_randomness, check_state};
use crate::report::Reporter;
use crate::role;

mod exclusive;

pub(crate) use exclusive::Exclusive;

/// The longest pause between two questions to the platform.
const METADATA_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause between two looks at the kernel's randomness.
const RANDOMNESS_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a worker that is refused joins anew.
const JOIN_PAUSE: Duration = Duration::from_secs(10);
/// Runs for as long as the machine is in service.
pub(crate) const AGENT: &str = "kimage-agent.service";

/// Goes all the way into service. A failure is one that trying again on this machine can't mend; it has been reported.
pub fn run(host: &Host) -> Result<(), Failure> {
    let role = role::read().map_err(Failure::internal)?;
    let mut reporter = Reporter::new(host, &role.role);
    // Before anything that could want a key: TLS to a metadata server does.
    persist(&mut reporter, RANDOMNESS_PAUSE, &|| true, check_randomness)
        .inspect_err(|failure| reporter.failed(failure, true))?;
    let (machine, pin) = meet(host, &role.role, &mut reporter)?;
    reporter.name(&machine.name);
    reporter.enter(Phase::Plan);
    let done = act(host, &machine, &pin, &mut reporter);
    // Steps report what they try; this is the end of trying.
    done.inspect_err(|failure| reporter.failed(failure, true))
}

/// From a machine that knows itself to one in service.
fn act(host: &Host, machine: &Machine, pin: &Pin, reporter: &mut Reporter<'_>) -> Result<(), Failure> {
    let alone = Exclusive::wait(host)?;
    serve(host, machine, Some(pin), reporter, &alone, &|| true)?;
    host::output("systemctl", &["--no-block", "restart", AGENT].map(str::to_owned))
        .map_err(Failure::internal)?;
    reporter.in_service();
    Ok(())
}

/// Walks the whole plan, for as long as `goes_on`. A worker that turns out to be refused by its cluster after it has
/// found it begins again, and then joins anew. `pin` is the source of metadata to keep to, where this is a boot.
pub(crate) fn serve(
    host: &Host,
    machine: &Machine,
    pin: Option<&Pin>,
    reporter: &mut Reporter<'_>,
    _alone: &Exclusive,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let plan = plan(machine)?;
    check_state(host)?;
    let mut backoff = Backoff::seeded();
    loop {
        let mut under_way = "";
        let done = go(host, machine, pin, reporter, &plan, &mut under_way, goes_on);
        let Err(failure) = done else {
            return Ok(());
        };
        if !goes_on() || !calls_for_joining(machine, under_way, &failure) {
            return Err(failure);
        }
        reporter.failed(&failure, false);
        thread::sleep(backoff.next_wait().min(JOIN_PAUSE));
    }
}

/// Whether a worker that failed like this must go back to the step that joins.
fn calls_for_joining(machine: &Machine, step: &str, failure: &Failure) -> bool {
    let refused = matches!(failure.cause, Cause::CredentialRefused | Cause::ForeignCluster);
    machine.config.role == NodeRole::Worker && step != "join" && refused
}

/// One walk.
fn go(
    host: &Host,
    machine: &Machine,
    pin: Option<&Pin>,
    reporter: &mut Reporter<'_>,
    plan: &Plan,
    under_way: &mut &'static str,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let mut ledger = Ledger::open(host, &plan.identity, &machine.instance_id)?;
    // Now that the state is known to be this cluster's and to stay.
    if let Some(pin) = pin {
        pin.write(host)?;
    }
    if ledger.is_inherited() {
        reporter.say("the state disk was used by another instance before; this one goes on with it");
    }
    if let Some(step) = ledger.interrupted() {
        reporter.say(&format!("the last boot was interrupted during step {step}"));
    }
    let mut worker = Worker::new(host, machine);
    walk(plan, &mut ledger, |step, stale| {
        *under_way = step.name;
        if step.phase != reporter.phase() {
            reporter.enter(step.phase);
        }
        worker.turn(stale);
        persist(reporter, step.action.longest_pause(), goes_on, || {
            worker.apply(&step.action)
        })?;
        Ok(worker.has_changed_files())
    })
}

/// Does one step after the other. `take` learns whether the services that a step starts run with older files, and answers
/// whether the step has changed some. Wherever this ends, the next walk starts anew what has to be.
fn walk(
    plan: &Plan,
    ledger: &mut Ledger,
    mut take: impl FnMut(&Step, bool) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    for (index, step) in plan.steps.iter().enumerate() {
        ledger.begin(step.name, &plan.at_stake(index))?;
        let changed = take(step, ledger.is_stale(step.name))?;
        ledger.finish(step.name, changed)?;
    }
    Ok(())
}

/// Prints what a boot would do.
pub fn dry_run(host: &Host) -> Result<(), Failure> {
    let role = role::read().map_err(Failure::internal)?;
    let platform = platform::detect(host);
    let answer = platform::fetch(platform, host)?;
    let machine = metadata::judge(answer.raw, &role.role, &metadata::own_address)?;
    host::print(&plan(&machine)?.to_string());
    Ok(())
}

/// Asks the platform who this machine is, until it answers.
pub(crate) fn learn(host: &Host, role: &str, reporter: &mut Reporter<'_>) -> Result<Machine, Failure> {
    meet(host, role, reporter).map(|(machine, _)| machine)
}

/// [`learn`], with the source that is to be kept to.
fn meet(host: &Host, role: &str, reporter: &mut Reporter<'_>) -> Result<(Machine, Pin), Failure> {
    reporter.enter(Phase::Platform);
    let platform = platform::detect(host);
    reporter.enter(Phase::Metadata);
    let learned = persist(reporter, METADATA_PAUSE, &|| true, || {
        let Answer { raw, pin, remarks } = platform::fetch(platform, host)?;
        let machine = remembered::judge(host, raw, role, &metadata::own_address)?;
        Ok((machine, pin, remarks))
    });
    let (machine, pin, remarks) = learned.inspect_err(|failure| reporter.failed(failure, true))?;
    remarks.iter().for_each(|remark| reporter.say(remark));
    Ok((machine, pin))
}

/// Tries for as long as `goes_on`, until it works or can't work like this.
fn persist<T>(
    reporter: &mut Reporter<'_>,
    longest_pause: Duration,
    goes_on: &dyn Fn() -> bool,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut backoff = Backoff::seeded();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(failure) if failure.cause.is_lasting() || !goes_on() => return Err(failure),
            // Asking again with the same credential is of no use.
            Err(failure) if failure.cause == Cause::CredentialRefused => return Err(failure),
            Err(failure) => reporter.failed(&failure, false),
        }
        thread::sleep(backoff.next_wait().min(longest_pause));
    }
}

#[cfg(test)]
mod tests;
