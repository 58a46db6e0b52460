//! Locks between processes: `flock` on a file, so the kernel frees them when their holder dies.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::obstacle;

/// Held until dropped. The file goes with it, so that the folder of locks stays empty.
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`; calls `waiting` once when somebody else holds it.
    pub(crate) fn take(path: &Path, mut waiting: impl FnMut()) -> io::Result<Self> {
        let mut said = false;
        loop {
            let file = obstacle::open_file(path, OFlags::WRONLY | OFlags::CREATE)?;
            if !try_lock(&file)? {
                if !said {
                    waiting();
                    said = true;
                }
                retry(|| flock(&file, FlockOperation::LockExclusive))?;
            }
            // The former holder removed the file while we waited on it: ours would guard nothing.
            if names(path, &file)? {
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked here, so nobody can hold a newer file of that name. What stays does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// Locks `file` unless another open file description has it.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match retry(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `path` still names the open `file`.
pub(super) fn names(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(there.dev() == ours.dev() && there.ino() == ours.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `call`, again for as long as a signal interrupts it.
pub(super) fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
