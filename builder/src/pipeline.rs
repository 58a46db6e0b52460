//! The build, as the sequence of its stages: each step turns what the step before made into the next thing.

mod disks;
pub mod rebuild;
mod unchanged;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kimage_roles::slot::Slot;

use crate::components::{self, Access, BuiltComponent, Means};
use crate::definition::{self, Definition};
use crate::digest::Digest;
pub use crate::disk::Format as DiskFormat;
use crate::failure::{ExitCode, Failure};
use crate::inputs;
use crate::lock::{self, Lock};
use crate::partitions::root::{self, SealedRoot};
use crate::partitions::squashfs::{Ahead, BlockCache};
use crate::partitions::{boot, uki::Uki};
use crate::progress::Progress;
use crate::release::bill::{self, Bill};
use crate::release::folder::Staging;
use crate::release::manifest::{self, FileRecord, Manifest};
use crate::release::pcr::Pcr11;
use crate::release::{self, names};
use crate::sign::{Signer, authenticode, keys, ovmf_vars};
use crate::store::Store;
use crate::tree::{self, Assembled, Baked, Entry, TreePath, Workshop};
use disks::Disks;
use unchanged::Key;

/// Compressed blocks of earlier images, in the store's caches.
const BLOCKS: &str = "blocks";
/// Bytes that they may have: some ten images.
const BLOCKS_LIMIT: u64 = 3 << 30;
/// Compressed blocks of components. No stream of images pushes them out.
const COMPONENT_BLOCKS: &str = "component-blocks";
/// Bytes that they may have: all roles' in some eight versions.
const COMPONENT_BLOCKS_LIMIT: u64 = 2 << 30;

/// What to build.
#[derive(Debug, Clone)]
pub struct Order {
    /// The folder of `images/` and `roles/`.
    pub workspace: PathBuf,
    /// Base image.
    pub image: String,
    /// Role.
    pub role: String,
    /// Formats besides raw, which is always made first.
    pub formats: Vec<DiskFormat>,
    /// Folder that gets the folder of the role.
    pub output: PathBuf,
    /// Reuse cached trees and blocks.
    pub cache: bool,
    /// Threads.
    pub jobs: usize,
    /// Mirrors that win over the definition's.
    pub mirrors: Vec<String>,
    /// Whether and how sources may be fetched.
    pub access: Access,
}

/// Builds one image and puts its release into `order.output`.
pub fn build(order: &Order, signer: &dyn Signer, store: &Store, progress: &Progress) -> Result<Manifest> {
    let (definition, lock) = prepare(order)?;
    let key = Key::new(order, &definition, &lock, signer.identity())?;
    if let Some(manifest) = key.find(order, store).filter(|_| order.cache) {
        progress.line(&format!(
            "nothing changed since {} was built",
            order.output.join(&order.role).display()
        ));
        return Ok(manifest);
    }
    // First, because fetching and compiling may take minutes: an output folder that can't be written to shows at once.
    let staging = Staging::begin(&order.output, &order.role)?;
    inputs::fetch(
        &definition.image,
        &lock,
        &order.role,
        &order.mirrors,
        order.access.network,
        store,
        progress,
    )?;
    let compilers = inputs::compilers(&definition.image, &lock, &order.mirrors, order.access.network)?;
    let means = Means {
        store,
        access: &order.access,
        compilers: &compilers,
        program: None,
        progress,
    };
    let built = components::build(&definition.components, &lock, &means)?;

    let baked = components::bake::bake(&definition.components, &built, lock.epoch)?;
    let caches = order.cache.then(|| Caches::open(store)).transpose()?;
    let assembled = assemble(order, &definition, &lock, store, baked, caches.as_ref(), progress)?;

    let scratch = store.scratch()?;
    let init = init(&built)?;
    let (sealed, initrd) = std::thread::scope(|scope| {
        // On another processor: sealing is not always work for all of them.
        let initrd = scope.spawn(|| boot::initrd(&definition, &assembled, &init));
        let blocks = caches.as_ref().map(|caches| &caches.blocks);
        let sealed = seal(order, &definition, &assembled, blocks, scratch.path(), progress);
        let initrd = initrd
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((sealed?, initrd?))
    })?;
    let slot = slot(&definition, &sealed)?;
    for pattern in &initrd.unmatched {
        let kernel = &assembled.kernel.version;
        progress.warn(&format!(
            "images/{}/image.toml: stage0-hardware: kernel {kernel} has no module `{pattern}`",
            order.image
        ));
    }
    let unsigned = boot::uki(&definition, &assembled, &sealed, &initrd)?;
    let signed = Signed::new(&unsigned, &assembled, signer)?;

    let content = disks::Content {
        sealed: &sealed,
        hash_tree_room: slot.hashes,
        signed: &signed,
        identity: signer.identity(),
        epoch: lock.epoch,
    };
    let disks = disks::write(&content, &order.formats, staging.path(), progress)?;
    let manifest = describe(
        order,
        &definition,
        &lock,
        &assembled,
        &built,
        &sealed,
        &signed,
        disks,
        signer,
    )?;
    let bill = bill::of(&lock, &order.role, &assembled, &built)?;
    let manifest = finish(manifest, &bill, &signed, signer, staging.path())?;
    staging.publish()?;
    key.remember(order, store)?;
    Ok(manifest)
}

/// The definition and the lock that answers it.
fn prepare(order: &Order) -> Result<(Definition, Lock)> {
    let image = definition::load_image(&order.workspace, &order.image)?;
    let definition = image.role(&order.role)?;
    let lock = lock::load_fresh(
        &image.image,
        &image.roles,
        &image.components,
        image.toolchains.as_ref(),
    )?;
    components::check_fresh(&definition.components, &lock).with_context(|| lock::stale(&image.image))?;
    Ok((definition, lock))
}

/// The caches of compressed blocks.
struct Caches {
    /// Those of components: one is compiled once and compressed once, however many images it goes into.
    components: BlockCache,
    /// All others. Finds the components' as well.
    blocks: BlockCache,
}

impl Caches {
    fn open(store: &Store) -> Result<Self> {
        let components = BlockCache::open(&store.cache(COMPONENT_BLOCKS)?, COMPONENT_BLOCKS_LIMIT)?;
        let blocks = BlockCache::open(&store.cache(BLOCKS)?, BLOCKS_LIMIT)?.reading(&components);
        Ok(Self { components, blocks })
    }
}

/// The root filesystem. While packages are unpacked and their scripts run, one after the other, the other processors
/// compress what is known already: components, then files of packages.
fn assemble(
    order: &Order,
    definition: &Definition,
    lock: &Lock,
    store: &Store,
    baked: Baked,
    caches: Option<&Caches>,
    progress: &Progress,
) -> Result<Assembled> {
    let task = progress.task("assemble the root filesystem", None);
    let format = root::options(&definition.image.manifest.root, order.jobs);
    let ahead = caches.map(|caches| (Ahead::start(&format, progress), caches));
    let foreseen = |files: &[(TreePath, Entry)]| {
        if let Some((ahead, caches)) = &ahead {
            ahead.add(files.iter().map(|(path, entry)| (path, entry)), &caches.blocks);
        }
    };
    if let Some((ahead, caches)) = &ahead {
        let files = baked.files.iter().map(|(path, entry)| (path, entry));
        ahead.add(files, &caches.components);
    }
    let options = tree::Options {
        cache: order.cache,
        workshop: Workshop {
            program: None,
            jobs: order.jobs,
            foreseen: Some(&foreseen),
        },
    };
    let assembled = tree::assemble(definition, lock, store, baked, progress, &options)?;
    task.done();
    if let Some((ahead, _)) = ahead {
        ahead.finish();
    }
    Ok(assembled)
}

fn seal(
    order: &Order,
    definition: &Definition,
    assembled: &Assembled,
    cache: Option<&BlockCache>,
    scratch: &Path,
    progress: &Progress,
) -> Result<SealedRoot> {
    let task = progress.task("write and seal the root filesystem", None);
    let sealed = root::seal(
        &assembled.tree,
        &definition.image.manifest.root,
        cache,
        scratch,
        order.jobs,
        progress,
    )?;
    task.done();
    Ok(sealed)
}

/// The slot that machines will have for this role.
fn slot(definition: &Definition, sealed: &SealedRoot) -> Result<Slot> {
    let role = &definition.role;
    let declared = role.manifest.root_size_mib;
    if let Some(mib) = declared
        && sealed.size > u64::from(mib) << 20
    {
        let message = format!(
            "roles/{}/role.toml: root-size-mib is {mib}, and the root filesystem has {} MiB",
            role.name,
            sealed.size.div_ceil(1 << 20)
        );
        let hint =
            "declare more, with room for later versions; machines that run already keep their partitions";
        return Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
    }
    Ok(Slot::new(sealed.size, declared))
}

/// The stage 0 program among the components.
fn init(built: &[BuiltComponent]) -> Result<Vec<u8>> {
    let file = built
        .iter()
        .flat_map(|component| &component.files)
        .find(|file| file.path == boot::INIT_PATH);
    let file = file.with_context(|| format!("no component of the image installs {}", boot::INIT_PATH))?;
    std::fs::read(&file.source).with_context(|| format!("read {}", file.source.display()))
}

/// The signed EFI programs.
struct Signed {
    uki: Vec<u8>,
    boot_loader: Vec<u8>,
    version: String,
    command_line: String,
}

impl Signed {
    fn new(unsigned: &boot::UnsignedUki, assembled: &Assembled, signer: &dyn Signer) -> Result<Self> {
        let boot_loader = assembled.kernel.boot_loader.read()?;
        Ok(Self {
            uki: authenticode::sign(&unsigned.bytes, signer).context("sign the UKI")?,
            boot_loader: authenticode::sign(&boot_loader, signer).context("sign systemd-boot")?,
            version: unsigned.version.clone(),
            command_line: unsigned.command_line.clone(),
        })
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the manifest is about everything that the build made"
)]
fn describe(
    order: &Order,
    definition: &Definition,
    lock: &Lock,
    assembled: &Assembled,
    built: &[BuiltComponent],
    sealed: &SealedRoot,
    signed: &Signed,
    disks: Disks,
    signer: &dyn Signer,
) -> Result<Manifest> {
    let identity = signer.identity();
    let uki = Uki::parse(&signed.uki).context("parse the signed UKI")?;
    let lock_file = definition.image.folder.join(lock::FILE_NAME);
    let debug = &definition.image.manifest.debug;
    Ok(Manifest {
        schema: Manifest::SCHEMA,
        kimage: env!("CARGO_PKG_VERSION").to_owned(),
        image: order.image.clone(),
        role: order.role.clone(),
        version: signed.version.clone(),
        architecture: definition.image.manifest.archive.architecture.clone(),
        epoch: lock.epoch,
        lock: Digest::of_file(&lock_file)
            .with_context(|| format!("read {}", lock_file.display()))?
            .0,
        keys: manifest::Keys {
            development: identity.development,
            platform_key: Digest::of(&identity.platform_key),
            key_exchange_key: Digest::of(&identity.key_exchange_key),
            database: Digest::of(&identity.database),
            release: Digest::from_bytes(identity.release),
        },
        root: manifest::Root {
            hash: sealed.root_hash,
            salt: sealed.salt,
            size: sealed.size,
            sha256: sealed.sha256,
            entries: assembled.tree.entries().len() as u64,
        },
        kernel: manifest::Kernel {
            version: assembled.kernel.version.clone(),
            command_line: signed.command_line.clone(),
            authenticode: authenticode::digest(&signed.uki)?,
            pcr11: Pcr11::expected(&uki)?,
        },
        partitions: disks.partitions,
        components: built
            .iter()
            .map(|component| manifest::Component {
                name: component.name.clone(),
                version: component.version.clone(),
                compiler: component.compiler.clone(),
            })
            .collect(),
        packages: u32::try_from(assembled.packages.len())?,
        debug: if debug.serial_login {
            vec![tree::console::SERIAL_LOGIN.to_owned()]
        } else {
            Vec::new()
        },
        files: disks.files,
    })
}

/// The files beside the disk, and the documents about all of them.
fn finish(
    mut manifest: Manifest,
    bill: &Bill,
    signed: &Signed,
    signer: &dyn Signer,
    folder: &Path,
) -> Result<Manifest> {
    let identity = signer.identity();
    let files: [(&str, Vec<u8>); 4] = [
        (names::UKI, signed.uki.clone()),
        (names::OVMF_VARS, ovmf_vars::enrolled(identity)?),
        (
            names::RELEASE_KEY,
            keys::release_public_pem(&identity.release).into_bytes(),
        ),
        (
            names::DATABASE_CERTIFICATE,
            keys::certificate_pem(&identity.database).into_bytes(),
        ),
    ];
    for (name, bytes) in &files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        manifest.files.push(FileRecord::of_bytes(name, bytes));
    }
    release::write(folder, manifest, bill, signer)
}

/// Warns when a compressed disk is larger than the role's budget.
pub fn check_budget(order: &Order, file: &FileRecord, progress: &Progress) -> Result<()> {
    let definition = definition::load(&order.workspace, &order.image, &order.role)?;
    let budget = definition.role.manifest.budget.image_mb;
    let megabytes = file.size / 1_000_000;
    if file.name == DiskFormat::Qcow2.file_name() && megabytes > budget {
        let role = &order.role;
        progress.warn(&format!(
            "{} has {megabytes} MB, the budget of role {role} is {budget} MB",
            file.name
        ));
    }
    Ok(())
}
