//! The scratch folder of one process. The process holds a lock on the folder itself, so others can tell whether it
//! still lives.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::remove_tree;
use super::lock;
use crate::obstacle;

/// This process's folder below `scratch/`.
pub(super) struct Run {
    folder: PathBuf,
    lock: Option<File>,
}

impl Run {
    /// Makes and locks a new folder below `scratch`.
    pub(super) fn start(scratch: &Path) -> io::Result<Self> {
        loop {
            let folder = tempfile::Builder::new()
                .prefix("run-")
                .tempdir_in(scratch)?
                .keep();
            let lock = match File::open(&folder) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // A collector may have found the folder before we had locked it.
            if lock::try_lock(&lock)? && lock::names(&folder, &lock)? {
                return Ok(Self {
                    folder,
                    lock: Some(lock),
                });
            }
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if fs::remove_dir(&self.folder).is_err() {
            // Somebody still uses a scratch folder in it: stay locked until the process ends.
            std::mem::forget(self.lock.take());
        }
    }
}

/// Removes the folders of dead processes; returns those that could not be removed.
pub(super) fn collect(scratch: &Path) -> io::Result<Vec<PathBuf>> {
    let mut stuck = Vec::new();
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        // Gone or not readable: another collector's, or not ours.
        let Ok(folder) = obstacle::open_folder(&path) else {
            continue;
        };
        if lock::try_lock(&folder)? && lock::names(&path, &folder)? && remove_tree(&path).is_err() {
            stuck.push(path);
        }
    }
    stuck.sort();
    Ok(stuck)
}
