//! What differs between two releases: versions from their bills of materials, files from their root filesystems.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::contents::{self, Materials};
use super::manifest::Manifest;
use crate::archive::version;
use crate::partitions::squashfs::{Metadata, Node, Reader};
use crate::tree::TreePath;

/// How something moved from the old release to the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Move {
    /// Only the new one has it.
    Added,
    /// Only the old one has it.
    Removed,
    /// To a higher Debian version.
    Upgraded,
    /// To a lower Debian version.
    Downgraded,
    /// Both have it and it differs.
    Changed,
}

/// A thing with a version or value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is.
    pub name: String,
    /// How it moved.
    pub change: Move,
    /// Its old value.
    pub old: Option<String>,
    /// Its new value.
    pub new: Option<String>,
}

/// A path of the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute path.
    pub path: String,
    /// How it moved.
    pub change: Move,
    /// What of a changed one differs: type, content, mode, owner, link target, device, attributes, time.
    pub differs: Vec<&'static str>,
}

/// Everything that differs, each list sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Image, role, kernel, command line without the root hash, root hash, Authenticode digest, keys, formats.
    pub image: Vec<Change>,
    /// Components.
    pub components: Vec<Change>,
    /// Debian packages.
    pub packages: Vec<Change>,
    /// Go modules linked into the components.
    pub go_modules: Vec<Change>,
    /// Files of the root filesystem.
    pub files: Vec<FileChange>,
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One of the two releases.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Its manifest.
    pub manifest: &'a Manifest,
}

/// Compares two releases. Their files need `disk.raw` in both folders, unless their root hashes are equal.
pub fn between(old: Side<'_>, new: Side<'_>) -> Result<Difference> {
    let (before, after) = (Materials::read(old.folder)?, Materials::read(new.folder)?);
    let components = |materials: &Materials| materials.components.clone();
    let modules =
        |materials: &Materials| joined(materials.go_modules.iter().map(|(path, version)| (path, version)));
    let packages = |materials: &Materials| {
        let all = materials.packages.iter();
        joined(all.flat_map(|(name, versions)| versions.iter().map(move |(version, _)| (name, version))))
    };
    let mut difference = Difference {
        image: changes(&image(old.manifest), &image(new.manifest)),
        components: changes(&components(&before), &components(&after)),
        packages: changes(&packages(&before), &packages(&after)),
        go_modules: changes(&modules(&before), &modules(&after)),
        files: Vec::new(),
    };
    for change in &mut difference.packages {
        if let (Some(old), Some(new)) = (&change.old, &change.new) {
            let rises = version::compare(old, new).is_lt();
            change.change = if rises { Move::Upgraded } else { Move::Downgraded };
        }
    }
    if old.manifest.root.hash != new.manifest.root.hash {
        let times = old.manifest.epoch == new.manifest.epoch;
        let (before, after) = (
            contents::root(old.folder, old.manifest)?,
            contents::root(new.folder, new.manifest)?,
        );
        difference.files = files(&before, &after, times)?;
    }
    Ok(difference)
}

fn image(manifest: &Manifest) -> BTreeMap<String, String> {
    let words = manifest
        .kernel
        .command_line
        .split(' ')
        .filter(|word| !word.starts_with("roothash="));
    let values = [
        ("image", manifest.image.clone()),
        ("role", manifest.role.clone()),
        ("version", manifest.version.clone()),
        ("kimage", manifest.kimage.clone()),
        ("lock", manifest.lock.to_string()),
        ("kernel", manifest.kernel.version.clone()),
        ("command line", words.collect::<Vec<_>>().join(" ")),
        ("root hash", manifest.root.hash.to_string()),
        ("root size", manifest.root.size.to_string()),
        ("authenticode digest", manifest.kernel.authenticode.to_string()),
        ("release key", manifest.keys.release.to_string()),
        ("db certificate", manifest.keys.database.to_string()),
        ("debug", manifest.debug.join(" ")),
    ];
    values
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Names with all their versions.
fn joined<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> BTreeMap<String, String> {
    let mut versions: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, version) in pairs {
        versions.entry(name.clone()).or_default().insert(version);
    }
    let join = |versions: BTreeSet<&str>| versions.into_iter().collect::<Vec<_>>().join(", ");
    versions
        .into_iter()
        .map(|(name, versions)| (name, join(versions)))
        .collect()
}

fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let moved = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let change = |name: &String| {
        let (old, new) = (old.get(name).cloned(), new.get(name).cloned());
        let change = match (&old, &new) {
            (None, _) => Move::Added,
            (_, None) => Move::Removed,
            _ => Move::Changed,
        };
        Change {
            name: name.clone(),
            change,
            old,
            new,
        }
    };
    moved.map(change).collect()
}

/// Compares two root filesystems path by path; `times` says whether modification times count.
pub fn files(old: &Reader<File>, new: &Reader<File>, times: bool) -> Result<Vec<FileChange>> {
    let (mut before, mut after) = (old.entries().peekable(), new.entries().peekable());
    let mut changes = Vec::new();
    let whole = |path: &TreePath, change| FileChange {
        path: path.to_string(),
        change,
        differs: Vec::new(),
    };
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return Ok(changes),
            (Some(Ok((one, _))), Some(Ok((other, _)))) => one.cmp(other),
            (Some(_), None) | (Some(Err(_)), _) => std::cmp::Ordering::Less,
            (None, Some(_)) | (_, Some(Err(_))) => std::cmp::Ordering::Greater,
        };
        let one = if order.is_le() {
            before.next().transpose().context("old root filesystem")?
        } else {
            None
        };
        let other = if order.is_ge() {
            after.next().transpose().context("new root filesystem")?
        } else {
            None
        };
        match (one, other) {
            (Some((path, _)), None) => changes.push(whole(&path, Move::Removed)),
            (None, Some((path, _))) => changes.push(whole(&path, Move::Added)),
            (Some((path, one)), Some((_, other))) => {
                let differs =
                    differs((old, &one), (new, &other), times).with_context(|| format!("compare {path}"))?;
                if !differs.is_empty() {
                    changes.push(FileChange {
                        path: path.to_string(),
                        change: Move::Changed,
                        differs,
                    });
                }
            }
            (None, None) => {}
        }
    }
}

fn differs(
    (old, one): (&Reader<File>, &Metadata),
    (new, other): (&Reader<File>, &Metadata),
    times: bool,
) -> Result<Vec<&'static str>> {
    let kind = match (&one.kind, &other.kind) {
        (Node::File(a), Node::File(b)) => {
            let equal = a.size() == b.size() && same_bytes(old.file(a)?, new.file(b)?)?;
            (!equal).then_some("content")
        }
        (Node::Symlink(a), Node::Symlink(b)) => (a != b).then_some("link target"),
        (a, b) if std::mem::discriminant(a) != std::mem::discriminant(b) => Some("type"),
        (a, b) => (a != b).then_some("device"),
    };
    let mut differs: Vec<&str> = kind.into_iter().collect();
    for (what, differ) in [
        ("mode", one.mode != other.mode),
        ("owner", (one.uid, one.gid) != (other.uid, other.gid)),
        ("attributes", one.xattrs != other.xattrs),
        ("time", times && one.mtime != other.mtime),
    ] {
        if differ {
            differs.push(what);
        }
    }
    Ok(differs)
}

/// Whether two streams of equal length hold the same bytes.
fn same_bytes(mut one: impl Read, mut other: impl Read) -> Result<bool> {
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_move_up_down_in_and_out() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let changes = changes(
            &map(&[("a", "1"), ("b", "1"), ("c", "1")]),
            &map(&[("a", "1"), ("b", "2"), ("d", "1")]),
        );
        let moves: Vec<_> = changes
            .iter()
            .map(|change| (change.name.as_str(), change.change))
            .collect();
        assert_eq!(
            moves,
            [("b", Move::Changed), ("c", Move::Removed), ("d", Move::Added)]
        );
    }

    #[test]
    fn streams_are_compared_to_their_end() {
        let (one, mut other) = (vec![7; 200_000], vec![7; 200_000]);
        assert!(same_bytes(&one[..], &other[..]).unwrap());
        other[199_999] = 8;
        assert!(!same_bytes(&one[..], &other[..]).unwrap());
    }
}
