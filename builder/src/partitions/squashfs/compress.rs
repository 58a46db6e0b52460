//! Compresses the blocks of all extents on several threads and writes them in order. The output does not depend on
//! the number of threads: each block is compressed alone, and one thread writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use zstd::bulk::Compressor;

use super::Options;
use super::cache::{BlockCache, CachedExtent, Recording};
use super::format::DATA_STORED;
use super::layout::{Extent, Piece};
use crate::progress::{Progress, Task};
use crate::tree::Content;

/// Memory that all threads' buffers and zstd contexts may take together, in bytes.
const MEMORY_BUDGET: usize = 192 << 20;

/// Where an extent's blocks are in the filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Position of the first block in bytes.
    pub(super) start: u64,
    /// Each block's length, with [`DATA_STORED`] when it is not compressed; 0 is a block of zeros.
    pub(super) sizes: Vec<u32>,
}

/// One block as it stands on disk.
pub(super) struct Block {
    /// The number in the block list.
    pub(super) size: u32,
    pub(super) bytes: Vec<u8>,
    /// The cache had it.
    cached: bool,
}

/// What workers look at.
struct Work<'a> {
    extents: &'a [Extent<'a>],
    cached: Vec<Option<CachedExtent>>,
    /// Extent and block in it, in the order on disk.
    blocks: Vec<(usize, u64)>,
    options: &'a Options,
}

/// Writes all extents to `out` from where it stands.
pub(super) fn store(
    extents: &[Extent<'_>],
    options: &Options,
    cache: Option<&BlockCache>,
    out: &mut (impl Write + Seek),
    progress: &Progress,
) -> Result<Vec<Stored>> {
    let block_size = options.block_size;
    let blocks = (0..extents.len())
        .flat_map(|extent| (0..extents[extent].blocks(block_size)).map(move |b| (extent, b)));
    let blocks: Vec<_> = blocks.collect();
    let find = |extent: &Extent<'_>| {
        cache?
            .find(&extent.key(), options)
            .filter(|found| found.blocks() == extent.blocks(block_size))
    };
    let work = Work {
        extents,
        cached: extents.iter().map(find).collect(),
        blocks,
        options,
    };
    let task = progress.bytes(
        "compress root filesystem",
        Some(extents.iter().map(|extent| extent.size).sum()),
    );
    let mut sink = Sink::new(&work, cache, out, &task, progress)?;
    let threads = thread_count(options).min(work.blocks.len());
    let (jobs, queue) = channel();
    let (results_in, results) = channel();
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let results = results_in.clone();
            scope.spawn(|| compress_jobs(&work, &queue, results));
        }
        drop(results_in);
        // Dropped at the end of this block, whatever the outcome: then the workers stop.
        let jobs = jobs;
        write_in_order(work.blocks.len(), 2 * threads + 2, &jobs, &results, &mut sink)
    })?;
    let stored = sink.finish();
    task.done();
    Ok(stored)
}

/// As many threads as asked for and as the budget allows. A thread needs its block before and after compression,
/// as much again for what waits to be written, and a zstd context: for a block of N bytes about 5 N at the lower
/// levels, 20 N where a binary tree is searched.
pub(super) fn thread_count(options: &Options) -> usize {
    let context = if options.level >= 13 { 20 } else { 5 };
    let each = options.block_size as usize * (context + 4);
    options.threads.clamp(1, (MEMORY_BUDGET / each).max(1))
}

/// Keeps at most `window` blocks under way or waiting, so that memory stays bounded.
fn write_in_order(
    count: usize,
    window: usize,
    jobs: &Sender<usize>,
    results: &Receiver<(usize, Result<Block>)>,
    sink: &mut Sink<'_, '_, impl Write + Seek>,
) -> Result<()> {
    let (mut sent, mut written) = (0, 0);
    let mut waiting = BTreeMap::new();
    while written < count {
        while sent < count.min(written + window) {
            jobs.send(sent).context("all compression threads ended")?;
            sent += 1;
        }
        let (number, block) = results.recv().context("all compression threads ended")?;
        waiting.insert(number, block);
        while let Some(block) = waiting.remove(&written) {
            sink.write(written, block?)?;
            written += 1;
        }
    }
    Ok(())
}

/// A worker's life. A panic becomes an error, else the writer would wait for the lost block for ever.
fn compress_jobs(work: &Work<'_>, queue: &Mutex<Receiver<usize>>, results: Sender<(usize, Result<Block>)>) {
    let mut compressor = None;
    let mut buffer = Vec::new();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(number) = job else { return };
        let block = catch_unwind(AssertUnwindSafe(|| {
            work.block(number, &mut compressor, &mut buffer)
        }));
        let block = block.unwrap_or_else(|_| bail!("a compression thread panicked"));
        if results.send((number, block)).is_err() {
            return;
        }
    }
}

impl Work<'_> {
    fn block(
        &self,
        number: usize,
        compressor: &mut Option<Compressor<'static>>,
        buffer: &mut Vec<u8>,
    ) -> Result<Block> {
        let (extent, index) = self.blocks[number];
        if let Some((size, bytes)) = self.cached[extent].as_ref().and_then(|cached| cached.read(index)) {
            return Ok(Block {
                size,
                bytes,
                cached: true,
            });
        }
        self.extents[extent].read_block(index, self.options.block_size, buffer)?;
        encode(
            buffer,
            self.extents[extent].sparse,
            self.options.level,
            compressor,
        )
    }
}

/// What becomes of the bytes of one block. In a `sparse` extent zeros are a hole.
pub(super) fn encode(
    bytes: &[u8],
    sparse: bool,
    level: i32,
    compressor: &mut Option<Compressor<'static>>,
) -> Result<Block> {
    let block = |size, bytes| Block {
        size,
        bytes,
        cached: false,
    };
    if sparse && bytes.iter().all(|byte| *byte == 0) {
        return Ok(block(0, Vec::new()));
    }
    let compressor = match compressor {
        Some(compressor) => compressor,
        empty => empty.insert(Compressor::new(level).context("make zstd context")?),
    };
    let compressed = compressor.compress(bytes).context("compress block")?;
    // What does not shrink is stored as it is: the kernel then only copies.
    if compressed.len() >= bytes.len() {
        return Ok(block(bytes.len() as u32 | DATA_STORED, bytes.to_vec()));
    }
    Ok(block(compressed.len() as u32, compressed))
}

impl Extent<'_> {
    /// Fills `buffer` with block `index`.
    fn read_block(&self, index: u64, block_size: u32, buffer: &mut Vec<u8>) -> Result<()> {
        let start = index * u64::from(block_size);
        buffer.resize((self.size - start).min(u64::from(block_size)) as usize, 0);
        if let [piece] = &self.pieces[..] {
            return piece.read(start, buffer);
        }
        let mut rest = &mut buffer[..];
        for piece in &self.pieces {
            let (now, later) = rest.split_at_mut(piece.size as usize);
            piece.read(0, now)?;
            rest = later;
        }
        Ok(())
    }
}

impl Piece<'_> {
    /// Fills `buffer` from `offset` bytes into the piece.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let start = self.offset + offset;
        match self.content {
            Content::Bytes(bytes) => {
                let range = start as usize..start as usize + buffer.len();
                let part = bytes.get(range).filter(|_| bytes.len() as u64 == self.file_size);
                buffer.copy_from_slice(
                    part.with_context(|| format!("{}: content and size differ", self.path))?,
                );
            }
            Content::File(file) => {
                let context = || format!("read {} for {}", file.display(), self.path);
                let file = File::open(file).with_context(context)?;
                let size = file.metadata().with_context(context)?.len();
                ensure!(
                    size == self.file_size,
                    "{}: has {size} bytes, not {}",
                    context(),
                    self.file_size
                );
                file.read_exact_at(buffer, start).with_context(context)?;
            }
        }
        Ok(())
    }
}

/// Takes the blocks in order: to the filesystem, and to the cache what was not in it.
struct Sink<'a, 'w, W> {
    work: &'a Work<'a>,
    cache: Option<&'a BlockCache>,
    recording: Option<Recording>,
    out: &'w mut W,
    position: u64,
    stored: Vec<Stored>,
    task: &'a Task,
    progress: &'a Progress,
}

impl<'a, 'w, W: Write + Seek> Sink<'a, 'w, W> {
    fn new(
        work: &'a Work<'a>,
        cache: Option<&'a BlockCache>,
        out: &'w mut W,
        task: &'a Task,
        progress: &'a Progress,
    ) -> Result<Self> {
        let position = out.stream_position().context("find the end of the filesystem")?;
        let stored = vec![Stored::default(); work.extents.len()];
        Ok(Self {
            work,
            cache,
            recording: None,
            out,
            position,
            stored,
            task,
            progress,
        })
    }

    fn write(&mut self, number: usize, block: Block) -> Result<()> {
        let (extent, index) = self.work.blocks[number];
        if index == 0 {
            self.stored[extent].start = self.position;
        }
        self.stored[extent].sizes.push(block.size);
        self.out
            .write_all(&block.bytes)
            .context("write blocks of the root filesystem")?;
        self.position += block.bytes.len() as u64;
        let size = self.work.extents[extent].size;
        let block_size = u64::from(self.work.options.block_size);
        self.task.advance(block_size.min(size - index * block_size));
        if let Err(error) = self.record(extent, index, &block) {
            self.progress
                .warn(&format!("the cache of compressed blocks is not used: {error:#}"));
            (self.recording, self.cache) = (None, None);
        }
        Ok(())
    }

    /// A cached extent is left alone unless its first block is damaged: the next build meets the same damage,
    /// compresses the block again, and eviction ends it.
    fn record(&mut self, extent: usize, index: u64, block: &Block) -> Result<()> {
        let Some(cache) = self.cache else { return Ok(()) };
        if index == 0 && !block.cached {
            self.recording = Some(cache.record(&self.work.extents[extent].key(), self.work.options)?);
        }
        let Some(recording) = &mut self.recording else {
            return Ok(());
        };
        recording.push(block.size, &block.bytes)?;
        if index + 1 == self.work.extents[extent].blocks(self.work.options.block_size)
            && let Some(recording) = self.recording.take()
        {
            recording.finish()?;
        }
        Ok(())
    }

    fn finish(self) -> Vec<Stored> {
        self.stored
    }
}
