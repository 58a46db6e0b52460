//! `[registry]`: pulls a container image by digest. Every byte is checked against a digest that the definition's one
//! leads to, so the registry and what lies between need no trust.
//!
//! Protocol: OCI distribution specification 1.1 (pull); tokens as registries hand them to anonymous clients.

mod client;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{ImageLayer, Means, OciImage, Products};
use crate::definition::component::Registry;
use crate::digest::Digest;
use crate::download::Network;
use crate::failure::{ExitCode, Failure};
use client::Client;

/// Pulls the image into `folder`.
pub(super) fn pull(registry: &Registry, means: &Means<'_>, folder: &Path) -> Result<Products> {
    if means.access.network == Network::Offline {
        let message = format!("image {} is not in the store", registry.reference);
        let hint = "run once online, or unpack a `kimage vendor` file into the store";
        return Err(Failure::new(ExitCode::Fetch, message).hint(hint).into());
    }
    let task = means.progress.task(&format!("pull {}", registry.reference), None);
    let mut client = Client::new(registry)?;
    let manifest = client.manifest(&registry.digest)?;
    let config: Config = parse(
        &client.document("blobs", &manifest.config)?,
        "the image's configuration",
    )?;
    let mut layers = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        task.message(&format!("layer {} of {}", index + 1, manifest.layers.len()));
        let file = PathBuf::from(format!("layer-{index}"));
        client.blob(layer, &folder.join(&file), &task)?;
        layers.push(ImageLayer {
            source: file,
            digest: layer.sha256()?,
        });
    }
    task.done();
    let run = config.config.unwrap_or_default();
    let image = OciImage {
        reference: registry.reference.clone(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        args: run.cmd.unwrap_or_default(),
        user: run.user.filter(|user| !user.is_empty()),
        env: run.env.unwrap_or_default(),
        working_directory: run.working_dir.filter(|folder| !folder.is_empty()),
        files: Vec::new(),
        layers,
    };
    Ok(Products {
        images: vec![image],
        ..Products::default()
    })
}

/// What an index or a manifest says of a blob.
#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index has `manifests`, a manifest has `config` and `layers`.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    config: Option<RunConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

impl Descriptor {
    fn sha256(&self) -> Result<Digest> {
        let hex = self
            .digest
            .strip_prefix("sha256:")
            .with_context(|| format!("digest `{}` is not SHA-256", self.digest))?;
        Ok(hex.parse()?)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).with_context(|| format!("read {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_digests_than_sha256_are_refused() {
        let descriptor = |digest: &str| Descriptor {
            digest: digest.into(),
            size: 0,
            platform: None,
        };
        assert!(descriptor("sha512:00").sha256().is_err() && descriptor("sha256:zz").sha256().is_err());
    }
}
