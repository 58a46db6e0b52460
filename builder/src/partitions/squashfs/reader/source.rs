//! The bytes of an image: positions checked, blocks decompressed, and the last ones kept.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use zstd::bulk::Decompressor;

use crate::partitions::squashfs::format::{DATA_STORED, METADATA_SIZE, METADATA_STORED, Reference};

/// Decompressed metadata that is kept, in bytes.
const METADATA_KEPT: usize = 8 << 20;
/// Decompressed fragment blocks that are kept, in bytes: small files of one folder are spread over many.
const FRAGMENTS_KEPT: usize = 64 << 20;

/// An image in a range of something that can be read.
pub(super) struct Source<R> {
    inner: Mutex<Inner<R>>,
    /// Where the image begins.
    start: u64,
    /// Nothing is read beyond this many bytes.
    length: u64,
}

struct Inner<R> {
    reader: R,
    decompressor: Option<Decompressor<'static>>,
    metadata: Kept,
    fragments: Kept,
}

/// The last blocks by position, up to a number of bytes.
struct Kept {
    blocks: BTreeMap<u64, Block>,
    order: VecDeque<u64>,
    bytes: usize,
    limit: usize,
}

/// A decompressed block and the position after its compressed form.
#[derive(Clone)]
struct Block {
    bytes: Arc<Vec<u8>>,
    next: u64,
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self {
            blocks: BTreeMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    fn put(&mut self, position: u64, block: Block) {
        self.bytes += block.bytes.len();
        self.order.push_back(position);
        self.blocks.insert(position, block);
        while self.bytes > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.blocks.remove(&oldest).map_or(0, |block| block.bytes.len());
        }
    }
}

impl<R: Read + Seek> Inner<R> {
    fn read(&mut self, position: u64, buffer: &mut [u8]) -> Result<()> {
        self.reader.seek(SeekFrom::Start(position))?;
        self.reader.read_exact(buffer)?;
        Ok(())
    }

    fn decompress(&mut self, compressed: &[u8], most: usize) -> Result<Vec<u8>> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            empty => empty.insert(Decompressor::new().context("make zstd context")?),
        };
        decompressor
            .decompress(compressed, most)
            .context("decompress zstd")
    }
}

impl<R: Read + Seek> Source<R> {
    pub(super) fn new(reader: R, range: Range<u64>) -> Self {
        let inner = Inner {
            reader,
            decompressor: None,
            metadata: Kept::new(METADATA_KEPT),
            fragments: Kept::new(FRAGMENTS_KEPT),
        };
        Self {
            inner: Mutex::new(inner),
            start: range.start,
            length: range.end.saturating_sub(range.start),
        }
    }

    /// The same, but `length` bytes long.
    pub(super) fn limit(self, length: u64) -> Result<Self> {
        ensure!(
            length <= self.length && self.start.checked_add(length).is_some(),
            "squashfs image has {length} bytes, there are only {}",
            self.length
        );
        Ok(Self { length, ..self })
    }

    fn check(&self, position: u64, length: u64) -> Result<()> {
        let end = position.checked_add(length);
        ensure!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {position} are beyond the end of the image, {}",
            self.length
        );
        Ok(())
    }

    /// Fills `buffer` from `position`.
    pub(super) fn read_at(&self, position: u64, buffer: &mut [u8]) -> Result<()> {
        self.check(position, buffer.len() as u64)?;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .read(self.start + position, buffer)
            .with_context(|| format!("read {} bytes at {position}", buffer.len()))
    }

    /// The metadata block at `position`.
    fn metadata(&self, position: u64) -> Result<Block> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = inner.metadata.blocks.get(&position) {
            return Ok(block.clone());
        }
        self.check(position, 2)?;
        let mut header = [0; 2];
        inner.read(self.start + position, &mut header)?;
        let header = u16::from_le_bytes(header);
        let length = usize::from(header & !METADATA_STORED);
        ensure!(
            (1..=METADATA_SIZE).contains(&length),
            "metadata block of {length} bytes"
        );
        self.check(position + 2, length as u64)?;
        let mut bytes = vec![0; length];
        inner.read(self.start + position + 2, &mut bytes)?;
        if header & METADATA_STORED == 0 {
            bytes = inner.decompress(&bytes, METADATA_SIZE)?;
        }
        ensure!(!bytes.is_empty(), "metadata block is empty");
        let block = Block {
            bytes: Arc::new(bytes),
            next: position + 2 + length as u64,
        };
        inner.metadata.put(position, block.clone());
        Ok(block)
    }

    /// The data block at `position` with the stored `size` word: `most` bytes or fewer.
    pub(super) fn data(&self, position: u64, size: u32, most: usize) -> Result<Vec<u8>> {
        let length = size & !DATA_STORED;
        // `squashfs_block_size` refuses the bits above as well.
        ensure!(
            size >> 25 == 0 && length > 0,
            "data block has the bad size {size:#x}"
        );
        ensure!(
            length as usize <= most,
            "data block of {length} bytes, {most} at most"
        );
        self.check(position, u64::from(length))?;
        let mut bytes = vec![0; length as usize];
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.read(self.start + position, &mut bytes)?;
        if size & DATA_STORED != 0 {
            return Ok(bytes);
        }
        inner.decompress(&bytes, most)
    }

    /// The fragment block at `position`.
    pub(super) fn fragment(&self, position: u64, size: u32, most: usize) -> Result<Arc<Vec<u8>>> {
        let lock = || self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = lock().fragments.blocks.get(&position) {
            return Ok(block.bytes.clone());
        }
        let bytes = Arc::new(self.data(position, size, most)?);
        lock().fragments.put(
            position,
            Block {
                bytes: bytes.clone(),
                next: 0,
            },
        );
        Ok(bytes)
    }

    /// A cursor at `reference` in the metadata that begins at `table`.
    pub(super) fn cursor(&self, table: u64, reference: Reference) -> Result<Cursor<'_, R>> {
        let position = table
            .checked_add(u64::from(reference.block))
            .context("reference is out of range")?;
        Ok(Cursor {
            source: self,
            position,
            offset: usize::from(reference.offset),
        })
    }
}

/// Reads forward through metadata blocks.
pub(super) struct Cursor<'a, R> {
    source: &'a Source<R>,
    /// Of the compressed block.
    position: u64,
    /// In the decompressed block; may be its end.
    offset: usize,
}

impl<R: Read + Seek> Cursor<'_, R> {
    /// The next `count` bytes. Callers bound `count`.
    pub(super) fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let block = self
                .source
                .metadata(self.position)
                .with_context(|| format!("metadata at {}", self.position))?;
            let rest = block
                .bytes
                .get(self.offset..)
                .context("metadata offset is beyond its block")?;
            let part = &rest[..rest.len().min(count - taken.len())];
            taken.extend_from_slice(part);
            self.offset += part.len();
            if self.offset == block.bytes.len() {
                (self.position, self.offset) = (block.next, 0);
            }
        }
        Ok(taken)
    }
}
