//! Inodes: `struct squashfs_*_inode`, basic and extended.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};

use super::source::Cursor;
use super::{Metadata, Node, Reader};
use crate::partitions::squashfs::format::{
    DIRECTORY_EXTRA, Fields, METADATA_SIZE, NONE_U32, Reference, inode_type,
};

/// Longest target of a symbolic link: what mksquashfs writes at most.
const SYMLINK_MAX: u32 = 65_535;
/// Largest file (`MAX_LFS_FILESIZE`).
const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// An inode and what only this module's neighbours need of it.
pub(super) struct Inode {
    pub(super) metadata: Metadata,
    pub(super) number: u32,
    pub(super) basic_type: u16,
    /// Of a directory: where its listing is and its length in bytes.
    pub(super) listing: Option<(Reference, u32)>,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    pub(super) size: u64,
    /// Of the first block.
    pub(super) start: u64,
    /// Number of the fragment block and offset in it.
    pub(super) fragment: Option<(u32, u32)>,
    /// Where the list of block sizes begins: the inode, and bytes from there.
    pub(super) block_list: (Reference, usize),
}

impl FileContent {
    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The fields that all inodes begin with (`struct squashfs_base_inode`).
const BASE_SIZE: usize = 16;

/// The fields that differ, while they are read.
struct Body {
    node: Node,
    links: u32,
    xattr: u32,
    listing: Option<(Reference, u32)>,
}

impl Body {
    fn new(node: Node, links: u32, xattr: u32) -> Self {
        Self {
            node,
            links,
            xattr,
            listing: None,
        }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// The inode at `reference`.
    pub(super) fn inode(&self, reference: Reference) -> Result<Inode> {
        let mut cursor = self.source.cursor(self.superblock.inode_table, reference)?;
        let base = cursor.take(BASE_SIZE)?;
        let mut base = Fields::new(&base);
        let (stored_type, mode) = (base.u16()?, base.u16()?);
        let (uid, gid) = (self.id(base.u16()?)?, self.id(base.u16()?)?);
        let (mtime, number) = (base.u32()?, base.u32()?);
        let extended = stored_type > inode_type::EXTENDED;
        let basic_type = if extended {
            stored_type - inode_type::EXTENDED
        } else {
            stored_type
        };
        let body = match basic_type {
            inode_type::DIRECTORY => directory(&mut cursor, extended),
            inode_type::FILE => file(&mut cursor, extended, reference),
            inode_type::SYMLINK => symlink(&mut cursor, extended),
            inode_type::BLOCK_DEVICE | inode_type::CHARACTER_DEVICE => {
                device(&mut cursor, extended, basic_type)
            }
            inode_type::FIFO => ipc(&mut cursor, extended, Node::Fifo),
            inode_type::SOCKET => ipc(&mut cursor, extended, Node::Socket),
            _ => bail!("inode {number} has the unknown type {stored_type}"),
        };
        let body = body.with_context(|| format!("read inode {number}"))?;
        ensure!(mode <= 0o7777, "inode {number} has mode {mode:o}");
        let xattrs = match body.xattr {
            NONE_U32 => BTreeMap::new(),
            set => self
                .xattrs(set)
                .with_context(|| format!("read extended attributes of inode {number}"))?,
        };
        let metadata = Metadata {
            mode,
            uid,
            gid,
            mtime,
            links: body.links,
            xattrs,
            kind: body.node,
        };
        Ok(Inode {
            metadata,
            number,
            basic_type,
            listing: body.listing,
        })
    }
}

fn directory<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool) -> Result<Body> {
    let bytes = cursor.take(if extended { 24 } else { 16 })?;
    let mut fields = Fields::new(&bytes);
    let (links, size, block, offset, xattr);
    if extended {
        (links, size, block) = (fields.u32()?, fields.u32()?, fields.u32()?);
        // The parent's number and the number of index records: neither is needed to read a listing in order.
        fields.bytes(6)?;
        (offset, xattr) = (fields.u16()?, fields.u32()?);
    } else {
        (block, links, size) = (fields.u32()?, fields.u32()?, u32::from(fields.u16()?));
        (offset, xattr) = (fields.u16()?, NONE_U32);
    }
    ensure!(
        usize::from(offset) < METADATA_SIZE,
        "bad offset {offset} of a listing"
    );
    let listing = Some((Reference { block, offset }, size.saturating_sub(DIRECTORY_EXTRA)));
    Ok(Body {
        listing,
        ..Body::new(Node::Directory, links, xattr)
    })
}

fn file<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool, inode: Reference) -> Result<Body> {
    let body_size = if extended { 40 } else { 16 };
    let bytes = cursor.take(body_size)?;
    let mut fields = Fields::new(&bytes);
    let (start, size, links, fragment, offset, xattr);
    if extended {
        (start, size) = (fields.u64()?, fields.u64()?);
        fields.u64()?;
        (links, fragment, offset, xattr) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    } else {
        (start, fragment, offset) = (u64::from(fields.u32()?), fields.u32()?, fields.u32()?);
        (size, links, xattr) = (u64::from(fields.u32()?), 1, NONE_U32);
    }
    ensure!(size <= FILE_SIZE_MAX, "file of {size} bytes");
    let fragment = (fragment != NONE_U32).then_some((fragment, offset));
    let content = FileContent {
        size,
        start,
        fragment,
        block_list: (inode, BASE_SIZE + body_size),
    };
    Ok(Body::new(Node::File(content), links, xattr))
}

fn symlink<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool) -> Result<Body> {
    let bytes = cursor.take(8)?;
    let mut fields = Fields::new(&bytes);
    let (links, size) = (fields.u32()?, fields.u32()?);
    ensure!((1..=SYMLINK_MAX).contains(&size), "link target of {size} bytes");
    let target = cursor.take(size as usize)?;
    Ok(Body::new(
        Node::Symlink(target),
        links,
        xattr_number(cursor, extended)?,
    ))
}

fn device<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool, basic_type: u16) -> Result<Body> {
    let bytes = cursor.take(8)?;
    let mut fields = Fields::new(&bytes);
    let (links, device) = (fields.u32()?, fields.u32()?);
    // `new_decode_dev`, `include/linux/kdev_t.h`.
    let (major, minor) = (
        (device & 0xf_ff00) >> 8,
        device & 0xff | (device >> 12) & 0xf_ff00,
    );
    let node = match basic_type {
        inode_type::BLOCK_DEVICE => Node::BlockDevice { major, minor },
        _ => Node::CharacterDevice { major, minor },
    };
    Ok(Body::new(node, links, xattr_number(cursor, extended)?))
}

fn ipc<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool, node: Node) -> Result<Body> {
    let links = Fields::new(&cursor.take(4)?).u32()?;
    Ok(Body::new(node, links, xattr_number(cursor, extended)?))
}

/// The number that extended inodes of these types end with.
fn xattr_number<R: Read + Seek>(cursor: &mut Cursor<'_, R>, extended: bool) -> Result<u32> {
    if extended {
        Fields::new(&cursor.take(4)?).u32()
    } else {
        Ok(NONE_U32)
    }
}
