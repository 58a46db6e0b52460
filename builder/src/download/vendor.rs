//! Inputs in one file, for machines without a network.
//!
//! The file is a plain tar:
//!
//! ```text
//! kimage-vendor.json                 what follows, in this order
//! blobs/sha256/<hex>                 blobs, by digest
//! artifacts/<kind>/<key>/<path>      the files of artifacts (Go's module cache), by kind, key and path
//! ```
//!
//! Equal content gives an equal file. A blob proves itself: its name is its digest. An artifact is named by the key of
//! what made it, so its files are checked against the digests in the index, which finds damage and not forgery, and
//! the caller judges what they are. There are no links.

mod import;
mod index;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Request;
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::progress::{Progress, Task};
use crate::store::Store;

pub use import::{Judge, import};
use index::{Artifact, Blob, Index, Item, Kind};

/// What was written or imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Number of blobs.
    pub blobs: usize,
    /// Number of artifacts.
    pub artifacts: usize,
    /// Length of the vendor file in bytes.
    pub size: u64,
    /// Digest of the vendor file.
    pub digest: Digest,
}

/// Writes what `requests` and `artifacts` (kind and key) name from `store` into the new file `out`. All of it must
/// be in the store: fetch and build first.
pub fn write(
    requests: &[Request],
    artifacts: &[(String, Digest)],
    store: &Store,
    out: &Path,
    progress: &Progress,
) -> Result<Summary> {
    let (index, sources) = collect(requests, artifacts, store)?;
    let folder = out
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let place = || format!("write `{}`", out.display());
    let total = index.content_bytes();
    let task = progress.bytes(&format!("write `{}`", out.display()), Some(total));
    // Beside the target, so that it appears whole.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(place)?;
    let (size, digest) = write_tar(&index, &sources, file.as_file_mut(), &task).with_context(place)?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(permissions).with_context(place)?;
    file.as_file().sync_all().with_context(place)?;
    file.persist(out).with_context(place)?;
    task.done();
    Ok(Summary {
        blobs: index.blobs.len(),
        artifacts: index.artifacts.len(),
        size,
        digest,
    })
}

/// The index, and for each of its files in order where the bytes are.
fn collect(
    requests: &[Request],
    artifacts: &[(String, Digest)],
    store: &Store,
) -> Result<(Index, Vec<PathBuf>)> {
    let mut blobs = BTreeMap::new();
    let mut sources = Vec::new();
    for request in requests {
        let Some(path) = store.blob(&request.digest)? else {
            let message = format!("{} ({}) is not in the store", request.name, request.digest);
            bail!(
                Failure::new(ExitCode::Fetch, message)
                    .hint("run `kimage vendor FILE` where there is a network")
            );
        };
        let blob = Blob {
            name: request.name.clone(),
            digest: request.digest,
            size: request.size,
        };
        blobs.entry(request.digest).or_insert((blob, path));
    }
    let blobs: Vec<Blob> = blobs
        .into_values()
        .map(|(blob, path)| {
            sources.push(path);
            blob
        })
        .collect();
    let mut wanted = artifacts.to_vec();
    wanted.sort();
    wanted.dedup();
    let mut described = Vec::new();
    for (kind, key) in wanted {
        let folder = store
            .artifact(&kind, &key)
            .with_context(|| format!("artifact {kind} {key} is not in the store: build before vendoring"))?;
        let items = describe(&folder).with_context(|| format!("read artifact `{}`", folder.display()))?;
        let files = items.iter().filter(|item| matches!(item.kind, Kind::File { .. }));
        sources.extend(files.map(|item| folder.join(&item.path)));
        described.push(Artifact { kind, key, items });
    }
    Ok((
        Index {
            schema: index::SCHEMA,
            blobs,
            artifacts: described,
        },
        sources,
    ))
}

/// All that is below `folder`, parents before children, sorted by path.
fn describe(folder: &Path) -> Result<Vec<Item>> {
    let mut items = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let shown = path
                .to_str()
                .with_context(|| format!("`{}` is not UTF-8", path.display()))?
                .to_owned();
            let metadata = entry.metadata()?;
            let kind = if metadata.is_dir() {
                open.push(path.clone());
                Kind::Directory
            } else if metadata.is_symlink() {
                bail!(index::link(&shown));
            } else if metadata.is_file() {
                let (digest, size) = Digest::of_file(&entry.path())?;
                let executable =
                    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0;
                Kind::File {
                    digest,
                    size,
                    executable,
                }
            } else {
                bail!("`{shown}` is neither file, folder nor link");
            };
            items.insert(path, Item { path: shown, kind });
        }
    }
    Ok(items.into_values().collect())
}

fn write_tar(index: &Index, sources: &[PathBuf], file: &mut File, task: &Task) -> Result<(u64, Digest)> {
    let mut builder = tar::Builder::new(Counted {
        inner: BufWriter::new(file),
        hasher: Hasher::new(),
    });
    let json = index.to_json()?;
    append(&mut builder, index::NAME, json.len() as u64, false, &json[..])?;
    let mut sources = sources.iter();
    let mut copy = |name: &str, size: u64, digest: &Digest, executable: bool| -> Result<()> {
        let source = sources.next().context("fewer files than the index lists")?;
        let mut reader = Checked {
            inner: File::open(source)?.take(size),
            hasher: Hasher::new(),
            task,
        };
        append(&mut builder, name, size, executable, &mut reader)?;
        let (found, length) = reader.hasher.finish_with_length();
        // Else the tar would be torn, or its index would lie.
        if (found, length) != (*digest, size) {
            bail!("`{}` changed while it was read", source.display());
        }
        Ok(())
    };
    for blob in &index.blobs {
        copy(&blob.path(), blob.size, &blob.digest, false).with_context(|| format!("add {}", blob.name))?;
    }
    for artifact in &index.artifacts {
        for item in &artifact.items {
            if let Kind::File {
                digest,
                size,
                executable,
            } = &item.kind
            {
                let name = artifact.path(item);
                copy(&name, *size, digest, *executable).with_context(|| format!("add `{name}`"))?;
            }
        }
    }
    let Counted { inner, hasher } = builder.into_inner()?;
    inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    let (digest, size) = hasher.finish_with_length();
    Ok((size, digest))
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    executable: bool,
    content: impl Read,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    Ok(builder.append_data(&mut header, name, content)?)
}

/// Hashes what goes out.
struct Counted<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what comes in.
struct Checked<'a, R> {
    inner: R,
    hasher: Hasher,
    task: &'a Task,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.task.advance(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
