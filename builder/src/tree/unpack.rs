//! Unpacks many .debs into one folder on several threads. Who owns a path is decided by the packages' `Replaces`
//! fields, never by which thread came first, so the result depends on the packages only.
//!
//! The folder is private to this process. Every path is claimed in a table before anything is written, and the table
//! knows what stands at each parent: nothing is ever written through a link, except that `bin`, `sbin`, `lib` and
//! `lib64` mean the folders below `/usr` (merged /usr).

mod ground;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use super::deb::Deb;
use super::dpkg::Package;
use super::value::{Tree, TreePath};
use crate::digest::Digest;
use crate::progress::Task;
use ground::Ground;
use worker::Worker;

/// The folders that merged /usr replaces by links.
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// What unpacking left behind.
pub struct Unpacked {
    /// Where each path came from: packages' paths only.
    pub origins: BTreeMap<TreePath, Origin>,
    /// Per package, in the order given: the paths it ships as written in its archive, folders too (dpkg's `.list`),
    /// without those that another package replaces.
    pub lists: Vec<Vec<TreePath>>,
    /// Per package: MD5 of each shipped configuration file.
    pub conffiles: Vec<BTreeMap<TreePath, String>>,
    /// Paths that one of these packages takes over from a package of the tree below.
    pub taken: BTreeSet<TreePath>,
}

/// A path as its package shipped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Owner id and name in the archive.
    pub user: (u32, Vec<u8>),
    /// Group id and name in the archive.
    pub group: (u32, Vec<u8>),
    /// For a regular file: its size, digest and how to tell that it is still the same.
    pub file: Option<(u64, Digest)>,
    /// The inode as it was after writing.
    pub stamp: Stamp,
}

/// Tells whether an inode is the same and unchanged: no program can set the change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// Change time: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an inode.
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// How to unpack.
pub struct Options<'a> {
    /// The tree that the folder is a delta of (an overlay's lower side); the folder is a whole tree without it.
    pub below: Option<Below<'a>>,
    /// Files that are not worth writing because the image leaves them out.
    pub skip: &'a (dyn Fn(&TreePath) -> bool + Sync),
    /// Modification time of every file, seconds since 1970.
    pub mtime: u32,
    /// Threads.
    pub jobs: usize,
}

/// The finished tree that packages are added to.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Its packages.
    pub packages: &'a [Package],
    /// Which package owns a path.
    pub owners: &'a BTreeMap<TreePath, usize>,
}

/// Unpacks `debs` (with their `packages`, in the same order) into `root`, an empty private folder.
pub fn unpack(
    root: &Path,
    debs: &[Deb],
    packages: &[Package],
    options: &Options<'_>,
    task: &Task,
) -> Result<Unpacked> {
    let ground = Ground::prepare(root, packages, options)?;
    // The largest first: the end of the work is then made of small pieces that share out evenly.
    let mut order: Vec<usize> = (0..debs.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(debs[*index].size()), *index));
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Outcome>>>> = debs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, debs.len().max(1)) {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = &packages[index].name;
                    let outcome = Worker::new(&ground, index)
                        .run(&debs[index])
                        .with_context(|| format!("unpack {name}"));
                    if outcome.is_err() {
                        next.store(debs.len(), Ordering::Relaxed);
                    }
                    *lock(&results[index]) = Some(outcome);
                    task.advance(1);
                }
            });
        }
    });
    let results = results
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    let results: Vec<Option<Result<Outcome>>> = results.collect();
    let mut outcomes = Vec::new();
    let mut unfinished = false;
    for result in results {
        match result {
            Some(outcome) => outcomes.push(outcome?),
            None => unfinished = true,
        }
    }
    if unfinished {
        bail!("unpacking stopped early");
    }
    ground.finish(outcomes)
}

/// The path's place in a merged-/usr tree.
pub fn merged(path: &TreePath) -> TreePath {
    let parts = path.parts();
    match parts.first() {
        Some(first) if MERGED.iter().any(|name| name.as_bytes() == first.as_slice()) => parts
            .iter()
            .fold(TreePath::root().join(b"usr"), |path, part| path.join(part)),
        _ => path.clone(),
    }
}

/// What one package left: joined with the others' afterwards.
#[derive(Default)]
struct Outcome {
    list: Vec<TreePath>,
    origins: Vec<(TreePath, Origin)>,
    conffiles: BTreeMap<TreePath, String>,
    /// Files that won a conflict: written beside, renamed when all is written.
    late: Vec<(TreePath, PathBuf)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
