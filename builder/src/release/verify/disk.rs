//! The raw disk: partition table, hash tree and root filesystem.

use std::fs::File;
use std::io;

use anyhow::{Context, Result, bail, ensure};

use super::files::digests;
use super::findings::{Findings, same};
use super::window::Window;
use super::{Subject, boot, debug, documents};
use crate::disk::gpt::{Gpt, Partition};
use crate::disk::{derived_guid, layout, sparse};
use crate::partitions::squashfs::{Node, Reader};
use crate::partitions::verity;
use crate::release::contents::{BOOT, HASH_TREE, ROOT};

/// Checks everything that the disk says.
pub(super) fn check(subject: &Subject<'_>, disk: &File, uki: Option<&[u8]>, findings: &mut Findings) {
    let gpt = Gpt::read(disk).map(|gpt| {
        let names: Vec<&str> = gpt
            .partitions
            .iter()
            .map(|partition| partition.name.as_str())
            .collect();
        let detail = format!("both copies hold {}", names.join(", "));
        (gpt, detail)
    });
    let Some(gpt) = findings.claim("partition table", gpt) else {
        return;
    };
    findings.claim("partition table uuids", identifiers(subject, &gpt));
    findings.claim("partition gaps", gaps(disk, &gpt));
    let places: Vec<(u64, u64)> = gpt
        .partitions
        .iter()
        .map(|partition| (partition.start, partition.size))
        .collect();
    for (number, (partition, found)) in gpt.partitions.iter().zip(digests(disk, &places)).enumerate() {
        let outcome = found.and_then(|found| {
            let stated = subject
                .manifest
                .partitions
                .get(number)
                .context("the manifest does not list it")?;
            same("name", stated.name.as_str(), partition.name.as_str())?;
            same(
                "type",
                stated.type_uuid.as_str(),
                partition.kind.guid().to_string().as_str(),
            )?;
            same("uuid", stated.uuid.as_str(), partition.guid.to_string().as_str())?;
            same("offset", stated.offset, partition.start)?;
            same("size", stated.size, partition.size)?;
            same("sha256", stated.sha256, found)?;
            Ok((
                (),
                format!("{} at byte {}, sha256 {found}", partition.guid, partition.start),
            ))
        });
        findings.claim(&format!("partition {}", partition.name), outcome);
    }
    if let (Ok(root), Ok(tree)) = (gpt.partition(ROOT), gpt.partition(HASH_TREE)) {
        findings.claim("verity", sealed(subject, disk, root, tree));
        filesystem(subject, disk, root, findings);
    }
    if let Ok(place) = gpt.partition(BOOT) {
        boot::partition(subject, disk, place, uki, findings);
    }
}

/// What belongs to no partition belongs to nobody, so nothing is there.
fn gaps(disk: &File, gpt: &Gpt) -> Result<((), String)> {
    let size = disk.metadata().context("look at the disk")?.len();
    let gaps = gpt.gaps(size);
    for gap in &gaps {
        let nothing = sparse::is_zero(disk, gap.start, gap.end - gap.start).context("read the disk")?;
        ensure!(nothing, "bytes hide between {} and {}", gap.start, gap.end);
    }
    Ok((
        (),
        format!("{} outside tables and partitions, all zero", gaps.len()),
    ))
}

/// The root hash decides every UUID of the disk, and the lengths decide where everything lies.
fn identifiers(subject: &Subject<'_>, gpt: &Gpt) -> Result<((), String)> {
    let root = &subject.manifest.root;
    let (listed, stated) = (gpt.partitions.len(), subject.manifest.partitions.len());
    same("number of partitions", stated, listed)?;
    let tree = gpt.partition(HASH_TREE)?;
    ensure!(
        root.size <= 1 << 40,
        "the root filesystem cannot have {} bytes",
        root.size
    );
    for (expected, found) in layout(&root.hash, root.size, tree.size)
        .iter()
        .zip(&gpt.partitions)
    {
        ensure!(
            expected == found,
            "the root hash and lengths make {expected:?}, found {found:?}"
        );
    }
    same("disk uuid", derived_guid(&root.hash, "disk-uuid"), gpt.guid)?;
    Ok(((), "all follow from the root hash".to_owned()))
}

/// Every block of the root filesystem is vouched for by the root hash, and tree, salt and UUID follow from it.
fn sealed(subject: &Subject<'_>, disk: &File, root: &Partition, tree: &Partition) -> Result<((), String)> {
    let stated = &subject.manifest.root;
    ensure!(
        stated.size <= root.size,
        "root filesystem of {} bytes is larger than its partition",
        stated.size
    );
    let mut data = Window::new(disk, root.start, stated.size);
    let mut hashes = Window::new(disk, tree.start, tree.size);
    let superblock = verity::check(&mut data, &mut hashes, stated.hash.as_bytes(), subject.threads)?;
    same(
        "data blocks",
        stated.size / verity::BLOCK_SIZE,
        superblock.data_blocks,
    )?;
    let found = sparse::digest(disk, root.start, stated.size).context("read the root filesystem")?;
    same("sha256 of the root filesystem", stated.sha256, found)?;
    ensure!(
        superblock.salt == stated.salt.as_bytes(),
        "the salt in the superblock is not the manifest's"
    );
    ensure!(
        superblock.salt == verity::derive_salt(&found),
        "the salt does not follow from the root filesystem"
    );
    ensure!(
        superblock.uuid == verity::derive_uuid(&found),
        "the UUID does not follow from the root filesystem"
    );
    let used = verity::hash_bytes(superblock.data_blocks);
    for (partition, used, what) in [
        (root, stated.size, "the root filesystem"),
        (tree, used, "the hash tree"),
    ] {
        let rest = partition
            .size
            .checked_sub(used)
            .with_context(|| format!("{what} is larger than its partition"))?;
        let nothing = sparse::is_zero(disk, partition.start + used, rest).context("read the disk")?;
        ensure!(nothing, "bytes hide behind {what}");
    }
    Ok((
        (),
        format!(
            "{} blocks agree with root hash {}",
            superblock.data_blocks, stated.hash
        ),
    ))
}

/// Opens the root filesystem, reads every file, and checks what it says about itself.
fn filesystem(subject: &Subject<'_>, disk: &File, root: &Partition, findings: &mut Findings) {
    let opened = disk.try_clone().context("open disk.raw").and_then(|disk| {
        let reader = Reader::open(disk, root.start..root.start + root.size)?;
        let block = reader.block_size();
        Ok((reader, format!("squashfs with blocks of {block} bytes")))
    });
    let Some(reader) = findings.claim("root filesystem", opened) else {
        return;
    };
    findings.claim("root filesystem files", all_files(subject, &reader));
    findings.claim("role.json", documents::role(subject, &reader));
    findings.claim("debug switches", debug::check(subject, &reader));
    documents::packages(subject, &reader, findings);
}

fn all_files(subject: &Subject<'_>, reader: &Reader<File>) -> Result<((), String)> {
    let (mut entries, mut bytes) = (0u64, 0u64);
    for entry in reader.entries() {
        let (path, metadata) = entry?;
        entries += 1;
        let Node::File(content) = &metadata.kind else {
            continue;
        };
        let mut file = reader.file(content).with_context(|| format!("read {path}"))?;
        let read = io::copy(&mut file, &mut io::sink()).with_context(|| format!("read {path}"))?;
        if read != content.size() {
            bail!("{path} has {read} bytes, its inode says {}", content.size());
        }
        bytes += read;
    }
    same("number of entries", subject.manifest.root.entries, entries)?;
    Ok(((), format!("{entries} entries, {bytes} bytes, all readable")))
}
