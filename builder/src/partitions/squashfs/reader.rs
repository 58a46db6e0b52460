//! Reads squashfs images: ours for `kimage verify`, `inspect` and `diff`, and any other with zstd. Every length and
//! position is checked before use, so a hostile image gives an error, not a panic, an endless loop or a full memory.

mod directory;
mod file;
mod inode;
mod source;
mod xattrs;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

pub use directory::Entries;
pub use file::FileReader;
pub use inode::FileContent;

use super::format::{Fields, NONE_U64, Reference, SUPERBLOCK_SIZE, Superblock};
use crate::tree::TreePath;
use source::Source;

/// An opened image. Its methods take `&self`; what they share is behind a lock.
pub struct Reader<R> {
    superblock: Superblock,
    source: Source<R>,
    /// User and group numbers by index.
    ids: Vec<u32>,
}

/// What an image says about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits, `0o7777` at most.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// Number of links to the inode.
    pub links: u32,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it is.
    pub kind: Node,
}

/// What stands at a path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Directory,
    /// A regular file; its bytes come from [`Reader::file`].
    File(FileContent),
    /// A symbolic link to a target as written.
    Symlink(Vec<u8>),
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens the image that stands in the bytes `range` of `source`: a file, or a partition of a disk. The range may
    /// be longer than the image.
    pub fn open(source: R, range: Range<u64>) -> Result<Self> {
        let source = Source::new(source, range);
        let mut bytes = [0; SUPERBLOCK_SIZE];
        source
            .read_at(0, &mut bytes)
            .context("read squashfs superblock")?;
        let superblock = Superblock::decode(&bytes)?;
        let used = superblock.bytes_used;
        let source = source.limit(used)?;
        for (table, name) in [
            (superblock.inode_table, "inode"),
            (superblock.directory_table, "directory"),
            (superblock.id_table, "owner"),
        ] {
            ensure!(
                table < used,
                "squashfs {name} table at {table} is beyond the end, {used}"
            );
        }
        ensure!(
            superblock.inode_table < superblock.directory_table,
            "squashfs directory table stands before the inode table"
        );
        let ids = read_ids(&source, &superblock).context("read squashfs owner table")?;
        Ok(Self {
            superblock,
            source,
            ids,
        })
    }

    /// Length of the image in bytes, without padding.
    pub fn bytes_used(&self) -> u64 {
        self.superblock.bytes_used
    }

    /// Bytes of a data block before compression.
    pub fn block_size(&self) -> u32 {
        self.superblock.block_size
    }

    /// All paths in the order of [`TreePath`], the root first. After an error the iterator ends.
    pub fn entries(&self) -> Entries<'_, R> {
        Entries::new(self)
    }

    /// What stands at `path`, without following links; `None` when there is nothing.
    pub fn get(&self, path: &TreePath) -> Result<Option<Metadata>> {
        let mut inode = self
            .inode(Reference::from_u64(self.superblock.root)?)
            .context("read root inode")?;
        for part in path.parts() {
            if !matches!(inode.metadata.kind, Node::Directory) {
                return Ok(None);
            }
            let children = self.children(&inode).with_context(|| format!("look up {path}"))?;
            let Some(child) = children.into_iter().find(|child| child.name == *part) else {
                return Ok(None);
            };
            inode = self
                .child_inode(&child)
                .with_context(|| format!("look up {path}"))?;
        }
        Ok(Some(inode.metadata))
    }

    /// The bytes of the file at `path`.
    pub fn read_file(&self, path: &TreePath) -> Result<FileReader<'_, R>> {
        match self.get(path)? {
            Some(Metadata {
                kind: Node::File(content),
                ..
            }) => self.file(&content).with_context(|| format!("read {path}")),
            Some(_) => bail!("{path} is not a file"),
            None => bail!("{path} is not in the image"),
        }
    }

    /// The bytes of a file that [`Reader::entries`] or [`Reader::get`] found in this image.
    pub fn file(&self, content: &FileContent) -> Result<FileReader<'_, R>> {
        FileReader::new(self, content)
    }

    fn id(&self, index: u16) -> Result<u32> {
        self.ids
            .get(usize::from(index))
            .copied()
            .with_context(|| format!("owner number {index} is not in the table"))
    }

    /// Reads record `number` of `record_size` bytes from a table whose index stands at `index`.
    fn table_record(&self, index: u64, number: u32, record_size: usize) -> Result<Vec<u8>> {
        ensure!(index != NONE_U64, "the table is absent");
        table_record(&self.source, index, number, record_size)
    }
}

fn table_record<R: Read + Seek>(source: &Source<R>, index: u64, number: u32, size: usize) -> Result<Vec<u8>> {
    let per_block = (super::format::METADATA_SIZE / size) as u32;
    let mut position = [0; 8];
    let slot = index
        .checked_add(u64::from(number / per_block) * 8)
        .context("table index is out of range")?;
    source.read_at(slot, &mut position).context("read table index")?;
    let offset = (number % per_block) as u16 * size as u16;
    source
        .cursor(u64::from_le_bytes(position), Reference { block: 0, offset })?
        .take(size)
}

fn read_ids<R: Read + Seek>(source: &Source<R>, superblock: &Superblock) -> Result<Vec<u32>> {
    let numbers = 0..u32::from(superblock.ids);
    let read = |number| Fields::new(&table_record(source, superblock.id_table, number, 4)?).u32();
    numbers.map(read).collect()
}
