//! Processes that are not children of the test, watched by handles that no other process can take over.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process of somebody else.
pub struct Watched(OwnedFd);

impl Watched {
    /// The process with this id, which must run.
    pub fn new(id: u32) -> Result<Self> {
        let pid = i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        let handle = pidfd_open(pid, PidfdFlags::empty());
        handle.map(Self).with_context(|| format!("watch process {id}"))
    }

    /// The processes that the first thread of process `id` has started (proc_pid_task(5)).
    pub fn children_of(id: u32) -> Result<Vec<Self>> {
        let path = format!("/proc/{id}/task/{id}/children");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let ids = text.split_ascii_whitespace().map(|id| Self::new(id.parse()?));
        ids.collect()
    }

    /// Waits until it has ended.
    pub fn wait_for_end(&self, deadline: Duration) -> Result<()> {
        let mut handles = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec::try_from(deadline).context("deadline")?;
        let ready = poll(&mut handles, Some(&limit)).context("wait for a process")?;
        ensure!(ready == 1, "the process still runs after {deadline:?}");
        Ok(())
    }
}
