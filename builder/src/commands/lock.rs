//! `kimage lock`.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::{Context, print, print_json};
use crate::archive::{age, suites};
use crate::cli::Lock as Arguments;
use crate::definition;
use crate::lock::{self, Lock, Pins, changes};

/// Resolves and writes the lock; says what moved.
pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<()> {
    let definition = definition::load_image(&context.definitions()?, &arguments.image.image)?;
    if arguments.list {
        return list(&definition, arguments, context);
    }
    let store = context.store()?;
    let old = lock::load(&definition.image)
        .or_else(|error| if arguments.update { Ok(None) } else { Err(error) })?;
    let now = Timestamp::now();
    let snapshot = suites::fetch(
        &definition.image,
        &context.global.mirror,
        &store,
        now,
        &context.progress,
    )?;
    let ages = age::ages(&definition.image, &snapshot, now);
    for age in &ages {
        context.progress.line(&age.to_string());
    }
    if !arguments.allow_old {
        age::refuse_frozen(&ages)?;
    }
    let pins = match &old {
        _ if arguments.allow_old => Pins::Newest(None),
        Some(old) if !arguments.update => Pins::Keep(old),
        old => Pins::Newest(old.as_ref()),
    };
    let toolchains = definition.toolchains.as_ref();
    let new = lock::resolve(
        &definition.image,
        &definition.roles,
        &definition.components,
        toolchains,
        &snapshot,
        &pins,
    )?;
    let moved = old
        .as_ref()
        .map(|old| changes::between(old, &new))
        .unwrap_or_default();
    let path = lock::write(&definition.image, &new)?;
    if arguments.json {
        print_json(&moved)?;
    } else {
        let text: String = moved.iter().map(|change| format!("{change}\n")).collect();
        print(text.as_bytes())?;
    }
    let what = if old.is_some() {
        format!("{} changes", moved.len())
    } else {
        "new".to_owned()
    };
    let counts = format!(
        "{} packages, {} components",
        new.package.len(),
        new.component.len()
    );
    context
        .progress
        .line(&format!("{}: {counts}, {what}", path.display()));
    context.progress.total("locked");
    Ok(())
}

/// A package of the lock and where the store keeps it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    version: &'a str,
    path: &'a str,
    size: u64,
    sha256: String,
    blob: std::path::PathBuf,
}

fn list(definition: &definition::ImageDefinition, arguments: &Arguments, context: &Context) -> Result<()> {
    for role in &arguments.role {
        definition.role(role)?;
    }
    let store = context.store()?;
    let toolchains = definition.toolchains.as_ref();
    let lock: Lock = lock::load_fresh(
        &definition.image,
        &definition.roles,
        &definition.components,
        toolchains,
    )?;
    let wanted = |package: &&lock::LockedPackage| {
        package.base
            || arguments.role.is_empty()
            || package.roles.iter().any(|role| arguments.role.contains(role))
    };
    let listed: Vec<Listed<'_>> = lock
        .package
        .iter()
        .filter(wanted)
        .map(|package| Listed {
            name: &package.name,
            version: &package.version,
            path: &package.path,
            size: package.size,
            sha256: package.sha256.to_string(),
            blob: store.blob_path(&package.sha256),
        })
        .collect();
    if arguments.json {
        return print_json(&listed);
    }
    let text: String = listed
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    print(text.as_bytes())
}
