//! The root filesystem, sealed: squashfs, its hash tree, and the one hash that stands for both.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::squashfs::{self, BlockCache};
use super::verity;
use crate::definition::image::RootFilesystem;
use crate::digest::{Digest, Hasher};
use crate::progress::Progress;
use crate::tree::{self, Tree};

/// What the disk carries of the root.
#[derive(Debug, Clone)]
pub struct SealedRoot {
    /// The squashfs.
    pub filesystem: PathBuf,
    /// Its bytes, whole blocks of 4096.
    pub size: u64,
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

/// What salt and UUID of the hash tree follow from: all that determines the bytes of the squashfs, so equal trees have
/// equal hashes. The squashfs itself would have to be read once more for it.
fn seed(tree: &Tree, format: &RootFilesystem) -> Digest {
    let mut hasher = Hasher::new();
    hasher
        .field(b"kimage root filesystem")
        .field(tree::fingerprint(tree).as_bytes())
        .field(&format.block_size.to_le_bytes())
        .field(&format.compression_level.to_le_bytes())
        .field(&squashfs::compressor_version().to_le_bytes());
    hasher.finish()
}

/// Writes both into `folder`.
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
    let written = squashfs::write(tree, &options(format, jobs), cache, &mut data, progress)
        .context("write the root filesystem")?;
    let seed = seed(tree, format);
    let salt = verity::derive_salt(&seed);
    let mut out = create(&hash_tree)?;
    let verity = verity::format(&mut data, salt, verity::derive_uuid(&seed), &mut out, jobs)
        .context("write the hash tree")?;
    let root_hash = Digest::from_bytes(verity.root_hash);
    Ok(SealedRoot {
        filesystem,
        size: written.bytes,
        hash_tree,
        root_hash,
        salt: Digest::from_bytes(salt),
    })
}
