//! The disk in each format of the release: all are there, and all hold the disk that the checks are about.

use std::fs::File;

use anyhow::{Context, Result, ensure};

use super::Subject;
use super::files::in_parallel;
use super::findings::{Findings, same};
use crate::disk::{Format, qcow2};

/// Clusters that one processor compares at a time: 8 MiB of kimage's.
const SHARE: u64 = 128;

/// The formats that the manifest lists. A release has a raw disk, and no disk that this kimage can't read.
pub(super) fn listed(subject: &Subject<'_>, findings: &mut Findings) -> Vec<Format> {
    let names = subject.manifest.files.iter().map(|file| file.name.as_str());
    let (mut formats, mut unknown) = (Vec::new(), Vec::new());
    for name in names.filter(|name| name.starts_with(Format::PREFIX)) {
        match Format::of_file(name) {
            Some(format) => formats.push(format),
            None => unknown.push(name),
        }
    }
    let outcome = (|| {
        ensure!(
            unknown.is_empty(),
            "{}: this kimage can't read that format; verify with the one that built the release",
            unknown.join(", ")
        );
        ensure!(
            formats.contains(&Format::Raw),
            "the manifest lists no {}: a release without its disk proves nothing",
            Format::Raw.file_name()
        );
        let names: Vec<&str> = formats.iter().map(|format| format.file_name()).collect();
        Ok(((), names.join(", ")))
    })();
    findings.claim("disk formats", outcome);
    formats
}

/// Requires that each of `formats` holds what `raw` holds, byte for byte.
pub(super) fn compare(subject: &Subject<'_>, formats: &[Format], raw: &File, findings: &mut Findings) {
    for format in formats {
        let path = subject.folder.join(format.file_name());
        let open = || File::open(&path).with_context(|| format!("open {}", path.display()));
        let outcome = match format {
            // It is the one that the others are compared with.
            Format::Raw => continue,
            Format::Qcow2 => open().and_then(|file| compare_qcow2(file, raw)),
        };
        findings.claim(&format!("content of {}", format.file_name()), outcome);
    }
}

fn compare_qcow2(file: File, raw: &File) -> Result<((), String)> {
    let image = qcow2::Image::open(file)?;
    let size = raw.metadata().context("look at the raw disk")?.len();
    same("length of the disk", size, image.size())?;
    let shares: Vec<_> = (0..image.clusters())
        .step_by(SHARE as usize)
        .map(|first| first..(first + SHARE).min(image.clusters()))
        .collect();
    in_parallel(&shares, |share| image.compare(raw, share.clone()))
        .into_iter()
        .collect::<Result<()>>()?;
    Ok((
        (),
        format!(
            "{} clusters are those of {}",
            image.clusters(),
            Format::Raw.file_name()
        ),
    ))
}
