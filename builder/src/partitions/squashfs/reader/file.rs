//! The bytes of a file.

use std::io::{self, Read, Seek};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::Reader;
use super::inode::FileContent;
use super::source::Cursor;
use crate::partitions::squashfs::format::{DATA_STORED, Fields};

/// Streams a file, one block in memory at a time.
pub struct FileReader<'a, R> {
    reader: &'a Reader<R>,
    sizes: Cursor<'a, R>,
    fragment: Option<(u32, u32)>,
    /// Of the next block.
    position: u64,
    /// Bytes of the file that are not yet in `block`.
    left: u64,
    block: Arc<Vec<u8>>,
    /// What of `block` is still to be given out.
    start: usize,
    end: usize,
}

impl<'a, R: Read + Seek> FileReader<'a, R> {
    pub(super) fn new(reader: &'a Reader<R>, content: &FileContent) -> Result<Self> {
        let (inode, skip) = content.block_list;
        let mut sizes = reader.source.cursor(reader.superblock.inode_table, inode)?;
        sizes.take(skip)?;
        Ok(Self {
            reader,
            sizes,
            fragment: content.fragment,
            position: content.start,
            left: content.size,
            block: Arc::default(),
            start: 0,
            end: 0,
        })
    }

    /// Loads the next block; there must be one.
    fn load(&mut self) -> Result<()> {
        let block_size = u64::from(self.reader.superblock.block_size);
        let length = self.left.min(block_size) as usize;
        match self.fragment {
            Some((number, offset)) if self.left < block_size => {
                self.block = self.load_fragment(number)?;
                self.start = offset as usize;
            }
            _ => {
                self.block = Arc::new(self.load_block(length)?);
                self.start = 0;
            }
        }
        self.end = self.start + length;
        ensure!(
            self.end <= self.block.len(),
            "block has {} bytes, {} are needed",
            self.block.len(),
            self.end
        );
        self.left -= length as u64;
        Ok(())
    }

    fn load_block(&mut self, length: usize) -> Result<Vec<u8>> {
        let size = Fields::new(&self.sizes.take(4)?).u32()?;
        if size == 0 {
            return Ok(vec![0; length]);
        }
        let bytes = self.reader.source.data(self.position, size, length)?;
        self.position = self
            .position
            .checked_add(u64::from(size & !DATA_STORED))
            .context("block is out of range")?;
        Ok(bytes)
    }

    fn load_fragment(&self, number: u32) -> Result<Arc<Vec<u8>>> {
        let superblock = &self.reader.superblock;
        ensure!(
            number < superblock.fragments,
            "fragment {number} of {}",
            superblock.fragments
        );
        let record = self.reader.table_record(superblock.fragment_table, number, 16)?;
        let mut record = Fields::new(&record);
        let (position, size) = (record.u64()?, record.u32()?);
        self.reader
            .source
            .fragment(position, size, superblock.block_size as usize)
    }
}

impl<R: Read + Seek> Read for FileReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if self.left == 0 {
                return Ok(0);
            }
            if let Err(error) = self.load() {
                // What is left would be wrong: the next read ends instead of going on behind the damage.
                (self.start, self.end, self.left) = (0, 0, 0);
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{error:#}")));
            }
        }
        let count = buffer.len().min(self.end - self.start);
        buffer[..count].copy_from_slice(&self.block[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }
}
