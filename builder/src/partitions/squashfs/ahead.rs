//! Compresses big files while the tree that will hold them is still in the making. Their blocks go to the cache, where
//! [`super::write`] finds them; without them it makes its own, so nothing depends on this but time.
//!
//! A file may change after it was added: a package's script rewrites it. Its bytes are hashed as they are compressed,
//! and what no longer has the digest that it was added with leaves nothing in the cache.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use zstd::bulk::Compressor;

use super::Options;
use super::cache::BlockCache;
use super::compress::{encode, thread_count};
use super::layout::big_files;
use crate::digest::{Digest, Hasher};
use crate::progress::{Progress, Task};
use crate::tree::{Content, Entry, TreePath};

/// Most files that wait at a time: each is held open, because the folder that it lies in may yet be renamed.
const WAITING_MAX: usize = 512;
/// How far threads stand behind others while the tree is made: they take the processor time that this leaves.
const NICE: i32 = 10;

/// Threads that compress what is added, the largest file first. Dropped, it leaves what has not been begun.
pub struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    progress: Progress,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    options: Options,
}

#[derive(Default)]
struct Queue {
    /// Sorted by size, the largest last.
    waiting: Vec<Job>,
    /// Keys of all that was ever added.
    known: BTreeSet<Digest>,
    /// Caches that something was added to.
    caches: Vec<BlockCache>,
    /// There is no more to come.
    closed: bool,
    /// Shown once there is something to do.
    task: Option<Task>,
    /// Why a file could not be compressed: the first reason, for a user who asks for details.
    trouble: Option<anyhow::Error>,
}

struct Job {
    file: File,
    size: u64,
    /// Of the file's content.
    digest: Digest,
    /// Of the extent, in the cache.
    key: Digest,
    cache: BlockCache,
}

impl Ahead {
    /// Starts as many threads as the `options` of the image allow.
    pub fn start(options: &Options, progress: &Progress) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            options: options.clone(),
        });
        let mut ahead = Self {
            shared,
            threads: Vec::new(),
            progress: progress.clone(),
        };
        ahead.spawn(true);
        ahead
    }

    fn spawn(&mut self, behind: bool) {
        for _ in 0..thread_count(&self.shared.options) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("compress ahead".into());
            let work = move || {
                if behind {
                    // Where it is refused, all threads are equal.
                    let _ = rustix::process::nice(NICE);
                }
                shared.work();
            };
            // A host that gives no thread gets a slower build.
            self.threads.extend(thread.spawn(work));
        }
    }

    /// Adds the big ones among `files` whose blocks `cache` lacks. They are opened now.
    pub fn add<'a>(&self, files: impl IntoIterator<Item = (&'a TreePath, &'a Entry)>, cache: &BlockCache) {
        let options = &self.shared.options;
        let mut queue = self.shared.lock();
        for extent in big_files(files, options.block_size) {
            let key = extent.key();
            let [piece] = &extent.pieces[..] else { continue };
            let Content::File(place) = piece.content else {
                continue;
            };
            if queue.waiting.len() >= WAITING_MAX
                || !queue.known.insert(key)
                || cache.find(&key, options).is_some()
            {
                continue;
            }
            // Whoever writes the filesystem will say what is wrong with it.
            let Ok(file) = File::open(place) else { continue };
            let (size, digest, cache) = (piece.size, piece.digest, cache.clone());
            queue.waiting.push(Job {
                file,
                size,
                digest,
                key,
                cache,
            });
        }
        queue.waiting.sort_by_key(|job| job.size);
        if queue.waiting.is_empty() {
            return;
        }
        queue.caches.push(cache.clone());
        if queue.task.is_none() {
            queue.task = Some(self.progress.bytes("compress big files", None));
        }
        self.shared.changed.notify_all();
    }

    /// Returns when all that was added is compressed.
    pub fn finish(mut self) {
        self.shared.lock().closed = true;
        // Now somebody waits for it.
        self.spawn(false);
        self.join();
        let mut queue = self.shared.lock();
        if let Some(task) = queue.task.take() {
            task.done();
        }
        let trims: Result<()> = queue.caches.iter().try_for_each(BlockCache::trim);
        if let Some(error) = queue.trouble.take().or(trims.err()) {
            self.progress
                .detail(&format!("not all blocks were compressed ahead: {error:#}"));
        }
    }

    fn join(&mut self) {
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // What a panicked thread would have compressed, the writer compresses.
            drop(thread.join());
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.lock();
            queue.closed = true;
            queue.waiting.clear();
        }
        self.join();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self) {
        let mut compressor = None;
        let mut buffer = Vec::new();
        while let Some(job) = self.next() {
            if let Err(error) = job.compress(self, &mut compressor, &mut buffer) {
                self.lock().trouble.get_or_insert(error);
            }
        }
    }

    /// The largest file that waits; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.waiting.pop() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(task) = &self.lock().task {
            task.advance(bytes);
        }
    }
}

impl Job {
    fn compress(
        &self,
        shared: &Shared,
        compressor: &mut Option<Compressor<'static>>,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let options = &shared.options;
        let mut recording = self.cache.record(&self.key, options)?;
        let mut hasher = Hasher::new();
        let mut position = 0;
        while position < self.size {
            let length = (self.size - position).min(u64::from(options.block_size));
            buffer.resize(length as usize, 0);
            self.file
                .read_exact_at(buffer, position)
                .context("read a file to compress")?;
            hasher.update(buffer);
            let block = encode(buffer, true, options.level, compressor)?;
            recording.push(block.size, &block.bytes)?;
            position += length;
            shared.advance(length);
        }
        // What was read is what the key stands for, whatever else may have become of the file.
        if hasher.finish() == self.digest {
            recording.finish()?;
        }
        Ok(())
    }
}
