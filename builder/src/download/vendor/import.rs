//! A vendor file into the store.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::index::{self, Artifact, Index, Kind};
use super::{Checked, Summary};
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::progress::Progress;
use crate::store::Store;

/// What judges an artifact before the store has it: by its kind and key, and the folder that holds its files now.
pub type Judge<'a> = &'a dyn Fn(&str, &Digest, &Path) -> Result<()>;

/// Takes all that the vendor file `file` holds into `store`, checking every digest; what `judge` refuses stays out.
/// What came in before an error was checked and stays.
pub fn import(file: &Path, store: &Store, judge: Judge<'_>, progress: &Progress) -> Result<Summary> {
    let place = || format!("import `{}`", file.display());
    let opened = File::open(file).with_context(place)?;
    let size = opened.metadata().with_context(place)?.len();
    let task = progress.bytes(&format!("import `{}`", file.display()), Some(size));
    let mut checked = Checked {
        inner: opened,
        hasher: Hasher::new(),
        task: &task,
    };
    let read = read_archive(&mut tar::Archive::new(&mut checked), store, judge);
    let index = read.map_err(damaged).with_context(place)?;
    // The padding behind the last entry belongs to the file's digest.
    io::copy(&mut checked, &mut io::sink()).with_context(place)?;
    let (digest, size) = checked.hasher.finish_with_length();
    // The file may be deleted now.
    store.sync().with_context(place)?;
    task.done();
    Ok(Summary {
        blobs: index.blobs.len(),
        artifacts: index.artifacts.len(),
        size,
        digest,
    })
}

/// Where nothing else is known of an error but that the file isn't as it should be, that is a mismatch.
fn damaged(error: anyhow::Error) -> anyhow::Error {
    let has_cause = error.chain().any(|cause| cause.is::<Failure>());
    if has_cause {
        return error;
    }
    let hint = "copy the vendor file again, or write it again";
    Failure::new(ExitCode::Mismatch, format!("{error:#}"))
        .hint(hint)
        .into()
}

fn read_archive(archive: &mut tar::Archive<impl Read>, store: &Store, judge: Judge<'_>) -> Result<Index> {
    let mut files = Files {
        entries: archive.entries()?,
        store,
    };
    let index = Index::parse(&files.index()?)?;
    for blob in &index.blobs {
        let scratch = store.scratch()?;
        let path = scratch.path().join("blob");
        files
            .next(&blob.path(), blob.size, &blob.digest, &path, 0o644)
            .with_context(|| format!("blob {} ({})", blob.name, blob.digest))?;
        store.adopt(&path, &blob.digest)?;
    }
    for artifact in &index.artifacts {
        unpack(artifact, &mut files, store, judge)
            .with_context(|| format!("artifact {} {}", artifact.kind, artifact.key.short()))?;
    }
    Ok(index)
}

fn unpack(
    artifact: &Artifact,
    files: &mut Files<'_, impl Read>,
    store: &Store,
    judge: Judge<'_>,
) -> Result<()> {
    let mut unpacked = false;
    store.artifact_or_build(&artifact.kind, &artifact.key, |folder| {
        unpacked = true;
        for item in &artifact.items {
            let path = folder.join(&item.path);
            match &item.kind {
                Kind::Directory => fs::create_dir(&path).map_err(|error| store.unwritable(&path, &error))?,
                // `Index::parse` has refused it.
                Kind::Link { .. } => bail!(index::link(&item.path)),
                Kind::File {
                    digest,
                    size,
                    executable,
                } => {
                    let mode = if *executable { 0o755 } else { 0o644 };
                    files.next(&artifact.path(item), *size, digest, &path, mode)?;
                }
            }
        }
        judge(&artifact.kind, &artifact.key, folder)
    })?;
    if !unpacked {
        for item in &artifact.items {
            if let Kind::File { .. } = &item.kind {
                files.skip(&artifact.path(item))?;
            }
        }
    }
    Ok(())
}

/// The tar's entries, which must come as the index lists them.
struct Files<'a, R: Read> {
    entries: tar::Entries<'a, R>,
    store: &'a Store,
}

impl<'a, R: Read> Files<'a, R> {
    fn index(&mut self) -> Result<Vec<u8>> {
        let Ok(entry) = self.entry(index::NAME) else {
            let hint = "give the file that `kimage vendor FILE` wrote";
            bail!(
                Failure::new(
                    ExitCode::Usage,
                    format!("it does not begin with `{}`", index::NAME)
                )
                .hint(hint)
            );
        };
        if entry.size() > index::MAX_BYTES {
            bail!(
                "the index has {} bytes, more than {}",
                entry.size(),
                index::MAX_BYTES
            );
        }
        let mut json = Vec::new();
        entry.take(index::MAX_BYTES).read_to_end(&mut json)?;
        Ok(json)
    }

    fn entry(&mut self, name: &str) -> Result<tar::Entry<'a, R>> {
        let entry = self
            .entries
            .next()
            .with_context(|| format!("the file ends before `{name}`"))??;
        let found = entry.path_bytes();
        if found != name.as_bytes() || entry.header().entry_type() != tar::EntryType::Regular {
            bail!(
                "`{}` stands where the index promises `{name}`",
                String::from_utf8_lossy(&found).escape_debug()
            );
        }
        Ok(entry)
    }

    fn skip(&mut self, name: &str) -> Result<()> {
        self.entry(name).map(drop)
    }

    /// Writes the next entry to the new file `path`, if it is what the index promises.
    fn next(&mut self, name: &str, size: u64, digest: &Digest, path: &Path, mode: u32) -> Result<()> {
        let mut entry = self.entry(name)?;
        if entry.size() != size {
            bail!(Failure::new(
                ExitCode::Mismatch,
                format!("`{name}` has {} bytes instead of {size}", entry.size())
            ));
        }
        let io_error = |error: io::Error| self.store.unwritable(path, &error);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let count = entry
                .read(&mut buffer)
                .with_context(|| format!("read `{name}`"))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(io_error)?;
        }
        let (found, length) = hasher.finish_with_length();
        if length < size {
            bail!("the file ends in the middle of `{name}`");
        }
        if found != *digest {
            let message = format!("`{name}` is damaged: expected {digest}, found {found}");
            bail!(
                Failure::new(ExitCode::Mismatch, message)
                    .hint("copy the vendor file again, or write it again")
            );
        }
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(io_error)
    }
}
