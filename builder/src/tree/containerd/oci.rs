//! The JSON documents of an OCI image (image-spec 1.1) and the digest of its layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::Config;
use crate::digest::{Digest, Hasher};
use crate::tree::{Content, Entry, Kind, TreePath};

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// What the image is made of.
pub(super) struct Blobs {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    /// Digest of the uncompressed layer; with one layer also its diff id and chain id.
    pub(super) layer: Digest,
    /// Bytes of all files.
    pub(super) unpacked_size: u64,
}

/// Refuses what is not `host/path:tag`: containerd knows only full names.
pub(super) fn check_reference(reference: &str) -> Result<()> {
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let parts = || {
        let (name, tag) = reference.rsplit_once(':')?;
        let (host, path) = name.split_once('/')?;
        let host_name = host.split_once(':').map_or(host, |(name, _)| name);
        let full = host.contains(['.', ':']) || host == "localhost";
        let lower = !path.bytes().any(|byte| byte.is_ascii_uppercase());
        Some(full && lower && word(host_name) && word(tag) && path.split('/').all(word))
    };
    if parts() != Some(true) {
        bail!("`{reference}` is not a full OCI image name (`registry.example.org/path:tag`)");
    }
    Ok(())
}

/// Derives the documents; reads every file once.
pub(super) fn blobs(config: &Config, files: &BTreeMap<TreePath, Entry>, mtime: u32) -> Result<Blobs> {
    let (layer, layer_size) = layer(files, mtime)?;
    let unpacked_size = files
        .values()
        .map(|entry| {
            if let Kind::File { size, .. } = entry.kind {
                size
            } else {
                0
            }
        })
        .sum();
    let created = jiff::Timestamp::from_second(i64::from(mtime))
        .context("image time")?
        .to_string();
    let config = canonical(&json!({
        "architecture": "amd64",
        "config": run_config(config),
        "created": created,
        "history": [{"created": created, "created_by": "kimage"}],
        "os": "linux",
        "rootfs": {"diff_ids": [format!("sha256:{layer}")], "type": "layers"},
    }))?;
    let manifest = canonical(&json!({
        "config": {"digest": format!("sha256:{}", Digest::of(&config)), "mediaType": CONFIG_TYPE, "size": config.len()},
        "layers": [{"digest": format!("sha256:{layer}"), "mediaType": LAYER_TYPE, "size": layer_size}],
        "mediaType": MANIFEST_TYPE,
        "schemaVersion": 2,
    }))?;
    Ok(Blobs {
        config,
        manifest,
        layer,
        unpacked_size,
    })
}

fn run_config(config: &Config) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value, empty: bool| {
        if !empty {
            object.insert(key.to_owned(), value);
        }
    };
    set("Cmd", json!(config.command), config.command.is_empty());
    set(
        "Entrypoint",
        json!(config.entrypoint),
        config.entrypoint.is_empty(),
    );
    set("Env", json!(config.environment), config.environment.is_empty());
    set("Labels", json!(config.labels), config.labels.is_empty());
    set("User", json!(config.user), config.user.is_empty());
    set(
        "WorkingDir",
        json!(config.working_directory),
        config.working_directory.is_empty(),
    );
    Value::Object(object)
}

/// JSON without spaces and with sorted keys, whatever order `serde_json`'s features give its maps.
fn canonical(value: &Value) -> Result<Vec<u8>> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(object) => {
                let keys: BTreeMap<&String, Value> =
                    object.iter().map(|(key, value)| (key, sorted(value))).collect();
                Value::Object(
                    keys.into_iter()
                        .map(|(key, value)| (key.clone(), value))
                        .collect(),
                )
            }
            Value::Array(array) => Value::Array(array.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    serde_json::to_vec(&sorted(value)).context("write JSON")
}

/// Digest and size of the layer's tar stream, which is made only to be counted.
fn layer(files: &BTreeMap<TreePath, Entry>, mtime: u32) -> Result<(Digest, u64)> {
    let mut archive = tar::Builder::new(Hasher::new());
    archive.mode(tar::HeaderMode::Deterministic);
    for (path, entry) in files.iter().filter(|(path, _)| !path.parts().is_empty()) {
        append(&mut archive, path, entry, mtime).with_context(|| format!("layer file {path}"))?;
    }
    Ok(archive
        .into_inner()
        .context("end the layer")?
        .finish_with_length())
}

fn append(archive: &mut tar::Builder<Hasher>, path: &TreePath, entry: &Entry, mtime: u32) -> Result<()> {
    if !entry.xattrs.is_empty() {
        bail!("extended attributes are not possible in an OCI image made by kimage");
    }
    let mut header = tar::Header::new_gnu();
    header.set_mode(u32::from(entry.mode));
    header.set_uid(u64::from(entry.uid));
    header.set_gid(u64::from(entry.gid));
    header.set_mtime(u64::from(mtime));
    header.set_size(0);
    let name = host_path(path.to_bytes());
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            let name = host_path([path.to_bytes(), b"/".to_vec()].concat());
            archive.append_data(&mut header, name, io::empty())?;
        }
        Kind::File { content, size, .. } => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(*size);
            match content {
                Content::Bytes(bytes) => archive.append_data(&mut header, name, &bytes[..])?,
                Content::File(file) => {
                    let reader = File::open(file).with_context(|| format!("open {}", file.display()))?;
                    let mut reader = Counted { reader, count: 0 };
                    archive.append_data(&mut header, name, &mut reader)?;
                    if reader.count != *size {
                        bail!("{} has {} bytes, not {size}", file.display(), reader.count);
                    }
                }
            }
        }
        Kind::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, name, host_path(target.clone()))?;
        }
        Kind::CharacterDevice { .. } | Kind::Fifo => {
            bail!("only files, folders and links are possible in an OCI image")
        }
    }
    Ok(())
}

fn host_path(bytes: Vec<u8>) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

struct Counted<R> {
    reader: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
