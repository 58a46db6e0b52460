//! The disk: partition table, boot partition and sealed root in one sparse raw file, and other formats of it.

mod format;
pub mod gpt;
pub mod qcow2;
pub mod sparse;

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ring::hmac;

use crate::digest::Digest;
use crate::partitions::esp::{self, EspFile, Parameters};
use crate::partitions::guid::Guid;
pub use format::Format;
use gpt::{Partition, PartitionType};

/// What the names of files begin with that are written beside their place.
pub(crate) const BESIDE: &str = ".kimage-";

/// Alignment of partitions and of the disk's size, bytes.
pub const ALIGNMENT: u64 = 1 << 20;

/// What stands on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// Files of the boot partition.
    pub esp: &'a [EspFile<'a>],
    /// Time of those files, seconds since 1970-01-01 UTC.
    pub epoch: i64,
    /// The root filesystem.
    pub root: &'a Path,
    /// Its dm-verity superblock and hash tree.
    pub verity: &'a Path,
    /// Length that the hash tree's partition has at least, bytes: a later version's tree may be larger.
    pub hash_tree_room: u64,
    /// Root of that hash tree: it names the partitions.
    pub root_hash: &'a Digest,
}

/// A finished raw disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 1 MiB.
    pub size: u64,
    /// GUID of the partition table.
    pub guid: Guid,
    /// In the order on the disk: `esp`, `root-a-verity`, `root-a`.
    pub partitions: Vec<Partition>,
}

/// 32 bytes that follow from the root hash and `label`: identifiers that differ from image to image and are the same
/// in every build of one image.
pub fn derived(root_hash: &Digest, label: &str) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, root_hash.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hmac::sign(&key, label.as_bytes()).as_ref());
    bytes
}

/// The GUID that follows from the root hash and `label`.
pub fn derived_guid(root_hash: &Digest, label: &str) -> Guid {
    let [bytes @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = derived(root_hash, label);
    Guid::derived(bytes)
}

/// The boot partition's parameters for the image with `root_hash`.
pub fn esp_parameters(root_hash: &Digest, epoch: i64) -> Parameters {
    let [a, b, c, d, ..] = derived(root_hash, "esp-volume-id");
    Parameters {
        size: esp::SIZE,
        volume_id: u32::from_le_bytes([a, b, c, d]),
        epoch,
    }
}

/// The partitions of an image: `root` and `verity` are lengths in bytes. By the Discoverable Partitions Specification
/// the first half of the root hash is the root partition's UUID, the second half that of its hash tree.
pub fn layout(root_hash: &Digest, root: u64, verity: u64) -> Vec<Partition> {
    let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = *root_hash.as_bytes();
    let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, second @ ..] = *root_hash.as_bytes();
    let mut start = ALIGNMENT;
    let mut partition = |name: &str, kind, guid, size: u64, read_only| {
        let size = size.max(1).next_multiple_of(ALIGNMENT);
        let partition = Partition {
            name: name.to_owned(),
            kind,
            guid,
            start,
            size,
            read_only,
        };
        start += size;
        partition
    };
    vec![
        partition(
            "esp",
            PartitionType::Esp,
            derived_guid(root_hash, "esp"),
            esp::SIZE,
            false,
        ),
        partition(
            "root-a-verity",
            PartitionType::RootVerity,
            Guid::from_bytes(second),
            verity,
            true,
        ),
        partition("root-a", PartitionType::Root, Guid::from_bytes(first), root, true),
    ]
}

/// Writes the raw disk to `out`. It appears there finished or not at all; whoever needs it to outlive a power cut syncs
/// it.
pub fn assemble(content: &Content<'_>, out: &Path) -> Result<Disk> {
    let length = |path: &Path| {
        path.metadata()
            .map(|data| data.len())
            .with_context(|| format!("{}", path.display()))
    };
    let (root, verity) = (length(content.root)?, length(content.verity)?);
    ensure!(
        root > 0 && verity > 0,
        "root filesystem or its hash tree is empty"
    );
    let partitions = layout(content.root_hash, root, verity.max(content.hash_tree_room));
    let end = partitions.last().map_or(ALIGNMENT, |last| last.start + last.size);
    let disk = Disk {
        path: out.to_owned(),
        size: end + ALIGNMENT,
        guid: derived_guid(content.root_hash, "disk-uuid"),
        partitions,
    };
    write_beside(out, |file| {
        file.set_len(disk.size).context("set the disk's length")?;
        gpt::write(file, disk.size, disk.guid, &disk.partitions)?;
        for partition in &disk.partitions {
            let source = match partition.kind {
                PartitionType::Esp => {
                    let parameters = esp_parameters(content.root_hash, content.epoch);
                    esp::write(file, partition.start, &parameters, content.esp)?;
                    continue;
                }
                PartitionType::Root => content.root,
                PartitionType::RootVerity => content.verity,
            };
            let from = File::open(source).with_context(|| format!("open {}", source.display()))?;
            sparse::copy(&from, file, partition.start)
                .with_context(|| format!("copy {}", source.display()))?;
        }
        Ok(())
    })?;
    Ok(disk)
}

/// Fills a new file beside `out` and gives it the name `out`.
pub(crate) fn write_beside(out: &Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let context = || format!("write {}", out.display());
    let file = tempfile::Builder::new()
        .prefix(BESIDE)
        .tempfile_in(folder)
        .with_context(context)?;
    fill(file.as_file()).with_context(context)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))
        .with_context(context)?;
    file.persist(out).with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_types_and_identifiers_follow_from_the_root_hash() {
        let hash: Digest = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210"
            .parse()
            .unwrap();
        let partitions = layout(&hash, 3 << 20, 4097);
        assert_eq!(
            partitions[2].guid.to_string(),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
        assert_eq!(
            partitions[1].guid.to_string(),
            "01234567-89ab-cdef-fedc-ba9876543210"
        );
        let places: Vec<_> = partitions
            .iter()
            .map(|partition| (partition.start >> 20, partition.size >> 20))
            .collect();
        assert_eq!(places, [(1, 256), (257, 1), (258, 3)]);
        assert_ne!(derived_guid(&hash, "esp"), derived_guid(&hash, "disk-uuid"));
        assert_ne!(derived(&hash, "esp"), derived(&Digest::of(b""), "esp"));
    }
}
