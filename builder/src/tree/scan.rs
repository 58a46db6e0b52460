//! Reads a configured build root back as entries.

use std::collections::BTreeMap;
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::index::Entries;
use super::sandbox::{Device, Owners};
use super::unpack::{Origin, Stamp};
use super::value::{Content, Entry, Kind, TreePath};
use crate::digest::Digest;

/// Folders that other filesystems are mounted on: their content is never part of an image.
pub const MOUNT_POINTS: [(&str, u16); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// What is known about a build root besides what its inodes say.
pub struct Knowledge<'a> {
    /// The packages' files: one that is unchanged needs no hashing.
    pub origins: &'a BTreeMap<TreePath, Origin>,
    /// Who owns what, where it isn't root.
    pub owners: &'a Owners,
}

/// All entries of the build root `root`. Files that this user can't read are made readable on disk; the entry keeps
/// their mode.
pub fn scan(root: &Path, knowledge: &Knowledge<'_>) -> Result<Entries> {
    let mut entries = Entries::from([(TreePath::root(), Some(Entry::directory(0o755)))]);
    let mut pending = vec![TreePath::root()];
    while let Some(folder) = pending.pop() {
        for child in fs::read_dir(folder.under(root)).with_context(|| format!("list {folder}"))? {
            let child = child?;
            let path = folder.join(&child.file_name().into_vec());
            let mount_point = MOUNT_POINTS
                .iter()
                .find(|(name, _)| path.parts() == [name.as_bytes()]);
            let entry = match mount_point {
                Some((_, mode)) => Entry::directory(*mode),
                None => {
                    entry(root, &path, &child.metadata()?, knowledge).with_context(|| path.to_string())?
                }
            };
            if matches!(entry.kind, Kind::Directory) && mount_point.is_none() {
                open_up(&path.under(root), entry.mode, 0o700)?;
                pending.push(path.clone());
            }
            entries.insert(path, Some(entry));
        }
    }
    Ok(entries)
}

/// The entry of one path of a build root.
pub fn entry(root: &Path, path: &TreePath, metadata: &Metadata, knowledge: &Knowledge<'_>) -> Result<Entry> {
    let place = path.under(root);
    let mode = (metadata.mode() & 0o7777) as u16;
    let owner = knowledge.owners.get(path).cloned().unwrap_or_default();
    let kind = metadata.file_type();
    let kind = if let Some(Device { block, major, minor }) = owner.device {
        if block {
            bail!("a block device can't be part of an image");
        }
        Kind::CharacterDevice { major, minor }
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(&place)?.into_os_string().into_vec())
    } else if kind.is_file() {
        open_up(&place, mode, 0o400)?;
        let known = knowledge
            .origins
            .get(path)
            .filter(|origin| origin.stamp == Stamp::of(metadata));
        let (size, digest) = match known.and_then(|origin| origin.file) {
            Some(known) => known,
            None => Digest::of_file(&place).map(|(digest, size)| (size, digest))?,
        };
        Kind::File {
            content: Content::File(place),
            size,
            digest,
        }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        bail!("neither a file, a folder, a link nor a pipe");
    };
    let mode = if matches!(kind, Kind::Symlink(_)) {
        0o777
    } else {
        mode
    };
    let xattrs = owner
        .capability
        .map(|value| (b"security.capability".to_vec(), value))
        .into_iter()
        .collect();
    Ok(Entry {
        mode,
        uid: owner.uid,
        gid: owner.gid,
        xattrs,
        kind,
    })
}

/// Gives the owner of `place` the permissions `needed`, so that later stages can read it.
fn open_up(place: &Path, mode: u16, needed: u16) -> io::Result<()> {
    if mode & needed == needed {
        return Ok(());
    }
    fs::set_permissions(place, Permissions::from_mode(u32::from(mode | needed)))
}
