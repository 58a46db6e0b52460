//! The packages that an image's lock names, for tests that look at a distribution's own files: from the store, and
//! fetched into it where they are absent.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kimage_builder::definition::{self, Image};
use kimage_builder::digest::Digest;
use kimage_builder::download::{self, Network};
use kimage_builder::inputs;
use kimage_builder::lock::{self, Lock, LockedPackage};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;

use crate::images::workspace;

/// An image's lock and the store that holds what it names.
pub struct Locked {
    image: Image,
    /// The lock.
    pub lock: Lock,
    /// The user's own store, as `kimage build` uses it.
    pub store: Store,
}

impl Locked {
    /// The lock of `image` (`ubuntu-24.04`).
    pub fn of(image: &str) -> Result<Self> {
        let image = definition::load_image(workspace(), image)?.image;
        let lock = lock::load(&image)?.with_context(|| format!("{} has no lock", image.name))?;
        let store = Store::open(&Store::default_root()?)?;
        Ok(Self { image, lock, store })
    }

    /// The package of this name.
    pub fn package(&self, name: &str) -> Result<&LockedPackage> {
        let found = self.lock.package.iter().find(|package| package.name == name);
        found.with_context(|| format!("the lock of {} has no package {name}", self.image.name))
    }

    /// The .debs of `packages`, in their order.
    pub fn debs(&self, packages: &[&LockedPackage]) -> Result<Vec<PathBuf>> {
        let mut absent = Vec::new();
        for package in packages {
            if self.store.blob(&package.sha256)?.is_none() {
                absent.push(package.sha256);
            }
        }
        if !absent.is_empty() {
            let roles: Vec<&str> = self
                .lock
                .request
                .iter()
                .filter_map(|request| request.role.as_deref())
                .collect();
            let mut requests = inputs::requests(&self.image, &self.lock, &roles, &[], Network::Online)?;
            requests.retain(|request| absent.contains(&request.digest));
            download::fetch(&requests, &self.store, Network::Online, &Progress::silent())?;
        }
        let blob = |package: &&LockedPackage| {
            let blob = self.store.blob(&package.sha256)?;
            blob.with_context(|| format!("{} is not in the store", package.name))
        };
        packages.iter().map(blob).collect()
    }

    /// A folder below `cache` with the content of these packages, unpacked by dpkg-deb; kept for later runs.
    pub fn unpacked(&self, names: &[&str], cache: &Path) -> Result<PathBuf> {
        let packages: Vec<&LockedPackage> = names
            .iter()
            .map(|name| self.package(name))
            .collect::<Result<_>>()?;
        let digests: String = packages
            .iter()
            .map(|package| package.sha256.to_string())
            .collect();
        let folder = cache.join(format!("packages-{}", Digest::of(digests.as_bytes())));
        if folder.exists() {
            return Ok(folder);
        }
        std::fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
        let scratch = tempfile::tempdir_in(cache).context("make a folder to unpack in")?;
        for deb in self.debs(&packages)? {
            let tool = Tool::new("dpkg-deb").inherit(&["PATH"]).arg("-x");
            tool.arg(deb).arg(scratch.path()).run()?;
        }
        // Two tests that unpack the same at once: either result will do.
        if std::fs::rename(scratch.path(), &folder).is_ok() {
            let _ = scratch.keep();
        }
        Ok(folder)
    }
}
