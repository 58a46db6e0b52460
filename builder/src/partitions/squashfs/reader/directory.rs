//! Listings (`struct squashfs_dir_header`, `squashfs_dir_entry`) and the walk through all of them.

use std::collections::BTreeSet;
use std::io::{Read, Seek};

use anyhow::{Context, Result, ensure};

use super::inode::Inode;
use super::{Metadata, Node, Reader};
use crate::partitions::squashfs::format::{Fields, HEADER_ENTRIES_MAX, NAME_MAX, Reference};
use crate::tree::TreePath;

/// Most entries of an image; a root filesystem has some ten thousand.
const ENTRIES_MAX: usize = 1 << 20;
/// Most folders within folders.
const DEPTH_MAX: usize = 256;

/// One entry of a listing.
pub(super) struct Child {
    pub(super) name: Vec<u8>,
    place: Reference,
    number: u32,
    basic_type: u16,
}

impl<R: Read + Seek> Reader<R> {
    /// The listing of `directory`, in its strictly ascending order; nothing for other inodes.
    pub(super) fn children(&self, directory: &Inode) -> Result<Vec<Child>> {
        let Some((place, size)) = directory.listing else {
            return Ok(Vec::new());
        };
        let mut cursor = self.source.cursor(self.superblock.directory_table, place)?;
        let mut children: Vec<Child> = Vec::new();
        let mut rest = size as usize;
        while rest > 0 {
            let header = cursor.take(12)?;
            let mut header = Fields::new(&header);
            let count = header.u32()? as usize;
            let (block, base) = (header.u32()?, header.u32()?);
            ensure!(
                count < HEADER_ENTRIES_MAX,
                "directory header counts {count} entries"
            );
            rest = rest.checked_sub(12).context("listing overruns its size")?;
            for _ in 0..=count {
                let entry = cursor.take(8)?;
                let mut entry = Fields::new(&entry);
                let (offset, delta) = (entry.u16()?, entry.u16()? as i16);
                let (basic_type, length) = (entry.u16()?, usize::from(entry.u16()?) + 1);
                ensure!(length <= NAME_MAX, "name of {length} bytes");
                let name = cursor.take(length)?;
                check_name(&name, children.last())?;
                let place = Reference { block, offset };
                children.push(Child {
                    name,
                    place,
                    number: base.wrapping_add_signed(delta.into()),
                    basic_type,
                });
                ensure!(children.len() <= ENTRIES_MAX, "more than {ENTRIES_MAX} entries");
                rest = rest
                    .checked_sub(8 + length)
                    .context("listing overruns its size")?;
            }
        }
        Ok(children)
    }

    /// The inode of a listing's entry, which must be what the entry says.
    pub(super) fn child_inode(&self, child: &Child) -> Result<Inode> {
        let inode = self.inode(child.place)?;
        ensure!(
            inode.number == child.number && inode.basic_type == child.basic_type,
            "the inode of `{}` is not the one that its folder names",
            child.name.escape_ascii()
        );
        Ok(inode)
    }
}

fn check_name(name: &[u8], before: Option<&Child>) -> Result<()> {
    let shown = name.escape_ascii();
    let bad = name.contains(&b'/') || name.contains(&0) || name == b"." || name == b"..";
    ensure!(!bad, "bad name `{shown}`");
    ensure!(
        before.is_none_or(|before| before.name[..] < *name),
        "name `{shown}` is out of order"
    );
    Ok(())
}

/// Walks an image in the order of [`TreePath`].
pub struct Entries<'a, R> {
    reader: &'a Reader<R>,
    state: State,
    /// Folders under way and what is left of their listings.
    stack: Vec<(TreePath, std::vec::IntoIter<Child>)>,
    /// Inode numbers of folders: each stands in one place, else the walk would not end.
    folders: BTreeSet<u32>,
    count: usize,
}

enum State {
    Fresh,
    Walking,
    Ended,
}

impl<'a, R: Read + Seek> Entries<'a, R> {
    pub(super) fn new(reader: &'a Reader<R>) -> Self {
        Self {
            reader,
            state: State::Fresh,
            stack: Vec::new(),
            folders: BTreeSet::new(),
            count: 0,
        }
    }

    fn advance(&mut self) -> Result<Option<(TreePath, Metadata)>> {
        if matches!(self.state, State::Fresh) {
            self.state = State::Walking;
            let root = Reference::from_u64(self.reader.superblock.root)?;
            let inode = self.reader.inode(root).context("read root inode")?;
            ensure!(
                matches!(inode.metadata.kind, Node::Directory),
                "the root is not a directory"
            );
            return self.enter(TreePath::root(), inode).map(Some);
        }
        while let Some((folder, rest)) = self.stack.last_mut() {
            if let Some(child) = rest.next() {
                let path = folder.join(&child.name);
                let inode = self
                    .reader
                    .child_inode(&child)
                    .with_context(|| format!("read {path}"))?;
                return self.enter(path, inode).map(Some);
            }
            self.stack.pop();
        }
        Ok(None)
    }

    fn enter(&mut self, path: TreePath, inode: Inode) -> Result<(TreePath, Metadata)> {
        self.count += 1;
        ensure!(self.count <= ENTRIES_MAX, "more than {ENTRIES_MAX} entries");
        if inode.listing.is_some() {
            ensure!(
                self.folders.insert(inode.number),
                "{path}: this folder stands in two places"
            );
            ensure!(
                self.stack.len() < DEPTH_MAX,
                "{path}: more than {DEPTH_MAX} folders within folders"
            );
            let children = self
                .reader
                .children(&inode)
                .with_context(|| format!("list {path}"))?;
            self.stack.push((path.clone(), children.into_iter()));
        }
        Ok((path, inode.metadata))
    }
}

impl<R: Read + Seek> Iterator for Entries<'_, R> {
    type Item = Result<(TreePath, Metadata)>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.state, State::Ended) {
            return None;
        }
        let next = self.advance().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.state = State::Ended;
        }
        next
    }
}
