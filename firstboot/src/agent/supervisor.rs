//! Chores, each in a thread of its own: an error or a panic of one is told once and tried again after a while, and never
//! ends the agent or another chore.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::configuration::Configuration;
use super::panics;
use super::voice::Voice;
use crate::backoff::Backoff;
use crate::failure::Failure;
use crate::host::Host;
use crate::metadata::Machine;

/// One round of a chore. It may take as long as it likes if it looks at [`Shift::is_over`] from time to time. The answer
/// is how long to wait until the next round; after a failure the supervisor decides that.
pub(crate) type Work<'a> = Box<dyn FnMut() -> Result<Duration, Failure> + 'a>;

/// Something done for as long as the machine is in service.
#[derive(Clone, Copy)]
pub(super) struct Chore {
    /// How it is called in what it says.
    pub(super) name: &'static str,
    /// Prepares for a shift. What it learned in an earlier one is gone.
    pub(super) begin: for<'a> fn(&'a Shift<'a>) -> Result<Work<'a>, Failure>,
}

/// The time of a chore for which the machine is told the same. A change of that begins a new one, as does a panic.
pub(crate) struct Shift<'a> {
    /// Files of the machine.
    pub(crate) host: &'a Host,
    /// What the machine is told to be.
    pub(crate) machine: Arc<Machine>,
    /// Where a chore tells what others should know.
    pub(super) configuration: &'a Configuration,
    number: u64,
    voice: &'a Voice<'a>,
}

impl Shift<'_> {
    /// Tells people something, unless it was told last too.
    pub(crate) fn say(&self, text: &str) {
        self.voice.remark(text);
    }

    /// Whether the machine is told something else by now.
    pub(crate) fn is_over(&self) -> bool {
        self.configuration.now().0 != self.number
    }

    /// Waits for so long, or until the shift is over.
    pub(crate) fn wait(&self, pause: Duration) {
        self.configuration.wait_for_change(self.number, pause);
    }
}

/// Does all chores, for ever.
pub(super) fn run(host: &Host, configuration: &Configuration, chores: &[Chore]) {
    thread::scope(|scope| {
        for chore in chores {
            scope.spawn(move || tend(host, configuration, *chore, &|| true));
        }
    });
}

/// Does one chore, shift after shift, for as long as `goes_on`.
fn tend(host: &Host, configuration: &Configuration, chore: Chore, goes_on: &dyn Fn() -> bool) {
    let voice = Voice::new(host, chore.name);
    let mut backoff = Backoff::seeded();
    while goes_on() {
        let (number, machine) = configuration.now();
        let shift = Shift {
            host,
            machine,
            configuration,
            number,
            voice: &voice,
        };
        let done = panics::caught(|| work(&shift, chore, &mut backoff, goes_on));
        // Nothing of the shift is left: the next one begins from the machine's files.
        if let Err(failure) = done {
            voice.trouble(&failure.to_string());
            shift.wait(backoff.next_wait());
        }
    }
}

/// One shift. An error means that it could not begin.
fn work(
    shift: &Shift<'_>,
    chore: Chore,
    backoff: &mut Backoff,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let mut round = (chore.begin)(shift)?;
    while goes_on() && !shift.is_over() {
        match round() {
            Ok(pause) => {
                shift.voice.well();
                *backoff = Backoff::seeded();
                shift.wait(pause);
            }
            Err(failure) => {
                shift.voice.trouble(&failure.to_string());
                shift.wait(backoff.next_wait());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use kimage_roles::cause::Cause;

    use super::*;
    use crate::plan::tests::machine;

    static ROUNDS: AtomicU32 = AtomicU32::new(0);

    fn troubled<'a>(shift: &'a Shift<'a>) -> Result<Work<'a>, Failure> {
        assert!(!shift.is_over());
        Ok(Box::new(|| match ROUNDS.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Failure::because(Cause::MetadataMissing, "nothing there")),
            1 => panic!("a bug"),
            _ => Ok(Duration::ZERO),
        }))
    }

    #[test]
    fn a_chore_that_fails_for_good_or_panics_goes_on_and_so_do_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let configuration = Configuration::of(machine("worker", ""));
        let chore = Chore {
            name: "troubled",
            begin: troubled,
        };
        // Two failures wait less than three seconds in all.
        tend(&host, &configuration, chore, &|| {
            ROUNDS.load(Ordering::SeqCst) < 5
        });
        assert_eq!(ROUNDS.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn a_change_of_what_the_machine_is_told_ends_a_shift_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let configuration = Configuration::of(machine("worker", ""));
        let number = configuration.now().0;
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let voice = Voice::new(&host, "test");
                let shift = Shift {
                    host: &host,
                    machine: configuration.now().1,
                    configuration: &configuration,
                    number,
                    voice: &voice,
                };
                shift.wait(Duration::from_secs(3600));
                send.send(shift.is_over()).unwrap();
            });
            configuration.renewed();
            assert_eq!(receive.recv_timeout(Duration::from_secs(60)), Ok(true));
        });
    }
}
