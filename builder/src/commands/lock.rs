//! `kimage lock`.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::{Context, print, print_json};
use crate::archive::{age, suites};
use crate::cli::Lock as Arguments;
use crate::components::{self, Access, Means};
use crate::definition::{self, ImageDefinition};
use crate::download::Network;
use crate::inputs;
use crate::lock::{self, Lock, Pins, changes};
use crate::store::Store;

/// Resolves and writes the lock; says what moved.
pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<()> {
    let definition = definition::load_image(&context.definitions()?, &arguments.image.image)?;
    if arguments.list {
        return list(&definition, arguments, context);
    }
    let store = context.store()?;
    let old = lock::load(&definition.image)
        .or_else(|error| if arguments.update { Ok(None) } else { Err(error) })?;
    let mut new = packages(&definition, old.as_ref(), arguments, &store, context)?;
    let known = old.as_ref().filter(|_| !arguments.rebuild);
    outputs(&definition, known, &mut new, &store, context)?;
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
    let what = match &old {
        None => "new".to_owned(),
        // A comment in a component's source: other things go in and the same comes out.
        Some(old) if moved.is_empty() && *old != new => {
            "nothing moved, but commit it: sources did".to_owned()
        }
        Some(_) => format!("{} changes", moved.len()),
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

/// The lock as far as the archive says it. Where only components changed, the old lock's packages stay and no archive is
/// asked: who has edited a component's sources locks without a network.
fn packages(
    definition: &ImageDefinition,
    old: Option<&Lock>,
    arguments: &Arguments,
    store: &Store,
    context: &Context,
) -> Result<Lock> {
    let (image, toolchains) = (&definition.image, definition.toolchains.as_ref());
    if let Some(old) = old.filter(|_| !arguments.update)
        && (arguments.rebuild || components::check_fresh(&definition.components, old).is_err())
        && let Some(kept) = lock::keep(old, image, &definition.roles, &definition.components, toolchains)?
    {
        return Ok(kept);
    }
    let mirrors = &context.global.mirror;
    let now = Timestamp::now();
    let snapshot = suites::fetch(image, mirrors, store, now, &context.progress)?;
    let ages = age::ages(image, &snapshot, now);
    for age in &ages {
        context.progress.line(&age.to_string());
    }
    if !arguments.allow_old {
        age::refuse_frozen(&ages)?;
    }
    let pins = match old {
        _ if arguments.allow_old => Pins::Newest(None),
        Some(old) if !arguments.update => Pins::Keep(old),
        old => Pins::Newest(old),
    };
    lock::resolve(
        image,
        &definition.roles,
        &definition.components,
        toolchains,
        &snapshot,
        &pins,
    )
}

/// Says in the lock what comes out of each component: what `known` says where nothing that goes in has changed, what a
/// build makes otherwise.
fn outputs(
    definition: &ImageDefinition,
    known: Option<&Lock>,
    lock: &mut Lock,
    store: &Store,
    context: &Context,
) -> Result<()> {
    let compilers = inputs::compilers(&definition.image, lock, &context.global.mirror, Network::Online)?;
    let access = Access::from(Network::Online);
    let means = Means {
        store,
        access: &access,
        compilers: &compilers,
        program: None,
        progress: &context.progress,
    };
    for component in &definition.components {
        let key = components::content_key(component, lock)?;
        let before = known.and_then(|known| known.component.iter().find(|old| old.name == component.name));
        let before = before
            .and_then(|old| old.built.clone())
            .filter(|built| built.key == key);
        let built = match before {
            Some(built) => built,
            None => components::output(component, lock, &means)?,
        };
        let locked = lock
            .component
            .iter_mut()
            .find(|locked| locked.name == component.name);
        locked.context("a component vanished")?.built = Some(built);
    }
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

fn list(definition: &ImageDefinition, arguments: &Arguments, context: &Context) -> Result<()> {
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
    components::check_fresh(&definition.components, &lock).with_context(|| lock::stale(&definition.image))?;
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
