//! `kimage inspect`.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{print, print_json};
use crate::cli::Inspect;
use crate::failure::{ExitCode, Failure};
use crate::progress::bytes;
use crate::release::contents::Materials;
use crate::release::{Manifest, names, read_signed_manifest};
use crate::sign::keys;

/// The manifest and what only the bill of materials counts.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Summary<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    go_modules: usize,
}

pub(super) fn run(arguments: &Inspect) -> Result<()> {
    let manifest = open(&arguments.directory)?;
    let go_modules = Materials::read(&arguments.directory)?.go_modules.len();
    if arguments.json {
        return print_json(&Summary {
            manifest: &manifest,
            go_modules,
        });
    }
    print(text(&manifest, go_modules).as_bytes())
}

/// The manifest of the release in `folder`, whole by the key in that folder.
pub(super) fn open(folder: &Path) -> Result<Manifest> {
    if !folder.join(names::MANIFEST).is_file() {
        let message = format!("`{}` holds no {}", folder.display(), names::MANIFEST);
        return Err(Failure::new(ExitCode::Usage, message)
            .hint("name the folder that `kimage build` wrote: out/ROLE")
            .into());
    }
    let key = folder.join(names::RELEASE_KEY);
    let key_text = std::fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
    let release_key =
        keys::release_public_key(&key_text).with_context(|| format!("read {}", key.display()))?;
    Ok(read_signed_manifest(folder, &release_key)?.0)
}

fn text(manifest: &Manifest, go_modules: usize) -> String {
    let mut text = String::new();
    let keys = if manifest.keys.development {
        "DEVELOPMENT keys"
    } else {
        "release keys"
    };
    let rows = [
        ("role", manifest.role.clone()),
        ("image", format!("{} ({})", manifest.image, manifest.architecture)),
        ("version", manifest.version.clone()),
        (
            "built by",
            format!("kimage {} from lock {}", manifest.kimage, manifest.lock),
        ),
        (
            "signed with",
            format!("{keys}, release key {}", manifest.keys.release),
        ),
        ("kernel", manifest.kernel.version.clone()),
        ("command line", manifest.kernel.command_line.clone()),
        (
            "root",
            format!(
                "{}, {} entries, root hash {}",
                bytes(manifest.root.size),
                manifest.root.entries,
                manifest.root.hash
            ),
        ),
        ("PCR 11", manifest.kernel.pcr11.ready.to_string()),
        (
            "packages",
            format!("{} Debian packages, {go_modules} Go modules", manifest.packages),
        ),
        (
            "debug",
            if manifest.debug.is_empty() {
                "none".to_owned()
            } else {
                manifest.debug.join(", ")
            },
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<13} {value}");
    }
    text.push_str("\ncomponents\n");
    for component in &manifest.components {
        let _ = writeln!(text, "  {:<24} {}", component.name, component.version);
    }
    text.push_str("\npartitions\n");
    for partition in &manifest.partitions {
        let size = bytes(partition.size);
        let _ = writeln!(
            text,
            "  {:<14} {}  {size:>9}  at byte {}",
            partition.name, partition.uuid, partition.offset
        );
    }
    text.push_str("\nfiles\n");
    for file in &manifest.files {
        let _ = writeln!(
            text,
            "  {:<18} {:>9}  {}",
            file.name,
            bytes(file.size),
            file.sha256
        );
    }
    text
}
