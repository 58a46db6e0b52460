//! The files of the folder against the signed list.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

use super::findings::{Findings, same};
use crate::digest::Digest;
use crate::disk::{Format, sparse};
use crate::release::manifest::{FileRecord, Manifest};
use crate::release::{checksums, names};

/// Checks presence, size and digest of every file, and that the folder holds nothing else.
pub(super) fn check(folder: &Path, manifest: &Manifest, findings: &mut Findings) -> Result<()> {
    let outcomes = in_parallel(&manifest.files, |record| record_matches(folder, record));
    for (record, outcome) in manifest.files.iter().zip(outcomes) {
        findings.signed(
            &format!("file {}", record.name),
            outcome.map(|()| ((), format!("{} bytes, sha256 {}", record.size, record.sha256))),
        );
    }
    findings.signed(
        &format!("file {}", names::CHECKSUMS),
        checksums_match(folder, manifest),
    );
    strangers(folder, manifest, findings)
}

fn record_matches(folder: &Path, record: &FileRecord) -> Result<()> {
    let plain =
        !record.name.is_empty() && !record.name.contains('/') && record.name != "." && record.name != "..";
    ensure!(plain, "`{}` is not the name of a file in the folder", record.name);
    let path = folder.join(&record.name);
    let metadata = path
        .symlink_metadata()
        .with_context(|| missing(folder, &record.name))?;
    ensure!(metadata.is_file(), "{} is not a regular file", record.name);
    same("size", record.size, metadata.len())?;
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let found = sparse::digest(&file, 0, record.size).with_context(|| format!("read {}", path.display()))?;
    same("sha256", record.sha256, found)
}

/// What is missing, and where it is to be had.
fn missing(folder: &Path, name: &str) -> String {
    let (raw, qcow2) = (Format::Raw.file_name(), Format::Qcow2.file_name());
    if name == raw && folder.join(qcow2).is_file() {
        return format!("{name} is missing; `qemu-img convert -O raw {qcow2} {raw}` makes it");
    }
    format!("{name} is missing; fetch the whole release")
}

fn checksums_match(folder: &Path, manifest: &Manifest) -> Result<((), String)> {
    let mut records = manifest.files.clone();
    records.push(FileRecord::of_file(folder, names::MANIFEST)?);
    records.push(FileRecord::of_file(folder, names::MANIFEST_SIGNATURE)?);
    let expected = checksums::render(&records);
    let path = folder.join(names::CHECKSUMS);
    let found = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let found = String::from_utf8(found).map_err(|_| anyhow!("{} is not text", names::CHECKSUMS))?;
    if found != expected {
        let mut pairs = expected.lines().zip(found.lines());
        let differing = pairs.find(|(expected, found)| expected != found);
        let (expected, found) = differing.unwrap_or(("another number of lines", "these"));
        return Err(anyhow!(
            "{} says `{found}`, expected `{expected}`",
            names::CHECKSUMS
        ));
    }
    Ok(((), format!("{} lines agree with the signed list", records.len())))
}

fn strangers(folder: &Path, manifest: &Manifest, findings: &mut Findings) -> Result<()> {
    let mut known: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    known.extend([names::MANIFEST, names::MANIFEST_SIGNATURE, names::CHECKSUMS]);
    let mut unknown = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry
            .with_context(|| format!("read {}", folder.display()))?
            .file_name();
        let name = name.to_string_lossy().into_owned();
        if !known.contains(name.as_str()) {
            unknown.push(name);
        }
    }
    unknown.sort();
    for name in unknown {
        let check = format!("file {name}");
        // Somebody would start it and think that this was the disk that holds.
        if name.starts_with(Format::PREFIX) {
            let outcome: Result<((), String)> = Err(anyhow!("a disk that nobody signed"));
            findings.signed(&check, outcome);
        } else {
            findings.warn(&check, "not part of the release: nobody signed it");
        }
    }
    Ok(())
}

/// The digests of parts of `file`, each given by start and length.
pub(super) fn digests(file: &File, parts: &[(u64, u64)]) -> Vec<Result<Digest>> {
    in_parallel(parts, |(start, length)| {
        Ok(sparse::digest(file, *start, *length)?)
    })
}

/// What `work` makes of each item, in their order; on all processors.
pub(super) fn in_parallel<I: Sync, O: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Vec<Result<O>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(items.len()));
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let outcome = work(item);
                    outcomes
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((index, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    outcomes.sort_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
