//! Processes by number and start time: a number alone may by now be a stranger's.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::private;

/// Between two looks at a process that is about to end.
const POLL: Duration = Duration::from_millis(20);

/// One process, unlike all others of this host, also after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    pid: i32,
    /// Clock ticks after the host's start (proc_pid_stat(5), field 22).
    started: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

impl Identity {
    /// The process `pid`; `None` when it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let (state, started) = parse(&stat)?;
        // A dead child that nobody has waited for still has a number.
        let lives = !matches!(state, 'Z' | 'X');
        lives.then(|| Self {
            pid,
            started,
            boot: boot.trim().to_owned(),
        })
    }

    /// Reads what [`Self::write`] wrote; anything else is no process.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes it to `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(self).context("write a process's identity")?;
        private::write(path, &json, true)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::of).as_ref() == Some(self)
    }

    /// Kills it and waits for its end. Nothing else is ever killed: the process is held before it is looked at.
    pub fn end(&self, patience: Duration) -> Result<()> {
        let context = || format!("end process {}", self.pid);
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 1) else {
            return Ok(());
        };
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(io::Error::from(error)).with_context(context),
        };
        if !self.is_running() {
            return Ok(());
        }
        match pidfd_send_signal(&held, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(io::Error::from(error)).with_context(context),
        }
        self.wait(patience)
    }

    /// Waits for its end.
    pub fn wait(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while self.is_running() {
            if Instant::now() > end {
                bail!("process {} does not end", self.pid);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// State and start time in `/proc/PID/stat`. The second field is a name in brackets that may hold anything.
fn parse(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Tool;

    #[test]
    fn a_name_with_brackets_hides_nothing() {
        let stat = "7 (a) Z (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse(stat), Some(('S', 4711)));
        assert_eq!(parse("7 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn only_the_process_that_was_meant_is_killed() {
        let mut child = Tool::new("/bin/sleep").arg("600").into_command().spawn().unwrap();
        let meant = Identity::of(child.id()).unwrap();
        for stranger in [
            Identity {
                started: meant.started + 1,
                ..meant.clone()
            },
            Identity {
                boot: "another".to_owned(),
                ..meant.clone()
            },
        ] {
            assert!(!stranger.is_running());
            stranger.end(Duration::from_secs(1)).unwrap();
        }
        assert!(meant.is_running());
        meant.end(Duration::from_secs(10)).unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(9)
        );
        assert!(!meant.is_running());
        meant.end(Duration::from_secs(1)).unwrap();
    }
}
