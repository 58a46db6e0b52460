//! What a built component is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::store::Store;

/// A component, ready for the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltComponent {
    /// Folder below `images/components`.
    pub name: String,
    /// What users call its version (`v1.36.3`).
    pub version: String,
    /// SPDX expression of the component's own code.
    pub licence: String,
    /// Files of the VM's root filesystem, owned by root.
    pub files: Vec<InstalledFile>,
    /// Symbolic links of the VM's root filesystem: absolute path and target as written.
    pub links: Vec<(String, String)>,
    /// Container images that the VM carries.
    pub images: Vec<OciImage>,
    /// Go modules that are linked into its files, sorted by path.
    pub go_modules: Vec<GoModule>,
    /// The compiler, where that is not one of the component's own modules (`rustc 1.95.0 (sha256:59807616e...)`).
    #[serde(default)]
    pub compiler: Option<String>,
}

/// A file and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledFile {
    /// Absolute path in the image.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// The bytes, in the store.
    pub source: PathBuf,
    /// Their number.
    pub size: u64,
    /// Their digest.
    pub digest: Digest,
}

/// A container image: configuration and content of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciImage {
    /// The name that pods ask for (`registry.k8s.io/coredns/coredns:v1.14.7`).
    pub reference: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    pub args: Vec<String>,
    /// `uid` or `uid:gid`; root where absent.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; `/` where absent.
    pub working_directory: Option<String>,
    /// Content of an image made here, owned by root.
    pub files: Vec<InstalledFile>,
    /// Content of an image pulled from a registry, the lowest first.
    pub layers: Vec<ImageLayer>,
}

/// A layer of a pulled image: a tar, plain or packed with gzip or zstd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The bytes, in the store.
    pub source: PathBuf,
    /// Their digest.
    pub digest: Digest,
}

/// A Go module inside a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GoModule {
    /// Module path.
    pub path: String,
    /// Version.
    pub version: String,
    /// `h1:` hash of its published content; empty where an overlay changed it.
    pub sum: String,
    /// An overlay replaced some of its packages.
    pub changed: bool,
    /// SPDX identifier, where its licence file is a well-known one.
    pub licence: Option<String>,
}

impl BuiltComponent {
    /// The digest of everything that it brings: each file's path, mode and bytes, links, images, what the bill of
    /// materials says of it. Where its bytes lie does not count.
    pub fn output(&self) -> Result<Digest> {
        let mut bare = self.clone();
        for (source, _) in bare.sources_mut() {
            source.clear();
        }
        let mut hasher = Hasher::new();
        hasher.field(b"kimage component output 1");
        hasher.field(&serde_json::to_vec(&bare).context("write a component's record")?);
        Ok(hasher.finish())
    }

    /// The digest of each file by its path; a file of a container image has the image's name before it.
    pub fn listing(&self) -> BTreeMap<String, Digest> {
        let files = self.files.iter().map(|file| (file.path.clone(), file.digest));
        let in_images = self.images.iter().flat_map(|image| {
            let files = image
                .files
                .iter()
                .map(|file| (format!("{}:{}", image.reference, file.path), file.digest));
            let layers = image
                .layers
                .iter()
                .enumerate()
                .map(|(index, layer)| (format!("{}:layer {index}", image.reference), layer.digest));
            files.chain(layers)
        });
        files.chain(in_images).collect()
    }

    /// Its files and those of its container images.
    pub(super) fn all_files(&self) -> impl Iterator<Item = &InstalledFile> {
        let in_images = self.images.iter().flat_map(|image| &image.files);
        self.files.iter().chain(in_images)
    }

    /// Where its bytes are, and what they hash to.
    fn sources(&self) -> impl Iterator<Item = (&Path, &Digest)> {
        let files = self.all_files();
        let layers = self.images.iter().flat_map(|image| &image.layers);
        files
            .map(|file| (file.source.as_path(), &file.digest))
            .chain(layers.map(|layer| (layer.source.as_path(), &layer.digest)))
    }

    pub(super) fn sources_mut(&mut self) -> Vec<(&mut PathBuf, Digest)> {
        let mut found = Vec::new();
        for file in &mut self.files {
            found.push((&mut file.source, file.digest));
        }
        for image in &mut self.images {
            for file in &mut image.files {
                found.push((&mut file.source, file.digest));
            }
            for layer in &mut image.layers {
                found.push((&mut layer.source, layer.digest));
            }
        }
        found
    }

    /// Makes sure that the bytes are those that the record says.
    ///
    /// # Errors
    /// Names the first file with other bytes.
    pub(super) fn check_bytes(&self, store: &Store) -> Result<()> {
        for (source, digest) in self.sources() {
            if !store.file_is(source, digest)? {
                bail!("`{}` does not hash to {digest}", source.display());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component() -> BuiltComponent {
        let file = InstalledFile {
            path: "/usr/bin/tool".into(),
            mode: 0o755,
            source: "0".into(),
            size: 4,
            digest: Digest::of(b"tool"),
        };
        BuiltComponent {
            name: "tool".into(),
            version: "v1".into(),
            licence: "MIT".into(),
            files: vec![file],
            links: Vec::new(),
            images: Vec::new(),
            go_modules: Vec::new(),
            compiler: None,
        }
    }

    #[test]
    fn the_output_is_what_comes_out_and_not_where_it_lies() {
        let one = component();
        let mut other = component();
        other.files[0].source = "/elsewhere/0".into();
        assert_eq!(one.output().unwrap(), other.output().unwrap());
        let changes: [fn(&mut BuiltComponent); 5] = [
            |built| built.files[0].mode = 0o4755,
            |built| built.files[0].path.push('2'),
            |built| built.files[0].digest = Digest::of(b"wolf"),
            |built| built.links.push(("/a".into(), "b".into())),
            |built| built.licence.push('x'),
        ];
        for change in changes {
            let mut changed = component();
            change(&mut changed);
            assert_ne!(one.output().unwrap(), changed.output().unwrap(), "{changed:?}");
        }
    }
}
