//! The root filesystem as a value: a sorted map from path to entry, with owners, modes and content digests, that
//! needs no root privilege to hold and gives the same bytes on every machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::digest::Digest;

/// A path inside the image: relative, `/`-separated, no `.`/`..`/empty parts, no NUL. The root itself is empty.
/// Sorts so that a folder comes right before its content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TreePath(Vec<Vec<u8>>);

impl TreePath {
    /// The root folder.
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses `usr/bin/env`, `/usr/bin/env` or `./usr/bin/env`; refuses `..` and NUL.
    pub fn parse(path: &[u8]) -> Result<Self> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let mut parts = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => bail!("path `{}` climbs out of the tree", shown()),
                _ if part.contains(&0) => bail!("path `{}` holds a NUL byte", shown()),
                _ if part.len() > 255 => bail!("path `{}` has a part longer than 255 bytes", shown()),
                _ => parts.push(part.to_vec()),
            }
        }
        Ok(Self(parts))
    }

    /// The parts from the top.
    pub fn parts(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The folder that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, parents) = self.0.split_last()?;
        Some(Self(parents.to_vec()))
    }

    /// The last part; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.0.last().map(Vec::as_slice)
    }

    /// This path and one more part, which must not hold `/`.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut parts = self.0.clone();
        parts.push(name.to_vec());
        Self(parts)
    }

    /// Whether `other` is this path or lies below it.
    pub fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// `usr/bin/env`, without a leading slash.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }

    /// The same below `folder` of the host.
    pub fn under(&self, folder: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.0.iter().fold(folder.to_owned(), |path, part| {
            path.join(std::ffi::OsStr::from_bytes(part))
        })
    }
}

impl std::fmt::Display for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.to_bytes()))
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory: small generated files.
    Bytes(Arc<[u8]>),
    /// In a file of the host that does not change while the tree lives.
    File(PathBuf),
}

/// What stands at a path.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Its bytes.
        content: Content,
        /// Their number.
        size: u64,
        /// Their digest.
        digest: Digest,
    },
    /// A symbolic link to a target as written.
    Symlink(Vec<u8>),
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One path's owner, permissions and kind.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Permission bits, `0o7777` at most.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it is.
    pub kind: Kind,
}

/// A root filesystem: every entry's parent is a directory in the same tree.
#[derive(Debug, Clone)]
pub struct Tree {
    entries: BTreeMap<TreePath, Entry>,
    /// The one modification time of all entries, seconds since 1970.
    mtime: u32,
}

impl Tree {
    /// A tree that holds the root folder only. All entries carry `mtime` (seconds since 1970).
    pub fn new(mtime: u32) -> Self {
        let root = Entry {
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            kind: Kind::Directory,
        };
        Self {
            entries: BTreeMap::from([(TreePath::root(), root)]),
            mtime,
        }
    }

    /// Seconds since 1970, the same for all entries.
    pub fn mtime(&self) -> u32 {
        self.mtime
    }

    /// All entries, parents before children, sorted by path parts.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&TreePath, &Entry)> {
        self.entries.iter()
    }

    /// The entry at `path`, without following links.
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Puts `entry` at `path`, replacing what was there. The parent must be a directory; a directory with content
    /// can only be replaced by a directory.
    pub fn insert(&mut self, path: TreePath, entry: Entry) -> Result<()> {
        if let Some(parent) = path.parent() {
            match self.entries.get(&parent) {
                Some(Entry {
                    kind: Kind::Directory,
                    ..
                }) => {}
                Some(_) => bail!("{path}: {parent} is not a directory"),
                None => bail!("{path}: {parent} is absent"),
            }
        }
        if !matches!(entry.kind, Kind::Directory) && (path.parts().is_empty() || self.has_children(&path)) {
            bail!("{path}: a directory with content can't become something else");
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// Removes `path` and all below it; says whether it was there. The root can't be removed.
    pub fn remove(&mut self, path: &TreePath) -> bool {
        if path.parts().is_empty() {
            return false;
        }
        let doomed: Vec<_> = self.subtree(path).map(|(path, _)| path.clone()).collect();
        for path in &doomed {
            self.entries.remove(path);
        }
        !doomed.is_empty()
    }

    /// `path` and everything below it.
    pub fn subtree<'a>(&'a self, path: &'a TreePath) -> impl Iterator<Item = (&'a TreePath, &'a Entry)> {
        self.entries
            .range(path..)
            .take_while(move |(other, _)| path.holds(other))
    }

    fn has_children(&self, path: &TreePath) -> bool {
        self.subtree(path).nth(1).is_some()
    }
}

impl Entry {
    /// A directory of root's.
    pub fn directory(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            kind: Kind::Directory,
        }
    }

    /// A file of root's with `bytes` as content.
    pub fn bytes(mode: u16, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let (size, digest) = (bytes.len() as u64, Digest::of(&bytes));
        Self::file(mode, Content::Bytes(bytes), size, digest)
    }

    /// A file of root's whose `content` has `size` bytes with this `digest`.
    pub fn file(mode: u16, content: Content, size: u64, digest: Digest) -> Self {
        let kind = Kind::File {
            content,
            size,
            digest,
        };
        Self {
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            kind,
        }
    }

    /// A regular file's bytes.
    ///
    /// # Errors
    /// When it is something else, or its content on the host can't be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        match &self.kind {
            Kind::File {
                content: Content::Bytes(bytes),
                ..
            } => Ok(bytes.to_vec()),
            Kind::File {
                content: Content::File(path),
                ..
            } => std::fs::read(path).with_context(|| format!("read {}", path.display())),
            _ => bail!("not a regular file"),
        }
    }

    /// A symbolic link of root's.
    pub fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self {
            mode: 0o777,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            kind: Kind::Symlink(target.into()),
        }
    }
}
