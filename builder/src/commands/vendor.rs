//! `kimage vendor`.

use std::path::Path;

use anyhow::Result;

use super::Context;
use crate::cli::Vendor;
use crate::components::{self, Access, Means};
use crate::definition::{self, Component};
use crate::digest::Digest;
use crate::download::vendor::{Summary, import, write};
use crate::download::{self, Network};
use crate::inputs;
use crate::lock::{self, Lock};
use crate::progress::bytes;

pub(super) fn run(arguments: &Vendor, context: &Context) -> Result<()> {
    if arguments.import {
        let store = context.store()?;
        // Without built components in the file, it need not be run in a workspace.
        let locks = || workspace_locks(&context.definitions()?);
        let accept = |kind: &str, key: &Digest, folder: &Path| {
            components::accept(kind, key, folder, &locks()?, &store)
        };
        let summary = import(&arguments.file, &store, &accept, &context.progress)?;
        return tell("imported", arguments, &summary, context);
    }
    let summary = export(arguments, context)?;
    tell("wrote", arguments, &summary, context)
}

/// Fetches the packages and builds the components that the roles need, and writes both into the file.
fn export(arguments: &Vendor, context: &Context) -> Result<Summary> {
    let definition = definition::load_image(&context.definitions()?, &arguments.image.image)?;
    let roles: Vec<&str> = match arguments.role.as_slice() {
        [] => definition.roles.iter().map(|role| role.name.as_str()).collect(),
        roles => roles.iter().map(String::as_str).collect(),
    };
    let mut needed: Vec<Component> = Vec::new();
    for role in &roles {
        needed.extend(definition.role(role)?.components);
    }
    needed.sort_by(|one, other| one.name.cmp(&other.name));
    needed.dedup_by(|one, other| one.name == other.name);
    let toolchains = definition.toolchains.as_ref();
    let lock = lock::load_fresh(
        &definition.image,
        &definition.roles,
        &definition.components,
        toolchains,
    )?;

    let (store, progress) = (context.store()?, &context.progress);
    let network = if arguments.offline {
        Network::Offline
    } else {
        Network::Online
    };
    let requests = inputs::requests(&definition.image, &lock, &roles, &context.global.mirror, network)?;
    download::fetch(&requests, &store, network, progress)?;
    let compilers = inputs::compilers(&definition.image, &lock, &context.global.mirror, network)?;
    let access = Access::from(network);
    let means = Means {
        store: &store,
        access: &access,
        compilers: &compilers,
        program: None,
        progress,
    };
    components::build(&needed, &lock, &means)?;
    let artifacts = components::artifacts(&needed, &lock)?;
    write(&requests, &artifacts, &store, &arguments.file, progress)
}

/// The locks of all images of the workspace at `root`.
fn workspace_locks(root: &Path) -> Result<Vec<Lock>> {
    let mut locks = Vec::new();
    for name in definition::image_names(root)? {
        let image = definition::load_image(root, &name)?.image;
        locks.extend(lock::load(&image)?);
    }
    Ok(locks)
}

fn tell(what: &str, arguments: &Vendor, summary: &Summary, context: &Context) -> Result<()> {
    if arguments.json {
        return super::print_json(summary);
    }
    let Summary {
        blobs,
        artifacts,
        size,
        digest,
    } = summary;
    let file = arguments.file.display();
    let size = bytes(*size);
    context.progress.line(&format!(
        "{what} `{file}`: {blobs} blobs, {artifacts} artifacts, {size}, sha256 {digest}"
    ));
    Ok(())
}
