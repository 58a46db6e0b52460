//! The processes below PID 1: notices their end, reaps them, and ends what is left over.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use super::request::Ending;

/// A descriptor that is readable when a child has ended. From now on SIGCHLD is blocked in this process.
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "signalfd has no wrapper")]
    // SAFETY: the set is initialised by sigemptyset before use; this process has one thread.
    let fd = unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        let set = set.assume_init();
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "a raw descriptor gets its owner")]
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forgets the signals that have come: what ended is asked of the kernel.
pub(super) fn drain(signals: &OwnedFd) {
    let mut buffer = [0u8; 1024];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|count| count > 0) {}
}

/// Reaps everything that has ended; the ending of `command` if it was among that.
pub(super) fn reap(command: Pid) -> io::Result<Option<Ending>> {
    let mut ending = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == command => {
                ending = match (status.exit_status(), status.terminating_signal()) {
                    (Some(status), _) => Some(Ending::Exited(status)),
                    (None, Some(signal)) => Some(Ending::Killed(signal)),
                    (None, None) => ending,
                };
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(ending),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends what the command left running, so that the root doesn't change any more.
pub(super) fn kill_the_rest() -> io::Result<()> {
    #[expect(unsafe_code, reason = "kill with process id -1 has no wrapper")]
    // SAFETY: touches no memory; in this PID namespace -1 means its processes other than this one.
    unsafe {
        libc::kill(-1, libc::SIGKILL)
    };
    loop {
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
