//! The upper directory of an overlay, read as a list of changes against the directories below it
//! (`Documentation/filesystems/overlayfs.rst`: whiteouts and opaque directories).

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::OVERLAY_XATTR_PREFIX;
use crate::tree::TreePath;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It and everything below it is gone.
    Removed,
    /// It is new; read it from the upper directory.
    Added,
    /// It was there and may differ in bytes, mode, owner or attributes; read it from the upper directory. What is
    /// below a directory stays, unless it is listed too.
    Changed,
}

/// The changes that `upper` holds against `lower` (topmost first), sorted by path, to be applied in this order. A
/// path that became another kind of thing is first removed, then added.
pub fn delta(upper: &Path, lower: &[PathBuf]) -> Result<Vec<(TreePath, Change)>> {
    let mut changes = Vec::new();
    let mut folders = vec![TreePath::root()];
    while let Some(folder) = folders.pop() {
        let here = folder.under(upper);
        let hides = marked(&here, "opaque").with_context(|| format!("read {}", here.display()))?;
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&here).with_context(|| format!("list {}", here.display()))? {
            let entry = entry.with_context(|| format!("list {}", here.display()))?;
            let path = folder.join(entry.file_name().as_bytes());
            names.insert(entry.file_name().as_bytes().to_vec());
            let read = || -> io::Result<_> {
                let metadata = entry.metadata()?;
                Ok((
                    is_whiteout(&entry.path(), &metadata)?,
                    metadata.is_dir(),
                    below(lower, &path)?,
                ))
            };
            let (whiteout, directory, before) =
                read().with_context(|| format!("read {}", entry.path().display()))?;
            match before {
                None if whiteout => {}
                None => changes.push((path.clone(), Change::Added)),
                Some(_) if whiteout => changes.push((path.clone(), Change::Removed)),
                Some(was_directory) if was_directory == directory => {
                    changes.push((path.clone(), Change::Changed))
                }
                Some(_) => changes.extend([(path.clone(), Change::Removed), (path.clone(), Change::Added)]),
            }
            if directory {
                folders.push(path);
            }
        }
        if hides {
            for name in names_below(lower, &folder).with_context(|| format!("list what {folder} hides"))? {
                let path = folder.join(&name);
                if !names.contains(&name) && below(lower, &path)?.is_some() {
                    changes.push((path, Change::Removed));
                }
            }
        }
    }
    changes.sort();
    Ok(changes)
}

/// Whether `path` is there in the merged `lower` directories, and if so whether as a directory.
fn below(lower: &[PathBuf], path: &TreePath) -> io::Result<Option<bool>> {
    'layers: for layer in lower {
        let mut host = layer.clone();
        let mut hides = false;
        for (index, part) in path.parts().iter().enumerate() {
            host.push(std::ffi::OsStr::from_bytes(part));
            let metadata = match host.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if hides {
                        return Ok(None);
                    }
                    continue 'layers;
                }
                Err(error) => return Err(error),
            };
            if is_whiteout(&host, &metadata)? {
                return Ok(None);
            }
            if index + 1 == path.parts().len() {
                return Ok(Some(metadata.is_dir()));
            }
            if !metadata.is_dir() {
                return Ok(None);
            }
            hides |= marked(&host, "opaque")?;
        }
    }
    Ok(None)
}

/// The names that any of the `lower` directories has at `folder`.
fn names_below(lower: &[PathBuf], folder: &TreePath) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for layer in lower {
        match fs::read_dir(folder.under(layer)) {
            Ok(entries) => {
                for entry in entries {
                    names.insert(entry?.file_name().as_bytes().to_vec());
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

fn is_whiteout(path: &Path, metadata: &Metadata) -> io::Result<bool> {
    Ok(if metadata.file_type().is_char_device() {
        metadata.rdev() == 0
    } else {
        metadata.is_file() && metadata.len() == 0 && has_mark(path, "whiteout")?.is_some()
    })
}

/// Whether overlayfs marked the directory `path` so; `y` is the one value that hides what is below.
fn marked(path: &Path, mark: &str) -> io::Result<bool> {
    Ok(has_mark(path, mark)? == Some(b'y'))
}

/// The first byte of the mark's value (0 for an empty one).
fn has_mark(path: &Path, mark: &str) -> io::Result<Option<u8>> {
    let mut value = [0; 16];
    match rustix::fs::lgetxattr(path, format!("{OVERLAY_XATTR_PREFIX}{mark}"), &mut value) {
        Ok(_) => Ok(Some(value[0])),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
