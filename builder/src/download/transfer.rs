//! One blob from its URLs into the store.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::attempts::{Attempts, Trouble};
use super::client::{Answer, Client, Resume};
use super::policy::Policy;
use super::{Address, Request};
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::obstacle;
use crate::progress::{Progress, Task, bytes};
use crate::store::{Blob, Store};

/// The last mirror may be so many times slower than the others before it counts as stalled.
const LAST_RESORT: u64 = 16;

/// A round that brings this much counts as progress, whatever the size of the blob.
const FORWARD_BYTES: u64 = 1 << 20;

pub(super) struct Download<'a> {
    pub(super) request: &'a Request,
    pub(super) store: &'a Store,
    pub(super) client: &'a Client<'a>,
    pub(super) policy: &'a Policy,
    pub(super) progress: &'a Progress,
    pub(super) task: &'a Task,
}

/// How the download of one blob ended.
pub(super) enum Outcome {
    Done,
    /// It can't be had, for a reason that concerns only this blob.
    Permanent(anyhow::Error),
    /// It can't be had now: the network or the servers fail.
    Transient(anyhow::Error),
    /// This host fails.
    Local(anyhow::Error),
    /// Another download made the whole fetch stop.
    Stopped,
}

impl Download<'_> {
    pub(super) fn run(&self) -> Outcome {
        let Request {
            name,
            digest,
            size,
            urls,
        } = self.request;
        let prepare = || -> anyhow::Result<_> {
            let lock = self.store.lock_blob(digest, name)?;
            if let Blob::Present(_) = self.store.examine(digest)? {
                return Ok(None);
            }
            let partial = Partial::open(self.store, digest, *size, self.task)?;
            Ok(Some((lock, partial)))
        };
        let (_lock, mut partial) = match prepare() {
            // Another process was faster.
            Ok(None) => {
                self.task.advance(*size);
                return Outcome::Done;
            }
            Ok(Some(prepared)) => prepared,
            Err(error) => return Outcome::Local(error),
        };
        self.task.message(name);
        let mut attempts = Attempts::new(urls);
        match self.try_all(&mut attempts, &mut partial) {
            Ok(true) => Outcome::Done,
            Ok(false) => self.give_up(&attempts),
            Err(Trouble::Local(error)) => Outcome::Local(error),
            Err(_) => Outcome::Stopped,
        }
    }

    /// Whether the blob is in the store in the end.
    fn try_all(&self, attempts: &mut Attempts<'_>, partial: &mut Partial<'_>) -> Result<bool, Trouble> {
        let mut round = 0;
        let mut furthest = partial.have;
        loop {
            let mut urls = attempts.live();
            self.client.healthy_first(&mut urls);
            let count = urls.len();
            for (index, url) in urls.into_iter().enumerate() {
                if self.client.stopped() {
                    return Err(Trouble::Stopped);
                }
                match self.attempt(url, partial, index + 1 == count) {
                    Ok(()) => {
                        self.client.note(url, true);
                        return Ok(true);
                    }
                    Err(trouble) => {
                        if let Trouble::Passing(why, _) = &trouble {
                            self.client.note(url, false);
                            self.progress.detail(&format!("{url}: {why}"));
                        }
                        attempts.record(url, trouble)?;
                    }
                }
            }
            let gained = partial.have.saturating_sub(furthest);
            furthest = furthest.max(partial.have);
            let forward = gained >= FORWARD_BYTES || gained > 0 && gained >= partial.size / 8;
            if !forward {
                round += 1;
            }
            if round >= self.policy.rounds || attempts.live().is_empty() {
                return Ok(false);
            }
            self.client
                .back_off(round.saturating_sub(1), attempts.come_again());
        }
    }

    fn give_up(&self, attempts: &Attempts<'_>) -> Outcome {
        let Request {
            name, digest, size, ..
        } = self.request;
        if attempts.any_mismatch() {
            let message = format!(
                "{name}: no URL has the expected bytes, {} of digest {digest}:{attempts}",
                bytes(*size)
            );
            let hint = "the file changed since it was locked, or something on the way changes it: \
                        name another mirror with --mirror URL, or run `kimage lock --update`";
            return Outcome::Permanent(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
        }
        let failure = Failure::new(
            ExitCode::Fetch,
            format!("{name}: could not be fetched:{attempts}"),
        );
        if attempts.live().is_empty() {
            let hint =
                "name a mirror that has it with --mirror URL, or bring it with `kimage vendor --import FILE`";
            return Outcome::Permanent(failure.hint(hint).into());
        }
        let hint = "run it again to continue where it stopped, name another mirror with --mirror URL, or run \
                    `kimage vendor FILE` where there is a network and `kimage vendor --import FILE` here";
        Outcome::Transient(failure.hint(hint).into())
    }

    fn attempt(&self, url: &Address, partial: &mut Partial<'_>, last: bool) -> Result<(), Trouble> {
        loop {
            if partial.have < partial.size || partial.size == 0 {
                let answer = self.open(url, partial)?;
                self.receive(url, answer, partial, last)?;
            }
            // Bytes of several servers or of an earlier run prove nothing against this URL.
            let blameless = partial.mixed;
            match partial.finish(self.store)? {
                None => return Ok(()),
                Some(_) if blameless => partial.reset()?,
                Some(found) => {
                    partial.reset()?;
                    return Err(Trouble::Mismatch(
                        format!("expected {}", self.request.digest),
                        Some(found),
                    ));
                }
            }
        }
    }

    /// An answer that begins where `partial` ends.
    fn open(&self, url: &Address, partial: &mut Partial<'_>) -> Result<Answer, Trouble> {
        if partial.have > 0 {
            let validator = partial.validator_for(url);
            let resume = Resume {
                offset: partial.have,
                validator: validator.as_deref(),
            };
            match self.client.resume(url, &resume)? {
                Some(answer) if answer.start == partial.have => {
                    partial.mixed |= validator.is_none();
                    return Ok(answer);
                }
                Some(answer) if answer.start == 0 => {
                    partial.reset()?;
                    return Ok(answer);
                }
                _ => partial.reset()?,
            }
        }
        self.client.open(url)
    }

    fn receive(
        &self,
        url: &Address,
        answer: Answer,
        partial: &mut Partial<'_>,
        last: bool,
    ) -> Result<(), Trouble> {
        let Answer {
            total,
            validator,
            mut body,
            ..
        } = answer;
        let expected = partial.size;
        if let Some(total) = total.filter(|total| *total != expected) {
            return Err(Trouble::Mismatch(
                format!("{total} bytes long instead of {expected}"),
                None,
            ));
        }
        if partial.have == 0 {
            partial.begin(url, validator)?;
        }
        let minimum = if last {
            self.policy.minimum_rate / LAST_RESORT
        } else {
            self.policy.minimum_rate
        };
        let mut watch = Watch::new(self.policy.window, minimum);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            if self.client.stopped() {
                return Err(Trouble::Stopped);
            }
            // One byte more than expected is enough to know that the file is too long.
            let left = (partial.size - partial.have).saturating_add(1);
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = match body.read(&mut buffer[..room]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                result => result.map_err(|error| self.client.read_trouble(error))?,
            };
            if count == 0 && partial.have < partial.size {
                let (have, size) = (partial.have, partial.size);
                return Err(Trouble::Passing(
                    format!("the connection ended after {have} of {size} bytes"),
                    None,
                ));
            }
            if count == 0 {
                return Ok(());
            }
            if count as u64 >= left {
                partial.reset()?;
                return Err(Trouble::Mismatch(format!("longer than {expected} bytes"), None));
            }
            partial.append(&buffer[..count])?;
            if let Some(rate) = watch.too_slow(count) {
                return Err(Trouble::Passing(format!("too slow: {}/s", bytes(rate)), None));
            }
        }
    }
}

/// Notices a transfer that trickles.
struct Watch {
    window: Duration,
    minimum: u64,
    begun: Instant,
    count: u64,
}

impl Watch {
    fn new(window: Duration, minimum: u64) -> Self {
        Self {
            window,
            minimum,
            begun: Instant::now(),
            count: 0,
        }
    }

    /// Counts; the rate in bytes per second if a whole window was slower than the minimum.
    fn too_slow(&mut self, count: usize) -> Option<u64> {
        self.count += count as u64;
        let elapsed = self.begun.elapsed();
        if elapsed < self.window {
            return None;
        }
        let rate = (self.count as f64 / elapsed.as_secs_f64()) as u64;
        (self.begun, self.count) = (Instant::now(), 0);
        (rate < self.minimum).then_some(rate)
    }
}

/// What is there of a blob: the file and the hash of its bytes. Beside it a note says which place they came from, without its secrets.
struct Partial<'a> {
    store: &'a Store,
    task: &'a Task,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    have: u64,
    /// The place that the bytes came from, without its secrets, and its validator.
    origin: Option<(String, String)>,
    /// The bytes are not all from one URL's one version, as far as we know.
    mixed: bool,
}

impl<'a> Partial<'a> {
    fn open(store: &'a Store, digest: &Digest, size: u64, task: &'a Task) -> anyhow::Result<Self> {
        let path = store.partial(digest)?;
        let io_error = |error: io::Error| store.unwritable(&path, &error);
        let mut file = obstacle::open_file(&path, OFlags::RDWR | OFlags::CREATE).map_err(io_error)?;
        let mut hasher = Hasher::new();
        let mut have = file.metadata().map_err(io_error)?.len();
        if have > size {
            file.set_len(0).map_err(io_error)?;
            have = 0;
        }
        let read = io::copy(&mut Read::by_ref(&mut file).take(have), &mut hasher).map_err(io_error)?;
        let note = fs::read_to_string(note_path(&path)).unwrap_or_default();
        let origin = note
            .split_once('\n')
            .map(|(url, validator)| (url.to_owned(), validator.trim().to_owned()));
        task.advance(read);
        Ok(Self {
            store,
            task,
            digest: *digest,
            size,
            file,
            hasher,
            have: read,
            origin: origin.filter(|_| read > 0),
            mixed: read > 0,
            path,
        })
    }

    /// What makes sure that `url` continues the file that the bytes here came from.
    fn validator_for(&self, url: &Address) -> Option<String> {
        let (origin, validator) = self.origin.as_ref()?;
        (*origin == url.place() && !validator.is_empty()).then(|| validator.clone())
    }

    /// The first bytes are about to come from `url`.
    fn begin(&mut self, url: &Address, validator: Option<String>) -> Result<(), Trouble> {
        let validator = validator.unwrap_or_default();
        let note = note_path(&self.path);
        let place = url.place();
        // The note lies beside the file and may be a killed run's: nothing is followed here either.
        let access = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        obstacle::open_file(&note, access)
            .and_then(|mut file| file.write_all(format!("{place}\n{validator}\n").as_bytes()))
            .map_err(|error| self.local(&error))?;
        self.origin = Some((place, validator));
        self.mixed = false;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.file.write_all(bytes).map_err(|error| self.local(&error))?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        self.task.advance(bytes.len() as u64);
        Ok(())
    }

    /// Forgets all bytes.
    fn reset(&mut self) -> Result<(), Trouble> {
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|error| self.local(&error))?;
        self.task.rewind(self.have);
        (self.have, self.hasher, self.origin, self.mixed) = (0, Hasher::new(), None, false);
        Ok(())
    }

    /// Hands the complete bytes to the store; their digest when it is not the expected one.
    fn finish(&mut self, store: &Store) -> Result<Option<Digest>, Trouble> {
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.digest {
            return Ok(Some(found));
        }
        store.adopt(&self.path, &self.digest).map_err(Trouble::Local)?;
        let _ = fs::remove_file(note_path(&self.path));
        Ok(None)
    }

    fn local(&self, error: &io::Error) -> Trouble {
        Trouble::Local(self.store.unwritable(&self.path, error))
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if self.have == 0 {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(note_path(&self.path));
        }
    }
}

fn note_path(path: &std::path::Path) -> PathBuf {
    path.with_extension("from")
}
