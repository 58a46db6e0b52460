//! Processes around a test: children that never outlive it, and those of others, watched by handles that no other process
//! can take over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};

/// Starts a child that the kernel kills when this process ends, even by `SIGKILL` (`PR_SET_PDEATHSIG`, prctl(2)). The
/// signal comes with the end of the thread that starts a child; so that a test may end threads of its own, one thread
/// that never ends starts them all.
///
/// # Errors
/// As of [`Command::spawn`].
pub fn start_for_good(mut command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                // Who asked may have gone.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    #[expect(
        unsafe_code,
        reason = "the signal is a property of the child, set between fork and exec"
    )]
    // SAFETY: one system call, which neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let (answer, answered) = mpsc::channel();
    let ended = || io::Error::other("the thread that starts children has ended");
    STARTER.send((command, answer)).map_err(|_| ended())?;
    answered.recv().map_err(|_| ended())?
}

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
