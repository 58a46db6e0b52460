//! The build, as the sequence of its stages: each step turns what the step before made into the next thing.

pub mod rebuild;
mod unchanged;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kimage_roles::slot::Slot;

use crate::components::{self, Access, BuiltComponent};
use crate::definition::{self, Definition};
use crate::digest::Digest;
use crate::disk::{self, Content as DiskContent, Disk, qcow2};
use crate::failure::{ExitCode, Failure};
use crate::inputs;
use crate::lock::{self, Lock};
use crate::partitions::esp::EspFile;
use crate::partitions::root::{self, SealedRoot};
use crate::partitions::squashfs::BlockCache;
use crate::partitions::{boot, uki::Uki};
use crate::progress::Progress;
use crate::release::bill::{self, Bill};
use crate::release::folder::Staging;
use crate::release::manifest::{self, FileRecord, Manifest};
use crate::release::pcr::Pcr11;
use crate::release::{self, names};
use crate::sign::{Signer, authenticode, keys, ovmf_vars};
use crate::store::Store;
use crate::tree::{self, Assembled, Workshop};
use unchanged::Key;

/// Bytes of compressed blocks that the store keeps: some ten images.
const BLOCK_CACHE: u64 = 3 << 30;

/// A disk format of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFormat {
    /// `disk.raw`
    Raw,
    /// `disk.qcow2`
    Qcow2,
}

impl DiskFormat {
    /// Its file in the release folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "disk.raw",
            Self::Qcow2 => "disk.qcow2",
        }
    }
}

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
    let key = Key::new(order, &definition, &lock, signer.identity(), store)?;
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
    let built = components::build(&definition.components, &lock, store, &order.access, progress)?;

    let task = progress.task("assemble the root filesystem", None);
    let baked = tree::bake::bake(&definition.components, &built, lock.epoch)?;
    let options = tree::Options {
        cache: order.cache,
        workshop: Workshop {
            program: None,
            jobs: order.jobs,
        },
    };
    let assembled = tree::assemble(&definition, &lock, store, baked, progress, &options)?;
    task.done();

    let scratch = store.scratch()?;
    let sealed = seal(order, &definition, &assembled, store, scratch.path(), progress)?;
    let slot = slot(&definition, &sealed)?;
    let unsigned = boot::uki(&definition, &assembled, &sealed, &init(&built)?)?;
    for pattern in &unsigned.unmatched {
        let kernel = &assembled.kernel.version;
        progress.warn(&format!(
            "images/{}/image.toml: stage0-hardware: kernel {kernel} has no module `{pattern}`",
            order.image
        ));
    }
    let signed = Signed::new(&unsigned, &assembled, signer)?;

    let disk = write_disks(
        order,
        &lock,
        &sealed,
        slot.hashes,
        &signed,
        signer,
        staging.path(),
        progress,
    )?;
    let manifest = describe(
        order,
        &definition,
        &lock,
        &assembled,
        &built,
        &sealed,
        &signed,
        &disk,
        signer,
    )?;
    let bill = bill::of(&lock, &order.role, &assembled, &built)?;
    let manifest = finish(order, manifest, &bill, &signed, signer, staging.path())?;
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
    Ok((definition, lock))
}

fn seal(
    order: &Order,
    definition: &Definition,
    assembled: &Assembled,
    store: &Store,
    scratch: &Path,
    progress: &Progress,
) -> Result<SealedRoot> {
    let cache = order
        .cache
        .then(|| BlockCache::open(&store.cache("blocks")?, BLOCK_CACHE))
        .transpose()?;
    let task = progress.task("write and seal the root filesystem", None);
    let sealed = root::seal(
        &assembled.tree,
        &definition.image.manifest.root,
        cache.as_ref(),
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
    reason = "the disk holds everything that the build made"
)]
fn write_disks(
    order: &Order,
    lock: &Lock,
    sealed: &SealedRoot,
    hash_tree_room: u64,
    signed: &Signed,
    signer: &dyn Signer,
    folder: &Path,
    progress: &Progress,
) -> Result<Disk> {
    let uki_path = format!("EFI/Linux/kimage_{}+3.efi", signed.version);
    let mut esp = vec![
        EspFile {
            path: "EFI/BOOT/BOOTX64.EFI",
            data: &signed.boot_loader,
        },
        EspFile {
            path: "EFI/systemd/systemd-bootx64.efi",
            data: &signed.boot_loader,
        },
        EspFile {
            path: &uki_path,
            data: &signed.uki,
        },
        EspFile {
            path: "loader/loader.conf",
            data: boot::LOADER_CONFIGURATION,
        },
        EspFile {
            path: "loader/entries.srel",
            data: b"type1\n",
        },
    ];
    if let Some(enrolment) = &signer.identity().enrolment {
        esp.push(EspFile {
            path: "loader/keys/auto/PK.auth",
            data: &enrolment.platform_key,
        });
        esp.push(EspFile {
            path: "loader/keys/auto/KEK.auth",
            data: &enrolment.key_exchange_key,
        });
        esp.push(EspFile {
            path: "loader/keys/auto/db.auth",
            data: &enrolment.database,
        });
    }
    let content = DiskContent {
        esp: &esp,
        epoch: i64::from(lock.epoch),
        root: &sealed.filesystem,
        verity: &sealed.hash_tree,
        hash_tree_room,
        root_hash: &sealed.root_hash,
    };
    let raw = folder.join(DiskFormat::Raw.file_name());
    let task = progress.task("write the disk", None);
    let disk = disk::assemble(&content, &raw)?;
    task.done();
    if order.formats.contains(&DiskFormat::Qcow2) {
        let task = progress.task("write disk.qcow2", None);
        qcow2::write(&raw, &folder.join(DiskFormat::Qcow2.file_name()))?;
        task.done();
    }
    Ok(disk)
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
    disk: &Disk,
    signer: &dyn Signer,
) -> Result<Manifest> {
    let identity = signer.identity();
    let uki = Uki::parse(&signed.uki).context("parse the signed UKI")?;
    let lock_file = definition.image.folder.join(lock::FILE_NAME);
    let mut partitions = Vec::new();
    let raw = File::open(&disk.path)?;
    for partition in &disk.partitions {
        partitions.push(manifest::Partition {
            name: partition.name.clone(),
            type_uuid: partition.kind.guid().to_string(),
            uuid: partition.guid.to_string(),
            offset: partition.start,
            size: partition.size,
            sha256: disk::sparse::digest(&raw, partition.start, partition.size)?,
        });
    }
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
        partitions,
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
            vec!["serial-login".to_owned()]
        } else {
            Vec::new()
        },
        files: Vec::new(),
    })
}

/// The files beside the disk, and the documents about all of them.
fn finish(
    order: &Order,
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
    let mut formats = order.formats.clone();
    formats.push(DiskFormat::Raw);
    formats.sort();
    formats.dedup();
    for format in formats {
        manifest
            .files
            .push(FileRecord::of_file(folder, format.file_name())?);
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
