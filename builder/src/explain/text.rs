//! The words for a person.

use kimage_roles::status::{Outcome, Phase};

use super::{Boot, Console, Reached, Verdict};
use crate::progress::duration;

/// Several lines, without a line end after the last one.
pub fn report(console: &Console) -> String {
    let mut lines = Vec::new();
    let verdict = console.verdict();
    match console.boots.last() {
        None => lines.push("no line of a machine is on this console".to_owned()),
        Some(boot) => {
            let of = match console.boots_seen {
                1 => String::new(),
                seen => format!(", boot {} of {seen}", boot.number),
            };
            lines.push(format!("{}{of}: {}", boot.name(), verdict.headline(boot)));
            phases(boot, &mut lines);
        }
    }
    match &verdict {
        Verdict::Failed {
            phase,
            cause,
            message,
            hint,
            ..
        } => {
            lines.push(format!("stopped at: {}", phase.as_str()));
            lines.extend(cause.map(|cause| format!("cause: {cause}")));
            lines.push(format!("message: {message}"));
            lines.push(format!("hint: {hint}"));
        }
        Verdict::Stopped {
            cause, message, hint, ..
        } => {
            lines.extend(cause.map(|cause| format!("cause: {cause}")));
            lines.push(format!("message: {message}"));
            lines.push(format!("hint: {hint}"));
        }
        Verdict::NoReport { reached } => lines.push(format!("hint: {}", reached.hint())),
        Verdict::InService | Verdict::Underway { .. } => {}
    }
    if console.damaged_reports > 0 {
        let count = console.damaged_reports;
        lines.push(format!(
            "note: {count} report(s) on this console are damaged and were passed over"
        ));
    }
    if console.cut {
        lines.push("note: this console is too long; its end was not read".to_owned());
    }
    lines.join("\n")
}

fn phases(boot: &Boot, lines: &mut Vec<String>) {
    for record in boot
        .phases
        .iter()
        .filter(|record| record.phase != Phase::InService)
    {
        let outcome = match record.outcome {
            Outcome::Running => "under way",
            Outcome::Retrying => "failed, trying again",
            Outcome::Done => "done",
            Outcome::Failed => "failed for good",
        };
        let mut line = format!(
            "  {:<14} {:>9}  {outcome}",
            record.phase.as_str(),
            time(record.duration_milliseconds)
        );
        if record.attempts > 1 {
            line.push_str(&format!(", {} attempts", record.attempts));
        }
        if record.outcome == Outcome::Done && !record.causes.is_empty() {
            let causes: Vec<&str> = record.causes.iter().map(|cause| cause.code()).collect();
            line.push_str(&format!(" ({})", causes.join(", ")));
        }
        lines.push(line);
    }
    if boot.runs > 1 {
        lines.push(format!("note: first boot began {} times in this boot", boot.runs));
    }
    for killed in &boot.out_of_memory {
        lines.push(format!("note: {killed}"));
    }
    for refused in &boot.refused {
        lines.push(format!("note: it did not approve {refused}"));
    }
}

fn time(milliseconds: u64) -> String {
    duration(std::time::Duration::from_millis(milliseconds))
}

impl Boot {
    /// `w1 (worker)`.
    fn name(&self) -> String {
        match (&self.node, &self.role) {
            (Some(node), Some(role)) => format!("{node} ({role})"),
            (None, Some(role)) => format!("a machine without a name yet ({role})"),
            _ => "a machine".to_owned(),
        }
    }
}

impl Verdict {
    fn headline(&self, boot: &Boot) -> String {
        match self {
            Self::InService => format!("in service after {}", time(boot.total_milliseconds)),
            Self::Underway { phase } => format!(
                "not in service: at {} after {}",
                phase.as_str(),
                time(boot.total_milliseconds)
            ),
            Self::Failed {
                tries_again: true, ..
            } => "not in service; it tries again by itself".to_owned(),
            Self::Failed { .. } => "not in service; it has given up".to_owned(),
            Self::Stopped { .. } => "stopped before first boot, or in the middle of it".to_owned(),
            Self::NoReport { .. } => "no report of first boot".to_owned(),
        }
    }

    /// One line: why the machine is not in service.
    pub fn reason(&self) -> String {
        match self {
            Self::InService => "in service".to_owned(),
            Self::Underway { phase } => format!("{} is under way", phase.as_str()),
            Self::Failed {
                phase,
                cause: Some(cause),
                message,
                ..
            } => format!("{} failed ({cause}): {message}", phase.as_str()),
            Self::Failed { phase, message, .. } => format!("{} failed: {message}", phase.as_str()),
            Self::Stopped { message, .. } => message.clone(),
            Self::NoReport { reached } => reached.reason().to_owned(),
        }
    }
}

impl Reached {
    fn reason(self) -> &'static str {
        match self {
            Self::Nothing => "the console says nothing of a machine",
            Self::Firmware => "the firmware speaks, the kernel does not",
            Self::Kernel => "the kernel runs, the root is not mounted",
            Self::Root => "the root is mounted, first boot says nothing",
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Nothing => "is this the serial console (ttyS0) of a machine that was switched on?",
            Self::Firmware => "wait, or check that the boot entry leads to the image's disk",
            Self::Kernel => "wait, or see the last lines: a disk that never appears is the common cause",
            Self::Root => "wait for kimage-firstboot.service, which starts when the network is online",
        }
    }
}
