//! What a finished release holds, read back from its folder: packages and components from the bill of materials,
//! files from the root filesystem on `disk.raw`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::manifest::{Manifest, Partition};
use super::names;
use crate::disk::Format;
use crate::partitions::squashfs::Reader;

/// GPT name of the root filesystem's partition.
pub const ROOT: &str = "root-a";
/// GPT name of the hash tree's partition.
pub const HASH_TREE: &str = "root-a-verity";
/// GPT name of the boot partition.
pub const BOOT: &str = "esp";
/// The disk that the other formats are made from.
pub const RAW_DISK: &str = Format::Raw.file_name();

/// Larger bills of materials are refused, in bytes.
const LIMIT: u64 = 256 << 20;

/// The parts of an SPDX document that are read back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Materials {
    /// Version and architecture of each Debian package by name.
    pub packages: BTreeMap<String, BTreeSet<(String, String)>>,
    /// Version of each component by name.
    pub components: BTreeMap<String, String>,
    /// Go modules: path and version.
    pub go_modules: BTreeSet<(String, String)>,
    /// Package URLs of packages and modules.
    pub purls: BTreeSet<String>,
}

impl Materials {
    /// Number of Debian packages.
    pub fn package_count(&self) -> usize {
        self.packages.values().map(BTreeSet::len).sum()
    }

    /// Reads `sbom.spdx.json` of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(names::SPDX);
        let length = path
            .metadata()
            .with_context(|| format!("read {}", path.display()))?
            .len();
        anyhow::ensure!(length <= LIMIT, "{} has {length} bytes", path.display());
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("read {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let document: Document = serde_json::from_slice(bytes)?;
        let mut materials = Self::default();
        for package in document.packages {
            let purl = package
                .external_refs
                .into_iter()
                .next()
                .map(|reference| reference.reference_locator);
            let (name, version) = (package.name, package.version_info);
            if package.id.starts_with("SPDXRef-deb-") {
                let architecture = package.id.rsplit('-').next().unwrap_or_default().to_owned();
                materials
                    .packages
                    .entry(name)
                    .or_default()
                    .insert((version, architecture));
            } else if package.id.starts_with("SPDXRef-component-") {
                materials.components.insert(name, version);
            } else if package.id.starts_with("SPDXRef-go-") {
                materials.go_modules.insert((name, version));
            }
            materials.purls.extend(purl);
        }
        Ok(materials)
    }
}

#[derive(Deserialize)]
struct Document {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(default)]
    version_info: String,
    #[serde(default)]
    external_refs: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    reference_locator: String,
}

/// The partition of `manifest` with that name.
pub fn partition<'a>(manifest: &'a Manifest, name: &str) -> Result<&'a Partition> {
    let found = manifest
        .partitions
        .iter()
        .find(|partition| partition.name == name);
    found.with_context(|| format!("manifest.json lists no partition {name}"))
}

/// Opens the root filesystem where `manifest` says that it lies on `disk.raw` of `folder`.
pub fn root(folder: &Path, manifest: &Manifest) -> Result<Reader<File>> {
    let path = folder.join(RAW_DISK);
    let disk = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let root = partition(manifest, ROOT)?;
    let end = root
        .offset
        .checked_add(root.size)
        .context("partition root-a ends beyond all disks")?;
    Reader::open(disk, root.offset..end).with_context(|| format!("root filesystem of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_components_and_modules_are_told_apart() {
        let text = br#"{"packages": [
            {"SPDXID": "SPDXRef-Image", "name": "kimage-x"},
            {"SPDXID": "SPDXRef-deb-libc6-amd64", "name": "libc6", "versionInfo": "2.39",
             "externalRefs": [{"referenceLocator": "pkg:deb/ubuntu/libc6@2.39"}]},
            {"SPDXID": "SPDXRef-component-etcd", "name": "etcd", "versionInfo": "v3.6.0"},
            {"SPDXID": "SPDXRef-go-a-v1", "name": "a", "versionInfo": "v1"}]}"#;
        let materials = Materials::parse(text).unwrap();
        assert_eq!(materials.package_count(), 1);
        assert!(materials.packages["libc6"].contains(&("2.39".to_owned(), "amd64".to_owned())));
        assert_eq!(materials.components["etcd"], "v3.6.0");
        assert_eq!(materials.go_modules.len(), 1);
        assert_eq!(materials.purls.len(), 1);
        assert!(Materials::parse(b"{}").is_err());
    }
}
