//! `kimage build`.

use std::time::Duration;

use anyhow::Result;

use super::{Context, print_json};
use crate::cli::Build;
use crate::components::Access;
use crate::download::Network;
use crate::pipeline::{self, DiskFormat, Order};
use crate::progress::bytes;
use crate::sign::Signer;
use crate::sign::command::CommandSigner;
use crate::sign::keys::{FileSigner, development_signer};
use crate::store::Store;

/// How long an external signer may take for one signature: a person may have to touch a token.
const SIGNER_PATIENCE: Duration = Duration::from_secs(120);

/// Builds and says what came out.
pub(super) fn run(arguments: &Build, context: &Context) -> Result<()> {
    let store = context.store()?;
    let signer = signer(arguments, context, &store)?;
    let network = if arguments.offline {
        Network::Offline
    } else {
        Network::Online
    };
    let order = Order {
        workspace: context.definitions()?,
        image: arguments.image.image.clone(),
        role: arguments.role.clone(),
        formats: arguments.format.clone(),
        output: arguments.output.clone(),
        cache: !arguments.no_cache,
        jobs: arguments.jobs.unwrap_or_else(processors),
        mirrors: context.global.mirror.clone(),
        access: Access {
            network,
            go_proxy: arguments.go_proxy.clone(),
            beside: None,
        },
    };
    let manifest = pipeline::build(&order, signer.as_ref(), &store, &context.progress)?;
    let place = order.output.join(&order.role);
    context.progress.line(&format!(
        "{} {} with root hash {}",
        manifest.role, manifest.version, manifest.root.hash
    ));
    for file in manifest
        .files
        .iter()
        .filter(|file| file.name.starts_with("disk."))
    {
        let stored = std::fs::metadata(place.join(&file.name)).map(|metadata| allocated(&metadata));
        let stored = stored.unwrap_or(file.size);
        context.progress.line(&format!(
            "  {}  {} ({} on disk)",
            place.join(&file.name).display(),
            bytes(file.size),
            bytes(stored)
        ));
        pipeline::check_budget(&order, file, &context.progress)?;
    }
    context.progress.total("built");
    if arguments.json {
        print_json(&manifest)
    } else {
        Ok(())
    }
}

/// What a sparse file takes.
fn allocated(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks() * 512
}

/// The signer that was asked for. None: kimage's own development key, made once per store, with a warning.
pub(super) fn signer(arguments: &Build, context: &Context, store: &Store) -> Result<Box<dyn Signer>> {
    Ok(match (&arguments.keys, &arguments.signer) {
        (Some(folder), _) => Box::new(FileSigner::load(folder)?),
        (None, Some(program)) => Box::new(CommandSigner::new(program, &[], SIGNER_PATIENCE)?),
        (None, None) => Box::new(development_signer(store.root(), &context.progress)?),
    })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// The formats of the command line are those of the pipeline.
impl clap::ValueEnum for DiskFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Raw => {
                clap::builder::PossibleValue::new("raw").help("disk.raw: the disk itself; always made")
            }
            Self::Qcow2 => clap::builder::PossibleValue::new("qcow2")
                .help("disk.qcow2: QEMU, libvirt, OpenStack, Proxmox"),
        })
    }
}
