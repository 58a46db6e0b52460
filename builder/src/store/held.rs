//! Artifacts in use. Whoever reads one holds a shared lock on its folder; whoever wants another in its place takes the
//! exclusive one, and lets it be where that is not to be had.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::files::remove_tree;
use super::lock;
use crate::obstacle;

/// A finished artifact whose files stay while this lives.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _shared: File,
    /// What goes with this: the folder around an artifact that only this process has.
    _own: Option<Removal>,
    /// What this took the place of.
    _replaced: Option<Removal>,
}

impl Held {
    /// Holds the artifact at `path`; `None` when somebody has just removed it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let folder = match obstacle::open_folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            folder => folder?,
        };
        // The exclusive lock is only ever held for the time of two renames.
        lock::retry(|| flock(&folder, FlockOperation::LockShared))?;
        Ok(lock::names(path, &folder)?.then(|| Self {
            path: path.to_owned(),
            _shared: folder,
            _own: None,
            _replaced: None,
        }))
    }

    /// The same, with a scratch folder that is removed once this is dropped.
    pub(super) fn with(self, scratch: TempDir) -> Self {
        let own = Some(Removal::Later(scratch));
        Self { _own: own, ..self }
    }

    /// The same, removing a scratch folder beside whatever else goes on.
    pub(super) fn removing(self, scratch: TempDir) -> Self {
        let replaced = Some(Removal::begin(scratch));
        Self {
            _replaced: replaced,
            ..self
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A scratch folder on its way out. What can't be removed goes with the scratch folder of this process.
#[derive(Debug)]
enum Removal {
    Later(TempDir),
    UnderWay(Option<JoinHandle<()>>),
}

impl Removal {
    /// Removing the thousands of files of a tree takes a slow disk half a minute, in which others can work.
    fn begin(scratch: TempDir) -> Self {
        let path = scratch.path().to_owned();
        let work = move || {
            let _ = remove_tree(scratch.path());
        };
        match thread::Builder::new().name("remove".into()).spawn(work) {
            Ok(thread) => Self::UnderWay(Some(thread)),
            Err(_) => {
                let _ = remove_tree(&path);
                Self::UnderWay(None)
            }
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        match self {
            Self::Later(scratch) => drop(remove_tree(scratch.path())),
            Self::UnderWay(thread) => drop(thread.take().map(JoinHandle::join)),
        }
    }
}
