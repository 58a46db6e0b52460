//! Compressed blocks of earlier builds. The next image shares most of its content with the last one and must not
//! compress it again.
//!
//! One file per extent, named by what determines its bytes: content, block size, level and zstd version. It holds
//! the compressed blocks, then a table (for each block its size word and its CRC-32), then a
//! trailer (number of blocks, SHA-256 of the table, magic). It appears by rename; whatever does not check out is
//! removed and compressed again, so a crash or a bad disk costs time, never correctness.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::Options;
use super::format::{BLOCK_SIZE_MAX, DATA_STORED, Fields};
use crate::digest::{Digest, Hasher};

const MAGIC: &[u8; 8] = b"kimgblk2";
/// Number of blocks, digest of the table, magic.
const TRAILER_SIZE: usize = 8 + 32 + 8;
/// Size word and checksum of a block.
const RECORD_SIZE: usize = 4 + 4;
/// More blocks than this (4 TiB at 1 MiB) are taken for damage.
const BLOCKS_MAX: u64 = 1 << 22;
/// Unfinished files of other processes older than this belong to killed ones.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How unfinished files are called.
const UNFINISHED: &str = ".unfinished-";

/// A folder of compressed blocks, which any number of builds may use at the same time.
#[derive(Debug, Clone)]
pub struct BlockCache {
    folder: PathBuf,
    limit: u64,
    /// Folders of other caches, where blocks are looked for as well.
    others: Vec<PathBuf>,
}

impl BlockCache {
    /// Opens the cache in `folder`, creating it where absent. It is cut down to `limit` bytes after each build that
    /// added something.
    pub fn open(folder: &Path, limit: u64) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            limit,
            others: Vec::new(),
        })
    }

    /// The same cache, which also finds what `other` holds. What is new goes to this one.
    #[must_use]
    pub fn reading(mut self, other: &Self) -> Self {
        self.others.push(other.folder.clone());
        self
    }

    /// The file's name for the extent with `key`. Sizes and checksums only guard against damage; that the same key means
    /// the same bytes rests on everything that determines them being part of it.
    fn name(key: &Digest, options: &Options) -> String {
        let mut hasher = Hasher::new();
        hasher.field(MAGIC);
        hasher.field(&super::compressor_version().to_le_bytes());
        hasher.field(&options.block_size.to_le_bytes());
        hasher.field(&options.level.to_le_bytes());
        hasher.field(key.as_bytes());
        hasher.finish().to_string()
    }

    /// The blocks of the extent with `key`, if they are there.
    pub(super) fn find(&self, key: &Digest, options: &Options) -> Option<CachedExtent> {
        let name = Self::name(key, options);
        let mut folders = std::iter::once(&self.folder).chain(&self.others);
        folders.find_map(|folder| Self::find_at(&folder.join(&name)))
    }

    fn find_at(path: &Path) -> Option<CachedExtent> {
        let file = File::open(path).ok()?;
        let found = CachedExtent::open(path, &file);
        if found.is_none() {
            remove(path);
        }
        // The time of the last use, for eviction; when it can't be set the entry only goes earlier.
        let _ = file.set_modified(SystemTime::now());
        found
    }

    /// Begins to record the blocks of the extent with `key`.
    pub(super) fn record(&self, key: &Digest, options: &Options) -> Result<Recording> {
        let file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder);
        let file = file.with_context(|| format!("create file in {}", self.folder.display()))?;
        Ok(Recording {
            file: BufWriter::new(file),
            table: Vec::new(),
            path: self.folder.join(Self::name(key, options)),
        })
    }

    /// Removes the longest unused entries until the limit is kept, and what killed processes left.
    pub(super) fn trim(&self) -> Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(|| format!("list {}", self.folder.display()))? {
            let entry = entry?;
            // Another build may remove it at the same moment.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified()?;
            let unfinished = entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(UNFINISHED.as_bytes());
            if !unfinished {
                entries.push((used, entry.path(), metadata.len()));
            } else if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                remove(&entry.path());
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, _, size)| size).sum();
        for (_, path, size) in entries {
            if total <= self.limit {
                break;
            }
            remove(&path);
            total -= size;
        }
        Ok(())
    }
}

/// Removes an entry of the cache. When that fails nothing is lost: its checksums keep it from being used wrongly.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// An extent that the cache holds, as its table describes it.
pub(super) struct CachedExtent {
    path: PathBuf,
    blocks: Vec<CachedBlock>,
}

struct CachedBlock {
    offset: u64,
    size: u32,
    checksum: u32,
}

impl CachedExtent {
    /// Reads the table; `None` when it is damaged.
    fn open(path: &Path, file: &File) -> Option<Self> {
        let length = file.metadata().ok()?.len();
        let mut trailer = [0; TRAILER_SIZE];
        let trailer_start = length.checked_sub(TRAILER_SIZE as u64)?;
        file.read_exact_at(&mut trailer, trailer_start).ok()?;
        let mut fields = Fields::new(&trailer);
        let (count, digest) = (fields.u64().ok()?, fields.bytes(32).ok()?);
        if count > BLOCKS_MAX || fields.bytes(8).ok()? != MAGIC {
            return None;
        }
        let table_start = trailer_start.checked_sub(count * RECORD_SIZE as u64)?;
        let mut table = vec![0; count as usize * RECORD_SIZE];
        file.read_exact_at(&mut table, table_start).ok()?;
        if Digest::of(&table).as_bytes() != digest {
            return None;
        }
        let mut blocks = Vec::with_capacity(count as usize);
        let mut offset = 0;
        for record in table.chunks(RECORD_SIZE) {
            let mut fields = Fields::new(record);
            let size = fields.u32().ok()?;
            let checksum = fields.u32().ok()?;
            blocks.push(CachedBlock {
                offset,
                size,
                checksum,
            });
            offset += u64::from(size & !DATA_STORED);
        }
        (offset == table_start).then(|| Self {
            path: path.to_owned(),
            blocks,
        })
    }

    /// The number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The size word and the bytes of block `index`; `None` when they are gone or damaged.
    pub(super) fn read(&self, index: u64) -> Option<(u32, Vec<u8>)> {
        let block = self.blocks.get(usize::try_from(index).ok()?)?;
        let length = block.size & !DATA_STORED;
        if length > BLOCK_SIZE_MAX {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        let file = File::open(&self.path).ok()?;
        if file.read_exact_at(&mut bytes, block.offset).is_err() || checksum(&bytes) != block.checksum {
            remove(&self.path);
            return None;
        }
        Some((block.size, bytes))
    }
}

/// CRC-32. A cryptographic digest takes ten times as long, and whoever can write to the cache could put that right too.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// An extent on its way into the cache. Dropped unfinished, it leaves nothing.
pub(super) struct Recording {
    file: BufWriter<NamedTempFile>,
    table: Vec<u8>,
    path: PathBuf,
}

impl Recording {
    /// Adds the next block.
    pub(super) fn push(&mut self, size: u32, bytes: &[u8]) -> Result<()> {
        self.table.extend(size.to_le_bytes());
        self.table.extend(checksum(bytes).to_le_bytes());
        self.file.write_all(bytes).context("write block to the cache")
    }

    /// Makes the extent visible. Not synced to disk: the checksums find what a power cut leaves half written.
    pub(super) fn finish(mut self) -> Result<()> {
        let count = (self.table.len() / RECORD_SIZE) as u64;
        self.file.write_all(&self.table)?;
        self.file.write_all(&count.to_le_bytes())?;
        self.file.write_all(Digest::of(&self.table).as_bytes())?;
        self.file.write_all(MAGIC)?;
        let file = self
            .file
            .into_inner()
            .map_err(|error| error.into_error())
            .context("write block to the cache")?;
        file.persist(&self.path)
            .with_context(|| format!("rename to {}", self.path.display()))?;
        Ok(())
    }
}
