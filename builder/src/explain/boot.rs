//! One boot of a machine.

use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase, Status};
use serde::Serialize;

use super::{Reached, Stop, Verdict, judge};

/// What firmware and kernels say when they stop a machine.
const STOPS: [(&str, Stop); 10] = [
    ("Security Policy Violation", Stop::SecureBoot),
    ("Security Violation", Stop::SecureBoot),
    ("Access Denied", Stop::SecureBoot),
    ("No bootable option or device was found", Stop::NothingToBoot),
    ("No bootable device", Stop::NothingToBoot),
    ("dm-verity device corrupted", Stop::Verity),
    ("verity: data block", Stop::Verity),
    ("verity: metadata block", Stop::Verity),
    ("; can't boot", Stop::Root),
    ("Kernel panic - not syncing", Stop::Panic),
];

/// How a line of the agent begins that says why it did not approve certificates.
const REFUSED: &str = "kimage-agent: approver: not approved ";
/// So many characters of it are kept: it names several requests, each with what a person can do.
const LONGEST_REFUSAL: usize = 1200;
/// So many things of one kind are kept of a boot.
const MAX_NOTES: usize = 16;

/// A line that means something.
pub(super) enum Event {
    /// The firmware hands over to a boot entry.
    Firmware,
    /// The kernel's first line.
    Kernel,
    /// Stage 0 has mounted the root.
    Root,
    /// Somebody stops the machine, in these words.
    Stop(Stop, String),
    /// The kernel killed a process for want of memory.
    OutOfMemory(String),
    /// The agent of a control plane did not approve a certificate, and says why and what a person can do.
    Refused(String),
    /// First boot reports.
    Report(Box<Status>),
}

impl Event {
    /// What a line that is no report means.
    pub(super) fn of(line: &str) -> Option<Self> {
        let words = || message(line);
        if let Some((_, stop)) = STOPS.iter().find(|(text, _)| line.contains(text)) {
            return Some(Self::Stop(*stop, words()));
        }
        if line.contains("BdsDxe: loading Boot") {
            Some(Self::Firmware)
        } else if line.contains("Linux version ") && line.contains("0.000000") {
            Some(Self::Kernel)
        } else if line.contains("kimage-init: ") {
            Some(Self::Root)
        } else if line.contains("Out of memory: Killed process") {
            Some(Self::OutOfMemory(words()))
        } else if let Some((_, refusal)) = line.split_once(REFUSED) {
            Some(Self::Refused(refusal.chars().take(LONGEST_REFUSAL).collect()))
        } else {
            None
        }
    }
}

/// A line without the kernel's stamp, at most 400 characters.
fn message(line: &str) -> String {
    let line = line.trim();
    let bare = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, rest)) => rest,
        None => line,
    };
    bare.chars().take(400).collect()
}

/// The code in stage 0's last words: `kimage-init: CODE: ...`.
fn stage0_cause(message: &str) -> Option<Cause> {
    let (_, words) = message.split_once("kimage-init: ")?;
    Cause::from_code(words.split_once(": ")?.0)
}

/// What a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRecord {
    /// Which.
    pub phase: Phase,
    /// How it stands.
    pub outcome: Outcome,
    /// How often it was tried, as far as the console tells.
    pub attempts: u32,
    /// How long it took.
    pub duration_milliseconds: u64,
    /// Causes of its failed attempts, in order, each once.
    pub causes: Vec<Cause>,
}

/// One boot, as far as the console tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// Counted from 1.
    pub number: u64,
    /// Role of the image.
    pub role: Option<String>,
    /// Name of the node.
    pub node: Option<String>,
    /// How often first boot began in this boot; more than once when it was killed.
    pub runs: u32,
    /// What its newest run did, in order.
    pub phases: Vec<PhaseRecord>,
    /// Time of the newest report since first boot began.
    pub total_milliseconds: u64,
    /// Processes that the kernel killed for want of memory.
    pub out_of_memory: Vec<String>,
    /// Certificates that its agent did not approve, and why: the newest.
    pub refused: Vec<String>,
    reached: Reached,
    #[serde(skip)]
    stop: Option<(Stop, String)>,
    #[serde(skip)]
    last: Option<Status>,
}

impl Boot {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            role: None,
            node: None,
            runs: 0,
            phases: Vec::new(),
            total_milliseconds: 0,
            out_of_memory: Vec::new(),
            refused: Vec::new(),
            reached: Reached::Nothing,
            stop: None,
            last: None,
        }
    }

    /// Whether `event` belongs to the next boot. The firmware may try several entries before a kernel starts.
    pub(super) fn is_ended_by(&self, event: &Event) -> bool {
        match event {
            Event::Firmware | Event::Kernel => self.reached >= Reached::Kernel || self.last.is_some(),
            _ => false,
        }
    }

    pub(super) fn take(&mut self, event: &Event) {
        match event {
            Event::Firmware => self.reached = self.reached.max(Reached::Firmware),
            Event::Kernel => {
                self.reached = Reached::Kernel;
                // Whatever the firmware refused before, this entry started.
                self.stop = None;
            }
            Event::Root => self.reached = Reached::Root,
            Event::Stop(stop, words) => {
                let refused = matches!(stop, Stop::SecureBoot | Stop::NothingToBoot);
                // After a kernel has started these are words of somebody else. The first cause is the true one.
                if self.stop.is_none() && !(refused && self.reached >= Reached::Kernel) {
                    self.stop = Some((*stop, words.clone()));
                }
            }
            Event::OutOfMemory(words) => {
                if self.out_of_memory.len() < MAX_NOTES {
                    self.out_of_memory.push(words.clone());
                }
            }
            Event::Refused(words) => {
                if self.refused.len() == MAX_NOTES {
                    self.refused.remove(0);
                }
                self.refused.push(words.clone());
            }
            Event::Report(status) => self.report(status),
        }
    }

    fn report(&mut self, status: &Status) {
        self.reached = Reached::Root;
        let began_again = match &self.last {
            Some(last) => status.total_milliseconds < last.total_milliseconds,
            None => true,
        };
        if began_again {
            self.runs += 1;
            self.phases.clear();
        }
        self.role = Some(status.role.clone());
        self.node = status.node.clone().or(self.node.take());
        self.total_milliseconds = status.total_milliseconds;
        let known = self.phases.iter().position(|record| record.phase == status.phase);
        let at = known.unwrap_or_else(|| {
            self.phases.push(PhaseRecord {
                phase: status.phase,
                outcome: status.outcome,
                attempts: 0,
                duration_milliseconds: 0,
                causes: Vec::new(),
            });
            self.phases.len() - 1
        });
        let record = &mut self.phases[at];
        record.outcome = status.outcome;
        record.attempts = record.attempts.max(status.attempt);
        record.duration_milliseconds = status.duration_milliseconds;
        record
            .causes
            .extend(status.cause.filter(|cause| !record.causes.contains(cause)));
        self.last = Some(status.clone());
    }

    /// How it ended.
    pub fn verdict(&self) -> Verdict {
        if let Some((stop, message)) = &self.stop {
            let cause = if *stop == Stop::Root {
                stage0_cause(message)
            } else {
                None
            };
            return Verdict::Stopped {
                by: *stop,
                cause,
                message: message.clone(),
                hint: cause.map_or(stop.hint(), Cause::hint).to_owned(),
            };
        }
        match &self.last {
            Some(status) => judge(status),
            None => Verdict::NoReport {
                reached: self.reached,
            },
        }
    }
}
