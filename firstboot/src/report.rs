//! Says where the machine is: to `/run/kimage/status.json`, to the console for whoever watches, and to systemd.

use std::io::Write;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase, SCHEMA, STATUS_PATH, Status};

use crate::failure::Failure;
use crate::host::{self, Host};

/// Keeps and tells the status of this machine.
#[derive(Debug)]
pub struct Reporter<'a> {
    host: &'a Host,
    role: String,
    node: Option<String>,
    began: Instant,
    phase: Phase,
    phase_began: Instant,
    attempt: u32,
    /// What was told last about a failure, and when: the same trouble every second is one line, not thousands.
    told: Option<(Cause, String, Instant)>,
    silent: bool,
}

/// A trouble that stays is told again after so long.
const REMINDER: Duration = Duration::from_secs(30);

impl<'a> Reporter<'a> {
    /// A reporter for an image of `role`; the clock starts now.
    pub fn new(host: &'a Host, role: &str) -> Self {
        let now = Instant::now();
        Self {
            host,
            role: role.to_owned(),
            node: None,
            began: now,
            phase: Phase::Platform,
            phase_began: now,
            attempt: 1,
            told: None,
            silent: false,
        }
    }

    /// One that tells nobody: for what runs beside first boot.
    pub fn silent(host: &'a Host, role: &str) -> Self {
        Self {
            silent: true,
            ..Self::new(host, role)
        }
    }

    /// Where the machine is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A remark for whoever watches.
    pub fn say(&self, text: &str) {
        if !self.silent {
            say(self.host, &format!("kimage: {text}"));
        }
    }

    /// From now on the node has a name.
    pub fn name(&mut self, node: &str) {
        self.node = Some(node.to_owned());
    }

    /// A phase begins. The one before it is done.
    pub fn enter(&mut self, phase: Phase) {
        if phase != self.phase {
            self.tell(Outcome::Done);
        }
        self.phase = phase;
        self.phase_began = Instant::now();
        self.attempt = 1;
        self.tell(Outcome::Running);
    }

    /// The machine is in service.
    pub fn in_service(&mut self) {
        self.enter_quietly(Phase::InService);
        self.tell(Outcome::Done);
    }

    fn enter_quietly(&mut self, phase: Phase) {
        self.tell(Outcome::Done);
        self.phase = phase;
        self.phase_began = Instant::now();
        self.attempt = 1;
    }

    /// The phase failed this time; `last` when it is not tried again.
    pub fn failed(&mut self, failure: &Failure, last: bool) {
        let outcome = if last { Outcome::Failed } else { Outcome::Retrying };
        let message = failure.message();
        let known = self.told.as_ref().is_some_and(|(cause, told, when)| {
            *cause == failure.cause && *told == message && when.elapsed() < REMINDER
        });
        let status = self.status(outcome, Some(failure.cause), Some(message.clone()));
        self.record(&status);
        if last || !known {
            self.announce(&status);
            self.told = Some((failure.cause, message, Instant::now()));
        }
        self.attempt = self.attempt.saturating_add(1);
    }

    /// The newest status.
    fn status(&self, outcome: Outcome, cause: Option<Cause>, message: Option<String>) -> Status {
        let milliseconds = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Status {
            schema: SCHEMA,
            role: self.role.clone(),
            node: self.node.clone(),
            phase: self.phase,
            outcome,
            attempt: self.attempt,
            duration_milliseconds: milliseconds(self.phase_began),
            total_milliseconds: milliseconds(self.began),
            cause,
            message,
            hint: cause.map(|cause| cause.hint().to_owned()),
        }
    }

    /// Tells everybody.
    fn tell(&self, outcome: Outcome) {
        let status = self.status(outcome, None, None);
        self.record(&status);
        self.announce(&status);
    }

    /// To the file. A report that can't be written must not keep a machine from working.
    fn record(&self, status: &Status) {
        if let (false, Ok(json)) = (self.silent, serde_json::to_vec_pretty(status)) {
            drop(host::write(&self.host.path(STATUS_PATH), &json, 0o644));
        }
    }

    /// To the console.
    fn announce(&self, status: &Status) {
        if self.silent {
            return;
        }
        if let Ok(line) = status.console_line() {
            say(self.host, &line);
        }
        if let Some(cause) = status.cause {
            say(self.host, &format!("kimage: {}", in_words(status, cause)));
        }
    }
}

/// One line for a person.
fn in_words(status: &Status, cause: Cause) -> String {
    let message = status.message.as_deref().unwrap_or_default();
    let again = match status.outcome {
        Outcome::Failed => "failed for good",
        _ => "failed, trying again",
    };
    let phase = status.phase.as_str();
    format!("{phase} {again} ({cause}): {message}; hint: {}", cause.hint())
}

/// Writes a line to the journal (by standard error) and to the console.
pub(crate) fn say(host: &Host, line: &str) {
    let line = format!("{line}\n");
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
    let console = std::fs::OpenOptions::new()
        .write(true)
        .open(host.path("/dev/console"));
    drop(console.and_then(|mut console| console.write_all(line.as_bytes())));
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn read(host: &Host) -> Status {
        serde_json::from_slice(&std::fs::read(host.path(STATUS_PATH)).unwrap()).unwrap()
    }

    #[test]
    fn the_file_holds_the_newest_phase_its_attempt_and_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let mut reporter = Reporter::new(&host, "worker");
        reporter.enter(Phase::Join);
        let failure = Failure::new(Cause::BalancerUnreachable, anyhow!("connect to lb:6443: refused"));
        reporter.failed(&failure, false);
        reporter.failed(&failure, false);
        let status = read(&host);
        assert_eq!(
            (status.phase, status.outcome, status.attempt),
            (Phase::Join, Outcome::Retrying, 2)
        );
        assert_eq!(status.hint.as_deref(), Some(Cause::BalancerUnreachable.hint()));
        reporter.in_service();
        assert_eq!(read(&host).phase, Phase::InService);
    }
}
