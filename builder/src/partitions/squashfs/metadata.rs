//! Writing metadata: a byte stream cut into compressed blocks of 8 KiB, and the two-level tables of fixed records.

use std::io::{Seek, Write};

use anyhow::{Context, Result};
use zstd::bulk::Compressor;

use super::format::{METADATA_SIZE, METADATA_STORED, Reference};

/// A stream of metadata blocks, kept in memory: a root filesystem has about 300 KB of it.
pub(super) struct MetadataWriter {
    compressor: Compressor<'static>,
    /// Finished blocks, each with its length before it.
    finished: Vec<u8>,
    /// What is not yet a whole block.
    open: Vec<u8>,
    /// Where each finished block begins.
    starts: Vec<u64>,
}

impl MetadataWriter {
    /// An empty stream, compressed at zstd `level`.
    pub(super) fn new(level: i32) -> Result<Self> {
        let compressor = Compressor::new(level).context("make zstd context")?;
        let open = Vec::with_capacity(METADATA_SIZE);
        Ok(Self {
            compressor,
            finished: Vec::new(),
            open,
            starts: Vec::new(),
        })
    }

    /// Where the next byte will stand.
    pub(super) fn position(&self) -> Result<Reference> {
        let block = u32::try_from(self.finished.len()).context("metadata exceeds 4 GiB")?;
        Ok(Reference {
            block,
            offset: self.open.len() as u16,
        })
    }

    /// Appends `bytes`, which may span blocks.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_SIZE - self.open.len()));
            self.open.extend_from_slice(now);
            bytes = later;
            if self.open.len() == METADATA_SIZE {
                self.close_block()?;
            }
        }
        Ok(())
    }

    fn close_block(&mut self) -> Result<()> {
        let compressed = self
            .compressor
            .compress(&self.open)
            .context("compress metadata")?;
        self.starts.push(self.finished.len() as u64);
        if compressed.len() < self.open.len() {
            self.finished.extend((compressed.len() as u16).to_le_bytes());
            self.finished.extend(compressed);
        } else {
            self.finished
                .extend((self.open.len() as u16 | METADATA_STORED).to_le_bytes());
            self.finished.append(&mut self.open);
        }
        self.open.clear();
        Ok(())
    }

    /// Ends the stream: its bytes, and where each block begins in them.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, Vec<u64>)> {
        if !self.open.is_empty() {
            self.close_block()?;
        }
        Ok((self.finished, self.starts))
    }
}

/// Writes a table of fixed records at the end of `out`: metadata blocks, then the index of their positions. Returns
/// the index, to be written right after the blocks (or after a header).
pub(super) fn write_table_blocks(
    out: &mut (impl Write + Seek),
    records: &[u8],
    level: i32,
) -> Result<Vec<u8>> {
    let start = out.stream_position()?;
    let mut writer = MetadataWriter::new(level)?;
    writer.write(records)?;
    let (bytes, starts) = writer.finish()?;
    out.write_all(&bytes)?;
    Ok(starts
        .iter()
        .flat_map(|block| (start + block).to_le_bytes())
        .collect())
}

/// Writes a table of fixed records and its index; returns where the index begins, which the superblock names.
pub(super) fn write_table(out: &mut (impl Write + Seek), records: &[u8], level: i32) -> Result<u64> {
    let index = write_table_blocks(out, records, level)?;
    let position = out.stream_position()?;
    out.write_all(&index)?;
    Ok(position)
}
