//! A control plane whose etcd is elsewhere follows it: members come and go, and an API server that knows only those of
//! yesterday ends with the last of them.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;

use super::Worker;
use super::cluster::API_SERVER;
use super::units;
use crate::failure::{Failure, OrFailure};
use crate::host;
use crate::lease::RESTART;

/// A restarted API server that takes longer gives its turn to the next control plane.
const READY: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);

impl Worker<'_> {
    /// Leads the own API server to the members that etcd has now, one control plane after the other. What it says is
    /// empty when there was nothing to do.
    pub(crate) fn follow_etcd(&mut self) -> Result<String, Failure> {
        self.find_etcd()?;
        let servers = self.findings.etcd.join(",");
        let Some(process) = units::main_process(API_SERVER)? else {
            // It is on its way up or has failed: not a moment to restart it.
            return Ok(String::new());
        };
        if has_argument(process, &format!("--etcd-servers={servers}")) {
            return Ok(String::new());
        }
        let api = self.own_api()?;
        // An API server that has lost all its members has no lease to give, and serves nobody who could be disturbed.
        let lease = match api.ready() {
            Ok(()) => Some(self.turns.take(&api, &RESTART, &self.machine.name)?),
            Err(_) => None,
        };
        self.configure_control_plane()?;
        let words = ["restart", API_SERVER].map(str::to_owned);
        host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
        self.await_restarted()?;
        if let Some(lease) = lease {
            lease.give_back(&api);
        }
        // The documents of the cluster name the members too.
        self.apply_objects()?;
        Ok(format!(
            "etcd has other members: the API server now uses {servers}"
        ))
    }

    pub(super) fn await_restarted(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            match self.await_api_server() {
                Err(_) if begin.elapsed() < READY => thread::sleep(PAUSE),
                other => return other,
            }
        }
    }
}

/// Whether a process was started with `argument`. One that has ended meanwhile wasn't.
fn has_argument(process: u32, argument: &str) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|word| word == argument.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_found_whole_or_not_at_all() {
        let own = std::process::id();
        let first = std::env::args().next().unwrap();
        assert!(has_argument(own, &first));
        assert!(!has_argument(own, &first[1..]));
        assert!(!has_argument(u32::MAX, &first));
    }
}
