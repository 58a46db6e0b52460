//! Services, and the host's name.

use std::time::{Duration, SystemTime};

use kimage_roles::cause::Cause;
use kimage_roles::node_config::PodMetadata;

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::{host, metadata_wall};

pub(super) fn name_host(name: &str) -> Result<(), Failure> {
    rustix::system::sethostname(name.as_bytes()).or_failure(Cause::Internal)
}

impl Worker<'_> {
    /// Decides about the wall that stands since the machine came up. The unit is asked for too: containerd and the kubelet
    /// don't start without it, and here its failure has a name.
    pub(super) fn guard_metadata(&self, pods: PodMetadata) -> Result<(), Failure> {
        let unit = metadata_wall::UNIT;
        let decided = metadata_wall::decide(self.host, pods).or_failure(Cause::UnitFailed);
        decided.map_err(|failure| failure.context(unit))?;
        let started = host::output("systemctl", &["start", unit].map(str::to_owned));
        started.map(drop).map_err(|_| {
            let last = last_line(unit).unwrap_or_else(|| "it wrote nothing".to_owned());
            Failure::because(Cause::UnitFailed, format!("{unit} has failed: {last}"))
        })
    }

    /// Starts services without waiting until they are ready: that is seen from what they serve. A service that runs
    /// with older files is restarted.
    pub(super) fn start(&mut self, units: &[&str]) -> Result<(), Failure> {
        let verb = if self.stale || self.changed {
            "restart"
        } else {
            "start"
        };
        let mut words = vec!["--no-block".to_owned(), verb.to_owned()];
        words.extend(units.iter().map(|unit| (*unit).to_owned()));
        host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
        Ok(())
    }

    /// A failure when one of these services has failed; with the last line that it wrote.
    pub(super) fn check_units(&self, units: &[&str]) -> Result<(), Failure> {
        for unit in units {
            let state = state(unit)?;
            if state == "failed" {
                let last = last_line(unit).unwrap_or_else(|| "it wrote nothing".to_owned());
                return Err(Failure::because(
                    Cause::UnitFailed,
                    format!("{unit} has failed: {last}"),
                ));
            }
        }
        Ok(())
    }
}

fn state(unit: &str) -> Result<String, Failure> {
    let words = ["show", "--property=ActiveState", "--value", unit].map(str::to_owned);
    let text = host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
    Ok(text.trim().to_owned())
}

/// When this boot of the machine began; not this run of first boot, of which a boot may have many: a kubelet without
/// news speaks every five minutes only.
pub(super) fn boot_began() -> Result<jiff::Timestamp, Failure> {
    let words = [
        "show",
        "--timestamp=unix",
        "--property=UserspaceTimestamp",
        "--value",
    ]
    .map(str::to_owned);
    let text = host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
    let seconds = text.trim().strip_prefix('@').and_then(|text| text.parse().ok());
    let moment = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.ok_or_else(|| Failure::because(Cause::Internal, format!("systemd came up at `{}`", text.trim())))
}

/// The main process of a unit that runs.
pub(super) fn main_process(unit: &str) -> Result<Option<u32>, Failure> {
    let words = ["show", "--property=MainPID", "--value", unit].map(str::to_owned);
    let text = host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
    Ok(text.trim().parse().ok().filter(|process| *process != 0))
}

/// When the main process of a unit that runs was started, by the clock of then.
pub(crate) fn started(unit: &str) -> Result<Option<SystemTime>, Failure> {
    let words = [
        "show",
        "--timestamp=unix",
        "--property=ExecMainStartTimestamp",
        "--value",
        unit,
    ]
    .map(str::to_owned);
    let text = host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
    let seconds = text.trim().strip_prefix('@').and_then(|text| text.parse().ok());
    Ok(seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))))
}

/// The newest line in the journal of a unit.
pub(super) fn last_line(unit: &str) -> Option<String> {
    let words = [
        "--unit",
        unit,
        "--lines=1",
        "--output=cat",
        "--no-pager",
        "--quiet",
    ]
    .map(str::to_owned);
    let text = host::output("journalctl", &words).ok()?;
    let line = text.lines().last()?.trim();
    (!line.is_empty()).then(|| line.chars().take(300).collect())
}
