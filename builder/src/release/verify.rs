//! A release, derived again from its bytes: nothing in the folder is believed because another file in it says so.
//!
//! Two kinds of failure are kept apart: bytes that are not the signed ones ([`State::Mismatch`]), and signed claims
//! that do not hold ([`State::Contradiction`]).

mod boot;
mod debug;
mod disk;
mod documents;
mod files;
mod findings;
mod formats;
#[cfg(test)]
mod tests;
mod window;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::manifest::{self, Manifest};
use super::{contents, names};
use crate::digest::Digest;
use crate::sign::keys;
use crate::sign::ovmf_vars::EnrolledKeys;

pub use findings::{Finding, Findings, State};

/// The public key that a release must be signed with.
#[derive(Debug, Clone, Copy)]
pub enum Trust {
    /// This key, which the caller had before.
    Key([u8; 32]),
    /// The key in the folder itself: shows that the release is whole, not whose it is.
    Folder,
}

impl Trust {
    /// The key of `path`: a PEM file, or a folder that `kimage keys new` made.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            path.join("release.pub")
        } else {
            path.to_owned()
        };
        Ok(Self::Key(release_key(&file)?))
    }
}

fn release_key(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    keys::release_public_key(&text).with_context(|| format!("read {}", path.display()))
}

/// What the checks of one release share.
struct Subject<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    release_key: [u8; 32],
    /// Certificate (DER) that signed the EFI programs.
    database: Option<Vec<u8>>,
    enrolled: Option<EnrolledKeys>,
    threads: usize,
}

/// Runs all checks on the release in `folder`. Errors are what kept the checks from being made; what they found is in
/// the findings.
pub fn verify(folder: &Path, trust: Trust) -> Result<(Option<Manifest>, Findings)> {
    let mut findings = Findings::default();
    let release_key = match trust {
        Trust::Key(key) => key,
        Trust::Folder => {
            findings.warn("key", format!("{} of the folder itself: this shows that the release is whole, not who made it; pass --key", names::RELEASE_KEY));
            release_key(&folder.join(names::RELEASE_KEY))?
        }
    };
    let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("read {name}"));
    let bytes = read(names::MANIFEST)?;
    let signature = read(names::MANIFEST_SIGNATURE).and_then(|signature| {
        manifest::check_signature(&bytes, &signature, &release_key)?;
        Ok(((), format!("signed by {}", Digest::from_bytes(release_key))))
    });
    findings.signed(names::MANIFEST_SIGNATURE, signature);
    let parsed = Manifest::from_json(&bytes).map(|manifest| {
        let what = format!("{} {} {}", manifest.image, manifest.role, manifest.version);
        (manifest, what)
    });
    let Some(manifest) = findings.claim(names::MANIFEST, parsed) else {
        return Ok((None, findings));
    };
    files::check(folder, &manifest, &mut findings)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut subject = Subject {
        folder,
        manifest: &manifest,
        release_key,
        database: None,
        enrolled: None,
        threads,
    };
    boot::keys(&mut subject, &mut findings);
    let uki = boot::uki(&subject, &mut findings);
    let formats = formats::listed(&subject, &mut findings);
    // Where it is missing, a finding says so already.
    if let Ok(raw) = File::open(folder.join(contents::RAW_DISK)) {
        disk::check(&subject, &raw, uki.as_deref(), &mut findings);
        formats::compare(&subject, &formats, &raw, &mut findings);
    }
    documents::check(&subject, &mut findings);
    if !manifest.debug.is_empty() {
        findings.warn("debug", format!("a debug image: {}", manifest.debug.join(", ")));
    }
    Ok((Some(manifest), findings))
}
