//! `kimage verify`.

use std::path::Path;

use anyhow::Result;

use super::{Context, print, print_json};
use crate::cli::Verify;
use crate::components::Access;
use crate::download::Network;
use crate::failure::{ExitCode, Failure};
use crate::pipeline::{self, DiskFormat, Order};
use crate::release::verify::{Findings, Trust, verify};
use crate::release::{Manifest, names};

/// Checks the release and says what holds and what does not.
pub(super) fn run(arguments: &Verify, context: &Context) -> Result<()> {
    let trust = match &arguments.key {
        Some(path) => Trust::read(path)?,
        None => Trust::Folder,
    };
    // Says what a folder without a manifest is, before any check.
    if !arguments.directory.join(names::MANIFEST).is_file() {
        let message = format!("`{}` holds no {}", arguments.directory.display(), names::MANIFEST);
        let hint = "name the folder that `kimage build` wrote: out/ROLE";
        return Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
    }
    let (manifest, mut findings) = verify(&arguments.directory, trust)?;
    // What is damaged needs no second build to be wrong.
    let rebuilt = match manifest.filter(|_| arguments.rebuild && findings.conclude().is_ok()) {
        Some(manifest) => rebuild(&arguments.directory, &manifest, context, &mut findings),
        None => Ok(()),
    };
    if arguments.json {
        print_json(&findings)?;
    } else {
        print(findings.to_string().as_bytes())?;
    }
    findings.conclude()?;
    rebuilt?;
    context.progress.total("verified");
    Ok(())
}

/// Builds again, components too, in a store that shares with the user's only what proves itself by a digest: everything
/// else there could be the very bytes to compare with.
fn rebuild(folder: &Path, manifest: &Manifest, context: &Context, findings: &mut Findings) -> Result<()> {
    let shared = context.store()?;
    let scratch = shared.scratch()?;
    let store = shared
        .downloads_only(scratch.path())?
        .with_progress(&context.progress);
    let order = Order {
        workspace: context.definitions()?,
        image: manifest.image.clone(),
        role: manifest.role.clone(),
        formats: vec![DiskFormat::Raw],
        output: store.root().to_owned(),
        cache: false,
        jobs: std::thread::available_parallelism().map_or(2, usize::from),
        mirrors: context.global.mirror.clone(),
        access: Access {
            network: Network::Online,
            go_proxy: None,
            beside: Some(shared.root().to_owned()),
        },
    };
    pipeline::rebuild::compare(&order, folder, manifest, &store, &context.progress, findings)
}
