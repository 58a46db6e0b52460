//! The content-addressed store: everything kimage has fetched or built, named by digest or by key.
//! (Skeleton: see the signatures.)

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::digest::Digest;

/// A folder that many builds share. Blobs are named by their digest; artifacts (folders) by the key of what made
/// them. Everything appears by rename: a killed run leaves nothing that looks finished.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, creating it where absent.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blob's path when the store holds it and its bytes still match (checked once per process; a damaged blob
    /// is removed and counts as absent).
    pub fn blob(&self, _digest: &Digest) -> Result<Option<PathBuf>> {
        anyhow::bail!("skeleton")
    }

    /// Puts `bytes` in as a blob.
    pub fn put(&self, _bytes: &[u8]) -> Result<(Digest, PathBuf)> {
        anyhow::bail!("skeleton")
    }

    /// The finished artifact folder of `kind` for `key`, if there is one.
    pub fn artifact(&self, _kind: &str, _key: &Digest) -> Option<PathBuf> {
        None
    }

    /// The artifact folder of `kind` for `key`, made by `build` in a scratch folder when absent. Two processes that
    /// want the same artifact build it once: the second waits for the first.
    pub fn artifact_or_build(
        &self,
        _kind: &str,
        _key: &Digest,
        _build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        anyhow::bail!("skeleton")
    }

    /// Drops an artifact (`--no-cache`).
    pub fn forget_artifact(&self, _kind: &str, _key: &Digest) -> Result<()> {
        anyhow::bail!("skeleton")
    }

    /// A folder for temporary files on the store's filesystem, removed on drop; what a killed run left is removed
    /// by the next one.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        anyhow::bail!("skeleton")
    }

    /// A lasting folder for other programs' caches (Go's module and build cache).
    pub fn cache(&self, _name: &str) -> Result<PathBuf> {
        anyhow::bail!("skeleton")
    }
}
