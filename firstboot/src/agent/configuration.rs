//! What this machine is told to be, as all chores see it. The platform is asked again from time to time; an answer that
//! makes no sense, or none at all, changes nothing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kimage_roles::cause::Cause;

use super::supervisor::{Shift, Work};
use super::voice::Voice;
use crate::backoff::Backoff;
use crate::failure::Failure;
use crate::host::Host;
use crate::metadata::{self, Machine, remembered};
use crate::plan::plan;
use crate::platform;

/// Between two questions to the platform. Metadata services limit how often they are asked.
const INTERVAL: Duration = Duration::from_secs(300);

/// What the machine is told, and how often that has changed.
#[derive(Debug)]
pub(super) struct Configuration {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    number: u64,
    machine: Arc<Machine>,
}

impl Configuration {
    /// What first boot worked with, else what the platform says. Asks until there is something.
    pub(super) fn begin(host: &Host, role: &str) -> Self {
        let voice = Voice::new(host, "configuration");
        let mut backoff = Backoff::seeded();
        loop {
            let known = remembered::recall(host, role, &metadata::own_address);
            match known.or_else(|_| ask(host, role)) {
                Ok(machine) => return Self::of(machine),
                Err(failure) => voice.trouble(&failure.to_string()),
            }
            thread::sleep(backoff.next_wait());
        }
    }

    /// This machine, for a start.
    pub(super) fn of(machine: Machine) -> Self {
        Self {
            state: Mutex::new(State {
                number: 0,
                machine: Arc::new(machine),
            }),
            changed: Condvar::new(),
        }
    }

    /// The number of changes so far, and the machine as it is told to be now.
    pub(super) fn now(&self) -> (u64, Arc<Machine>) {
        let state = self.lock();
        (state.number, Arc::clone(&state.machine))
    }

    /// Waits until there were more than `number` changes, at most for `pause`.
    pub(super) fn wait_for_change(&self, number: u64, pause: Duration) {
        let unchanged = |state: &mut State| state.number == number;
        let waited = self.changed.wait_timeout_while(self.lock(), pause, unchanged);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Credentials of this machine were made anew: whoever holds old ones in memory begins again.
    pub(super) fn renewed(&self) {
        self.lock().number += 1;
        self.changed.notify_all();
    }

    /// Takes what the platform says now, if it may change under a running machine. Whether it is anything new.
    fn take(&self, told: Machine) -> Result<bool, Failure> {
        let mut state = self.lock();
        if *state.machine == told {
            return Ok(false);
        }
        compare(&state.machine, &told)?;
        state.machine = Arc::new(told);
        state.number += 1;
        self.changed.notify_all();
        Ok(true)
    }

    // A thread that panicked has left nothing half done: every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the platform again and again.
pub(super) fn chore<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
    Ok(Box::new(move || {
        let told = ask(shift.host, shift.machine.config.role.as_str());
        let told = told.map_err(|failure| failure.context("the last good configuration stays in force"))?;
        if shift.configuration.take(told)? {
            shift.say("the platform gives this machine another NodeConfig: it is in force");
        }
        Ok(INTERVAL)
    }))
}

fn ask(host: &Host, role: &str) -> Result<Machine, Failure> {
    let raw = platform::fetch(platform::detect(host), host)?.raw;
    remembered::judge(host, raw, role, &metadata::own_address)
}

/// Refuses what a machine can't become while it runs: another instance, or what no boot would accept either.
fn compare(now: &Machine, told: &Machine) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let text = format!("{what}; the last good configuration stays in force");
        Err(Failure::because(Cause::ConfigChanged, text))
    };
    if now.instance_id != told.instance_id {
        return refuse("the platform gives this machine the metadata of another instance");
    }
    if now.address != told.address {
        return refuse("the platform gives this machine another address");
    }
    if plan(now)?.identity != plan(told)?.identity {
        return refuse("the platform gives this machine another cluster, role, name or network");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::machine;

    #[test]
    fn what_may_change_under_a_machine_is_taken_and_counted() {
        let worker = machine("worker", "");
        let configuration = Configuration::of(worker.clone());
        assert!(!configuration.take(worker.clone()).unwrap());
        assert_eq!(configuration.now().0, 0);
        let mut told = worker;
        let join = told.config.join.as_mut().unwrap();
        join.ca_cert_hashes.push(format!("sha256:{}", "1".repeat(64)));
        assert!(configuration.take(told.clone()).unwrap());
        let (number, now) = configuration.now();
        assert_eq!((number, &*now), (1, &told));
    }

    #[test]
    fn another_instance_cluster_or_address_is_refused_and_the_old_one_stays() {
        let worker = machine("worker", "");
        let configuration = Configuration::of(worker.clone());
        let mut others = [worker.clone(), worker.clone(), worker.clone(), worker.clone()];
        others[0].instance_id = "i-2".to_owned();
        others[1].address = "10.0.0.6".parse().unwrap();
        others[2].config.cluster.name = "other".to_owned();
        others[3].name = "b".to_owned();
        for other in others {
            let failure = configuration.take(other).unwrap_err();
            assert_eq!(failure.cause, Cause::ConfigChanged);
        }
        assert_eq!(configuration.now(), (0, Arc::new(worker)));
    }
}
