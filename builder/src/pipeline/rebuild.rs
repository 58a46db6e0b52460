//! A second build of the same image, to see whether it comes out the same. Anybody can do it: what the private keys
//! decide is left out of the comparison, so a throw-away key set signs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::{Order, build, prepare};
use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};
use crate::lock;
use crate::partitions::uki::Uki;
use crate::progress::Progress;
use crate::release::contents::{RAW_DISK, root};
use crate::release::manifest::{Component, Manifest};
use crate::release::verify::Findings;
use crate::release::{difference, names};
use crate::sign::keys::{self, FileSigner};
use crate::store::Store;

/// Builds the image of `manifest` again by `order`, whose output folder does not matter, and compares it with the
/// release in `folder`.
pub fn compare(
    order: &Order,
    folder: &Path,
    manifest: &Manifest,
    store: &Store,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<()> {
    let (definition, _) = prepare(order)?;
    let path = definition.image.folder.join(lock::FILE_NAME);
    let (digest, _) = Digest::of_file(&path).with_context(|| format!("read {}", path.display()))?;
    if digest != manifest.lock {
        let message = format!(
            "{} has sha256 {digest}, the image was built from {}",
            path.display(),
            manifest.lock
        );
        return Err(Failure::new(ExitCode::Lock, message)
            .hint("check out the commit that built the image")
            .into());
    }
    if manifest.kimage != env!("CARGO_PKG_VERSION") {
        findings.warn(
            "rebuild",
            format!(
                "kimage {} built it, this is {}",
                manifest.kimage,
                env!("CARGO_PKG_VERSION")
            ),
        );
    }
    let scratch = store.scratch()?;
    let key_folder = scratch.path().join("keys");
    keys::create(&key_folder)?;
    let order = Order {
        output: scratch.path().join("out"),
        ..order.clone()
    };
    let again = build(&order, &FileSigner::load(&key_folder)?, store, progress)?;
    let second = order.output.join(&order.role);
    findings.claim(
        "rebuild root filesystem",
        same_root(folder, manifest, &second, &again),
    );
    findings.claim("rebuild uki", same_uki(folder, manifest, &second, &again));
    let compilers = manifest.components.iter().zip(&again.components);
    let mut compilers = compilers.filter(|(one, other)| one.compiler != other.compiler);
    let rest = if let Some((one, other)) = compilers.next() {
        let shown =
            |component: &Component| component.compiler.clone().unwrap_or("another program".to_owned());
        Err(anyhow!(
            "{} was built by {}, here by {}: a fair comparison needs the same compiler",
            one.name,
            shown(one),
            shown(other)
        ))
    } else if manifest.components != again.components || manifest.packages != again.packages {
        Err(anyhow!(
            "another set of components or number of packages comes out"
        ))
    } else {
        Ok((
            (),
            format!(
                "{} packages, {} components",
                again.packages,
                again.components.len()
            ),
        ))
    };
    findings.claim("rebuild contents", rest);
    Ok(())
}

fn same_root(folder: &Path, manifest: &Manifest, second: &Path, again: &Manifest) -> Result<((), String)> {
    if manifest.root == again.root {
        return Ok(((), format!("the same: sha256 {}", again.root.sha256)));
    }
    let (one, other) = (manifest.root.sha256, again.root.sha256);
    ensure!(
        folder.join(RAW_DISK).exists(),
        "sha256 is {other}, expected {one}; without {RAW_DISK} no file can be named"
    );
    let files = difference::files(&root(folder, manifest)?, &root(second, again)?, true)?;
    let Some(first) = files.first() else {
        return Err(anyhow!(
            "sha256 is {other}, expected {one}, although all files are the same: they are stored differently"
        ));
    };
    let how = if first.differs.is_empty() {
        format!("{:?}", first.change).to_lowercase()
    } else {
        first.differs.join(", ")
    };
    Err(anyhow!(
        "sha256 is {other}, expected {one}: {} files differ, the first is {} ({how})",
        files.len(),
        first.path
    ))
}

fn same_uki(folder: &Path, manifest: &Manifest, second: &Path, again: &Manifest) -> Result<((), String)> {
    let (one, other) = (manifest.kernel.authenticode, again.kernel.authenticode);
    if one == other {
        return Ok((
            (),
            format!("the same but for the signature: authenticode digest {other}"),
        ));
    }
    let read = |folder: &Path| {
        let path = folder.join(names::UKI);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let (before, after) = (read(folder)?, read(second)?);
    let (before, after) = (Uki::parse(&before)?, Uki::parse(&after)?);
    let old: BTreeMap<&[u8], &[u8]> = before.sections().collect();
    let names = before.sections().chain(after.sections()).map(|(name, _)| name);
    for name in names {
        let (expected, found) = (
            old.get(name).copied(),
            after.sections().find(|(other, _)| *other == name),
        );
        let found = found.map(|(_, data)| data);
        if expected != found {
            let shown = |data: Option<&[u8]>| {
                data.map_or("nothing".to_owned(), |data| {
                    format!("{} bytes with sha256 {}", data.len(), Digest::of(data))
                })
            };
            return Err(anyhow!(
                "section {} is {}, expected {}",
                name.escape_ascii(),
                shown(found),
                shown(expected)
            ));
        }
    }
    Err(anyhow!(
        "authenticode digest is {other}, expected {one}: the headers differ"
    ))
}
