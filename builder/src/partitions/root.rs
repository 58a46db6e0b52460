//! The root filesystem, sealed: squashfs, its hash tree, and the one hash that stands for both.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::squashfs::{self, BlockCache};
use super::verity;
use crate::definition::image::RootFilesystem;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::tree::Tree;

/// What the disk carries of the root.
#[derive(Debug, Clone)]
pub struct SealedRoot {
    /// The squashfs.
    pub filesystem: PathBuf,
    /// Its bytes, whole blocks of 4096.
    pub size: u64,
    /// Digest of the squashfs.
    pub sha256: Digest,
    /// dm-verity superblock and hash tree.
    pub hash_tree: PathBuf,
    /// dm-verity root hash.
    pub root_hash: Digest,
    /// dm-verity salt.
    pub salt: Digest,
}

/// How a root of this `format` is written with `jobs` threads.
pub fn options(format: &RootFilesystem, jobs: usize) -> squashfs::Options {
    squashfs::Options {
        block_size: format.block_size,
        level: format.compression_level,
        threads: jobs,
    }
}

/// Writes both into `folder`. Salt and UUID follow from the squashfs, so equal trees have equal hashes.
pub fn seal(
    tree: &Tree,
    format: &RootFilesystem,
    cache: Option<&BlockCache>,
    folder: &Path,
    jobs: usize,
    progress: &Progress,
) -> Result<SealedRoot> {
    let (filesystem, hash_tree) = (folder.join("root.squashfs"), folder.join("root.verity"));
    let create = |path: &Path| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path);
        file.with_context(|| format!("create {}", path.display()))
    };
    let mut data = create(&filesystem)?;
    squashfs::write(tree, &options(format, jobs), cache, &mut data, progress)
        .context("write the root filesystem")?;
    data.seek(SeekFrom::Start(0))?;
    let (sha256, size) = Digest::of_reader(&mut data)?;
    data.seek(SeekFrom::Start(0))?;
    let salt = verity::derive_salt(&sha256);
    let mut out = create(&hash_tree)?;
    let verity = verity::format(&mut data, salt, verity::derive_uuid(&sha256), &mut out, jobs)
        .context("write the hash tree")?;
    let root_hash = Digest::from_bytes(verity.root_hash);
    Ok(SealedRoot {
        filesystem,
        size,
        sha256,
        hash_tree,
        root_hash,
        salt: Digest::from_bytes(salt),
    })
}
