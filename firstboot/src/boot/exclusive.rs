//! One walk through the plan at a time on this machine: first boot's, or the agent's when a worker joins anew.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use kimage_roles::cause::Cause;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::failure::{Failure, OrFailure};
use crate::host::Host;

const PATH: &str = "/run/kimage/walk.lock";

/// Whoever has it walks. It ends with the process at the latest.
#[derive(Debug)]
pub(crate) struct Exclusive {
    _file: File,
}

impl Exclusive {
    /// Waits for its turn.
    pub(crate) fn wait(host: &Host) -> Result<Self, Failure> {
        let file = open(host)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                done => {
                    done.or_failure(Cause::Internal)?;
                    return Ok(Self { _file: file });
                }
            }
        }
    }

    /// Its turn, unless somebody walks.
    pub(crate) fn try_now(host: &Host) -> Result<Option<Self>, Failure> {
        let file = open(host)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            done => {
                done.or_failure(Cause::Internal)?;
                Ok(Some(Self { _file: file }))
            }
        }
    }
}

fn open(host: &Host) -> Result<File, Failure> {
    let path = host.path(PATH);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).or_failure(Cause::Internal)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.open(path).or_failure(Cause::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_do_not_walk_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let first = Exclusive::wait(&host).unwrap();
        assert!(Exclusive::try_now(&host).unwrap().is_none());
        drop(first);
        assert!(Exclusive::try_now(&host).unwrap().is_some());
    }
}
