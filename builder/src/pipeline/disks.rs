//! The disk in all its formats, and their digests. The formats are written, hashed and brought to the disk at the same
//! time: that is most of what a build does when little has changed.

use std::fs::File;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result};

use super::{DiskFormat, Signed};
use crate::disk::{self, Disk, qcow2, sparse};
use crate::partitions::boot;
use crate::partitions::esp::EspFile;
use crate::partitions::root::SealedRoot;
use crate::progress::Progress;
use crate::release::manifest::{self, FileRecord};
use crate::sign::Identity;

/// What goes on the disk.
pub(super) struct Content<'a> {
    pub(super) sealed: &'a SealedRoot,
    /// Bytes that later hash trees may need.
    pub(super) hash_tree_room: u64,
    pub(super) signed: &'a Signed,
    pub(super) identity: &'a Identity,
    /// Time of the files in the boot partition, seconds since 1970.
    pub(super) epoch: u32,
}

/// What the manifest says of the disks.
pub(super) struct Disks {
    /// In the order on the disk.
    pub(super) partitions: Vec<manifest::Partition>,
    /// The disk in each format.
    pub(super) files: Vec<FileRecord>,
}

/// Writes the raw disk and `formats` of it into `folder`.
pub(super) fn write(
    content: &Content<'_>,
    formats: &[DiskFormat],
    folder: &Path,
    progress: &Progress,
) -> Result<Disks> {
    let raw = folder.join(DiskFormat::Raw.file_name());
    let task = progress.task("write the disk", None);
    let disk = raw_disk(content, &raw)?;
    task.done();
    thread::scope(|scope| {
        // The disk is slow and the rest is not: its part begins first, and the whole folder's sync finds little to do.
        let synced = scope.spawn(|| sync(&raw));
        let converted = formats.contains(&DiskFormat::Qcow2).then(|| {
            scope.spawn(|| {
                let task = progress.task("write disk.qcow2", None);
                let name = DiskFormat::Qcow2.file_name();
                let path = folder.join(name);
                qcow2::write(&raw, &path)?;
                let synced = scope.spawn(move || sync(&path));
                let record = FileRecord::of_file(folder, name)?;
                join(synced)?;
                task.done();
                Ok(record)
            })
        });
        let partitions = scope.spawn(|| partitions(&disk));
        let mut files = vec![FileRecord::of_file(folder, DiskFormat::Raw.file_name())?];
        files.extend(converted.map(join).transpose()?);
        join(synced)?;
        Ok(Disks {
            partitions: join(partitions)?,
            files,
        })
    })
}

fn join<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_data())
        .with_context(|| format!("sync {}", path.display()))
}

fn raw_disk(content: &Content<'_>, raw: &Path) -> Result<Disk> {
    let (sealed, signed) = (content.sealed, content.signed);
    let uki_path = format!("EFI/Linux/kimage_{}+3.efi", signed.version);
    let file = |path, data| EspFile { path, data };
    let mut esp = vec![
        file("EFI/BOOT/BOOTX64.EFI", &signed.boot_loader[..]),
        file("EFI/systemd/systemd-bootx64.efi", &signed.boot_loader),
        file(&uki_path, &signed.uki),
        file("loader/loader.conf", boot::LOADER_CONFIGURATION),
        file("loader/entries.srel", b"type1\n"),
    ];
    if let Some(enrolment) = &content.identity.enrolment {
        esp.push(file("loader/keys/auto/PK.auth", &enrolment.platform_key));
        esp.push(file("loader/keys/auto/KEK.auth", &enrolment.key_exchange_key));
        esp.push(file("loader/keys/auto/db.auth", &enrolment.database));
    }
    let content = disk::Content {
        esp: &esp,
        epoch: i64::from(content.epoch),
        root: &sealed.filesystem,
        verity: &sealed.hash_tree,
        hash_tree_room: content.hash_tree_room,
        root_hash: &sealed.root_hash,
    };
    disk::assemble(&content, raw)
}

/// The partitions as they stand on the finished disk.
fn partitions(disk: &Disk) -> Result<Vec<manifest::Partition>> {
    let context = || format!("read {}", disk.path.display());
    let raw = File::open(&disk.path).with_context(context)?;
    let partition = |partition: &disk::gpt::Partition| {
        Ok(manifest::Partition {
            name: partition.name.clone(),
            type_uuid: partition.kind.guid().to_string(),
            uuid: partition.guid.to_string(),
            offset: partition.start,
            size: partition.size,
            sha256: sparse::digest(&raw, partition.start, partition.size).with_context(context)?,
        })
    };
    disk.partitions.iter().map(partition).collect()
}
