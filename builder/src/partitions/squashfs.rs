//! The root filesystem: squashfs 4.0 with zstd, written and read in process. The format is that of Linux,
//! `fs/squashfs/squashfs_fs.h`.
//!
//! [`write`] gives the same bytes on every machine: nothing but the tree and the options goes in, neither the number
//! of threads nor a clock nor what the [`BlockCache`] holds.

mod ahead;
mod cache;
mod compress;
mod format;
mod inodes;
mod layout;
mod metadata;
mod reader;
mod xattrs;

use std::io::{Seek, SeekFrom, Write};

use anyhow::{Context, Result, ensure};

pub use ahead::Ahead;
pub use cache::BlockCache;
pub use reader::{Entries, FileContent, FileReader, Metadata, Node, Reader};

use crate::progress::Progress;
use crate::tree::Tree;
use compress::Stored;
use format::Superblock;

/// The image ends at a multiple of this, as dm-verity wants it, in bytes.
const PADDING: u64 = 4096;

/// How to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a data block before compression: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// zstd's compression level, 1 to 22.
    pub level: i32,
    /// Threads that compress; does not change the output.
    pub threads: usize,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the image in bytes, a multiple of 4096.
    pub bytes: u64,
}

/// Writes `tree` as a squashfs image to the beginning of `out`, which should be empty.
pub fn write(
    tree: &Tree,
    options: &Options,
    cache: Option<&BlockCache>,
    out: &mut (impl Write + Seek),
    progress: &Progress,
) -> Result<Written> {
    let block_size = options.block_size;
    ensure!(
        block_size.is_power_of_two()
            && (format::BLOCK_SIZE_MIN..=format::BLOCK_SIZE_MAX).contains(&block_size),
        "squashfs block size {block_size} is not a power of two from 4 KiB to 1 MiB"
    );
    ensure!(
        (1..=22).contains(&options.level),
        "zstd level {} is not one of 1 to 22",
        options.level
    );
    out.seek(SeekFrom::Start(0)).context("rewind squashfs image")?;
    out.write_all(&[0; format::SUPERBLOCK_SIZE])?;
    out.write_all(&compressor_options(options.level))?;

    let layout = layout::plan(tree, block_size)?;
    let stored = compress::store(&layout.extents, options, cache, out, progress)?;
    let inodes = inodes::write(tree, &layout, &stored, block_size, options.level)?;
    let fragments = &stored[layout.first_fragment..];

    let superblock = write_tables(tree, options, inodes, fragments, out)?;
    let bytes = superblock.bytes_used.next_multiple_of(PADDING);
    out.write_all(&vec![0; (bytes - superblock.bytes_used) as usize])?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&superblock.encode())?;
    out.seek(SeekFrom::Start(bytes))?;
    if let Some(cache) = cache
        && let Err(error) = cache.trim()
    {
        progress.warn(&format!(
            "the cache of compressed blocks could not be trimmed: {error:#}"
        ));
    }
    Ok(Written { bytes })
}

/// The version of the compressor: other versions may make other bytes.
pub fn compressor_version() -> u32 {
    zstd::zstd_safe::version_number()
}

/// The zstd level as a stored metadata block (squashfs-tools, `zstd_wrapper.c`); the kernel skips it, tools show it.
fn compressor_options(level: i32) -> Vec<u8> {
    let mut bytes = (4 | format::METADATA_STORED).to_le_bytes().to_vec();
    bytes.extend(level.to_le_bytes());
    bytes
}

/// Everything after the data. The kernel refuses tables that are in another order or leave gaps
/// (`fs/squashfs/super.c`, `squashfs_fill_super`).
fn write_tables(
    tree: &Tree,
    options: &Options,
    inodes: inodes::Inodes,
    fragments: &[Stored],
    out: &mut (impl Write + Seek),
) -> Result<Superblock> {
    let level = options.level;
    let inode_table = out.stream_position()?;
    out.write_all(&inodes.inode_table).context("write inode table")?;
    let directory_table = out.stream_position()?;
    out.write_all(&inodes.directory_table)
        .context("write directory table")?;
    let fragment_table = match fragments {
        [] => format::NONE_U64,
        _ => {
            metadata::write_table(out, &fragment_records(fragments), level).context("write fragment table")?
        }
    };
    let id_records: Vec<u8> = inodes.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let id_table = metadata::write_table(out, &id_records, level).context("write owner table")?;
    let xattr_table = inodes.xattrs.write(out).context("write extended attributes")?;
    let mut flags = format::FLAG_DUPLICATES | format::FLAG_COMPRESSOR_OPTIONS;
    if xattr_table == format::NONE_U64 {
        flags |= format::FLAG_NO_XATTRS;
    }
    Ok(Superblock {
        inodes: inodes.count,
        mtime: tree.mtime(),
        block_size: options.block_size,
        fragments: u32::try_from(fragments.len())?,
        compression: format::COMPRESSION_ZSTD,
        flags,
        ids: u16::try_from(inodes.ids.len())?,
        root: inodes.root.to_u64(),
        bytes_used: out.stream_position()?,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
        export_table: format::NONE_U64,
    })
}

/// `struct squashfs_fragment_entry` of each block. A fragment block is never a hole: the kernel has no such thing.
fn fragment_records(fragments: &[Stored]) -> Vec<u8> {
    let mut records = Vec::with_capacity(fragments.len() * 16);
    for fragment in fragments {
        records.extend(fragment.start.to_le_bytes());
        records.extend(fragment.sizes.first().copied().unwrap_or_default().to_le_bytes());
        records.extend([0; 4]);
    }
    records
}
