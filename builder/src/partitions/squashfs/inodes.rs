//! The inode table and the directory table.
//!
//! A directory's listing names its children by where their inodes stand, so children are written first: in reverse
//! of the tree's order. An inode's number is its place in the tree's order, the root's is 1.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::compress::Stored;
use super::format::{
    DIRECTORY_EXTRA, HEADER_ENTRIES_MAX, METADATA_SIZE, NAME_MAX, NONE_U32, Reference, inode_type,
};
use super::layout::Layout;
use super::metadata::MetadataWriter;
use super::xattrs::XattrTable;
use crate::tree::{Entry, Kind, Tree, TreePath};

/// Longest target of a symbolic link: a page less its NUL, as the kernel has it (`PATH_MAX`).
const SYMLINK_MAX: usize = 4095;

/// The finished tables.
pub(super) struct Inodes {
    /// Number of inodes.
    pub(super) count: u32,
    /// The root's place in the inode table.
    pub(super) root: Reference,
    /// Compressed inode table.
    pub(super) inode_table: Vec<u8>,
    /// Compressed directory table.
    pub(super) directory_table: Vec<u8>,
    /// User and group numbers, sorted; inodes name them by index.
    pub(super) ids: Vec<u32>,
    /// Extended attributes of all inodes.
    pub(super) xattrs: XattrTable,
}

/// A child as its directory's listing has it.
struct Child<'a> {
    name: &'a [u8],
    place: Reference,
    number: u32,
    basic_type: u16,
}

/// `struct squashfs_dir_index`: where a listing goes on in another metadata block.
struct IndexRecord<'a> {
    /// Bytes of the listing before the header that begins the block.
    position: u32,
    block: u32,
    /// The first name below that header.
    name: &'a [u8],
}

struct InodeWriter<'a> {
    layout: &'a Layout<'a>,
    stored: &'a [Stored],
    block_size: u32,
    mtime: u32,
    inodes: MetadataWriter,
    directories: MetadataWriter,
    xattrs: XattrTable,
    ids: Vec<u32>,
}

/// Writes the inodes and listings of `tree`, whose content was `stored`.
pub(super) fn write(
    tree: &Tree,
    layout: &Layout<'_>,
    stored: &[Stored],
    block_size: u32,
    level: i32,
) -> Result<Inodes> {
    let count = u32::try_from(tree.entries().len()).context("too many files for squashfs")?;
    let ids: BTreeSet<u32> = tree
        .entries()
        .flat_map(|(_, entry)| [entry.uid, entry.gid])
        .collect();
    ensure!(
        ids.len() <= usize::from(u16::MAX),
        "squashfs has room for 65535 owners, the tree has {}",
        ids.len()
    );
    let mut writer = InodeWriter {
        layout,
        stored,
        block_size,
        mtime: tree.mtime(),
        inodes: MetadataWriter::new(level)?,
        directories: MetadataWriter::new(level)?,
        xattrs: XattrTable::new(level)?,
        ids: ids.into_iter().collect(),
    };
    let entries: Vec<_> = tree.entries().collect();
    let numbers: BTreeMap<&TreePath, u32> = entries
        .iter()
        .zip(1..)
        .map(|((path, _), number)| (*path, number))
        .collect();
    let mut listings: BTreeMap<TreePath, Vec<Child<'_>>> = BTreeMap::new();
    let mut root = Reference::default();
    for (path, entry) in entries.iter().rev() {
        let number = numbers[path];
        let children = listings.remove(*path).unwrap_or_default();
        let parent = path.parent();
        // The root's parent is a number that no inode has, as mksquashfs does it.
        let parent_number = parent.as_ref().map_or(count + 1, |parent| numbers[parent]);
        let inode = Inode {
            entry,
            number,
            parent: parent_number,
            children,
        };
        let place = writer
            .write(inode)
            .with_context(|| format!("put {path} into squashfs"))?;
        match (parent, path.name()) {
            (Some(parent), Some(name)) => {
                let child = Child {
                    name,
                    place,
                    number,
                    basic_type: basic_type(&entry.kind),
                };
                listings.entry(parent).or_default().push(child);
            }
            _ => root = place,
        }
    }
    let (inode_table, _) = writer.inodes.finish()?;
    let (directory_table, _) = writer.directories.finish()?;
    Ok(Inodes {
        count,
        root,
        inode_table,
        directory_table,
        ids: writer.ids,
        xattrs: writer.xattrs,
    })
}

fn basic_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory => inode_type::DIRECTORY,
        Kind::File { .. } => inode_type::FILE,
        Kind::Symlink(_) => inode_type::SYMLINK,
        Kind::CharacterDevice { .. } => inode_type::CHARACTER_DEVICE,
        Kind::Fifo => inode_type::FIFO,
    }
}

/// What one inode is made of.
struct Inode<'a> {
    entry: &'a Entry,
    number: u32,
    parent: u32,
    /// In reverse order of their names.
    children: Vec<Child<'a>>,
}

/// Collects an inode's fields.
#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

impl InodeWriter<'_> {
    fn write(&mut self, inode: Inode<'_>) -> Result<Reference> {
        ensure!(
            inode.entry.mode <= 0o7777,
            "mode {:o} has more than permission bits",
            inode.entry.mode
        );
        let xattr = self.xattrs.number(&inode.entry.xattrs)?;
        let body = match &inode.entry.kind {
            Kind::Directory => self.directory(&inode, xattr)?,
            Kind::File { size, digest, .. } => {
                let place = self.layout.place(digest);
                self.file(*size, place.extent, place.fragment, xattr)?
            }
            Kind::Symlink(target) => symlink(target, xattr)?,
            Kind::CharacterDevice { major, minor } => device(*major, *minor, xattr)?,
            Kind::Fifo => {
                let mut body = Record::default();
                body.u32(1);
                optional_xattr(body, xattr)
            }
        };
        let (extended, body) = body;
        let place = self.inodes.position()?;
        let mut header = Record::default();
        let basic = basic_type(&inode.entry.kind);
        header.u16(if extended {
            basic + inode_type::EXTENDED
        } else {
            basic
        });
        header
            .u16(inode.entry.mode)
            .u16(self.id(inode.entry.uid)?)
            .u16(self.id(inode.entry.gid)?);
        header.u32(self.mtime).u32(inode.number);
        self.inodes.write(&header.0)?;
        self.inodes.write(&body.0)?;
        Ok(place)
    }

    fn id(&self, id: u32) -> Result<u16> {
        let index = self
            .ids
            .binary_search(&id)
            .ok()
            .context("owner without a number")?;
        Ok(u16::try_from(index)?)
    }

    /// `struct squashfs_reg_inode` or `squashfs_lreg_inode`, with the list of block sizes.
    fn file(
        &self,
        size: u64,
        extent: Option<usize>,
        fragment: Option<(usize, u32)>,
        xattr: u32,
    ) -> Result<(bool, Record)> {
        let stored = extent.map(|extent| &self.stored[extent]);
        let start = stored.map_or(0, |stored| stored.start);
        let sizes = stored.map_or(&[][..], |stored| &stored.sizes);
        let (fragment, offset) = match fragment {
            Some((extent, offset)) => (u32::try_from(extent - self.layout.first_fragment)?, offset),
            None => (NONE_U32, 0),
        };
        let block_size = u64::from(self.block_size);
        let holes = (0..).zip(sizes).filter(|(_, size)| **size == 0);
        let sparse: u64 = holes
            .map(|(index, _)| block_size.min(size - index * block_size))
            .sum();
        let mut body = Record::default();
        let basic = u32::try_from(start).ok().zip(u32::try_from(size).ok());
        let extended = match basic {
            Some((start, size)) if xattr == NONE_U32 && sparse == 0 => {
                body.u32(start).u32(fragment).u32(offset).u32(size);
                false
            }
            _ => {
                body.u64(start)
                    .u64(size)
                    .u64(sparse)
                    .u32(1)
                    .u32(fragment)
                    .u32(offset)
                    .u32(xattr);
                true
            }
        };
        for size in sizes {
            body.u32(*size);
        }
        Ok((extended, body))
    }

    /// Writes the listing, then gives `struct squashfs_dir_inode` or `squashfs_ldir_inode` with its index.
    fn directory(&mut self, inode: &Inode<'_>, xattr: u32) -> Result<(bool, Record)> {
        let place = self.directories.position()?;
        let (size, index) = self.listing(&inode.children)?;
        let links = 2 + inode
            .children
            .iter()
            .filter(|child| child.basic_type == inode_type::DIRECTORY)
            .count();
        let (size, links) = (size + DIRECTORY_EXTRA, u32::try_from(links)?);
        let mut body = Record::default();
        match u16::try_from(size) {
            Ok(size) if xattr == NONE_U32 && index.is_empty() => {
                body.u32(place.block)
                    .u32(links)
                    .u16(size)
                    .u16(place.offset)
                    .u32(inode.parent);
                Ok((false, body))
            }
            _ => {
                let index_count = u16::try_from(index.len()).context("directory is too large")?;
                body.u32(links).u32(size).u32(place.block).u32(inode.parent);
                body.u16(index_count).u16(place.offset).u32(xattr);
                for IndexRecord {
                    position,
                    block,
                    name,
                } in index
                {
                    body.u32(position)
                        .u32(block)
                        .u32(name.len() as u32 - 1)
                        .bytes(name);
                }
                Ok((true, body))
            }
        }
    }

    /// Writes headers and entries; returns their size and the index records.
    fn listing<'a>(&mut self, children: &[Child<'a>]) -> Result<(u32, Vec<IndexRecord<'a>>)> {
        let mut size = 0;
        let mut index = Vec::new();
        let sorted: Vec<&Child<'_>> = children.iter().rev().collect();
        let mut rest = &sorted[..];
        let mut block = self.directories.position()?.block;
        while let Some(first) = rest.first() {
            let here = self.directories.position()?;
            if here.block != block {
                index.push(IndexRecord {
                    position: size,
                    block: here.block,
                    name: first.name,
                });
                block = here.block;
            }
            let (group, later) = rest.split_at(group_length(rest, usize::from(here.offset)));
            rest = later;
            let listing = header_and_entries(group)?;
            self.directories.write(&listing.0)?;
            size =
                u32::try_from(u64::from(size) + listing.0.len() as u64).context("directory is too large")?;
        }
        ensure!(size <= u32::MAX - DIRECTORY_EXTRA, "directory is too large");
        Ok((size, index))
    }
}

/// How many of `children` go below one header that begins at `offset` of a metadata block: they share the block of
/// their inodes, their numbers are close to the first one's, and all begin in the same block, so that the index can
/// name the header that follows in the next one.
fn group_length(children: &[&Child<'_>], offset: usize) -> usize {
    let Some(first) = children.first() else { return 0 };
    let mut end = offset + 12;
    let fits = |child: &&&Child<'_>| {
        let near = i16::try_from(i64::from(child.number) - i64::from(first.number)).is_ok();
        let inside = end < METADATA_SIZE;
        end += 8 + child.name.len();
        near && inside && child.place.block == first.place.block
    };
    children
        .iter()
        .take(HEADER_ENTRIES_MAX)
        .take_while(fits)
        .count()
        .max(1)
}

/// `struct squashfs_dir_header` and its `squashfs_dir_entry`s.
fn header_and_entries(children: &[&Child<'_>]) -> Result<Record> {
    let mut listing = Record::default();
    let Some(first) = children.first() else {
        return Ok(listing);
    };
    listing
        .u32(children.len() as u32 - 1)
        .u32(first.place.block)
        .u32(first.number);
    for child in children {
        ensure!(
            (1..=NAME_MAX).contains(&child.name.len()),
            "bad name `{}`",
            child.name.escape_ascii()
        );
        let delta = i16::try_from(i64::from(child.number) - i64::from(first.number))?;
        listing
            .u16(child.place.offset)
            .u16(delta as u16)
            .u16(child.basic_type);
        listing.u16(child.name.len() as u16 - 1).bytes(child.name);
    }
    Ok(listing)
}

/// `struct squashfs_symlink_inode`.
fn symlink(target: &[u8], xattr: u32) -> Result<(bool, Record)> {
    ensure!(
        (1..=SYMLINK_MAX).contains(&target.len()) && !target.contains(&0),
        "link target of {} bytes is empty, too long or holds a NUL",
        target.len()
    );
    let mut body = Record::default();
    body.u32(1).u32(target.len() as u32).bytes(target);
    Ok(optional_xattr(body, xattr))
}

/// `struct squashfs_dev_inode`; the number as `new_encode_dev` of `include/linux/kdev_t.h` makes it.
fn device(major: u32, minor: u32, xattr: u32) -> Result<(bool, Record)> {
    ensure!(
        major < 1 << 12 && minor < 1 << 20,
        "device number {major}:{minor} is out of range"
    );
    let mut body = Record::default();
    body.u32(1).u32(minor & 0xff | major << 8 | (minor & !0xff) << 12);
    Ok(optional_xattr(body, xattr))
}

/// The extended form of these inodes differs by the attribute number at their end.
fn optional_xattr(mut body: Record, xattr: u32) -> (bool, Record) {
    if xattr == NONE_U32 {
        return (false, body);
    }
    body.u32(xattr);
    (true, body)
}
