//! `manifest.json`: what the release is, down to the digest of each partition. The one document that is signed.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::pcr::Pcr11;
use crate::digest::Digest;
use crate::disk::sparse;
use crate::failure::{ExitCode, Failure};

/// Version of the format.
const SCHEMA: u32 = 1;

/// Largest manifest that a reader accepts, in bytes.
const LIMIT: usize = 4 << 20;

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// Version of kimage that built it.
    pub kimage: String,
    /// Base image (`ubuntu-24.04`).
    pub image: String,
    /// Role (`worker`).
    pub role: String,
    /// Image version: sorts by time among images of one role; part of the UKI's file name.
    pub version: String,
    /// dpkg's name of the architecture.
    pub architecture: String,
    /// Time that all files carry, seconds since 1970.
    pub epoch: u32,
    /// Digest of `image.lock`.
    pub lock: Digest,
    /// Whose keys signed: `development` keys were made by kimage because none were given.
    pub keys: Keys,
    /// The sealed root filesystem.
    pub root: Root,
    /// The kernel and what the firmware measures of it.
    pub kernel: Kernel,
    /// The partitions of the disk in order.
    pub partitions: Vec<Partition>,
    /// Kubernetes, etcd and the other components with their versions.
    pub components: Vec<Component>,
    /// Number of Debian packages in the image.
    pub packages: u32,
    /// Switches of the definition that weaken an image; empty in release images.
    pub debug: Vec<String>,
    /// The other files of the release folder, sorted by name.
    pub files: Vec<FileRecord>,
}

/// Public identities of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Keys {
    /// True when kimage made the keys itself.
    pub development: bool,
    /// SHA-256 of the Secure Boot platform key certificate (DER).
    pub platform_key: Digest,
    /// SHA-256 of the key exchange key certificate (DER).
    pub key_exchange_key: Digest,
    /// SHA-256 of the db certificate (DER).
    pub database: Digest,
    /// Ed25519 release key, 64 hexadecimal digits.
    pub release: Digest,
}

/// Root filesystem and hash tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Root {
    /// dm-verity root hash.
    pub hash: Digest,
    /// dm-verity salt.
    pub salt: Digest,
    /// Bytes of the squashfs, padded to whole blocks.
    pub size: u64,
    /// Digest of the squashfs.
    pub sha256: Digest,
    /// Files, folders and links in it.
    pub entries: u64,
}

/// Kernel and UKI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// `6.8.0-149-generic`.
    pub version: String,
    /// The signed command line.
    pub command_line: String,
    /// Authenticode digest of the UKI: the same with and without signature.
    pub authenticode: Digest,
    /// Expected values of TPM PCR 11, SHA-256 bank.
    pub pcr11: Pcr11,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Partition {
    /// GPT name.
    pub name: String,
    /// GPT type.
    pub type_uuid: String,
    /// GPT unique id.
    pub uuid: String,
    /// Byte offset on the disk.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Digest of the partition's bytes.
    pub sha256: Digest,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Component {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// What compiled it, where a host may use another compiler than the pinned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiler: Option<String>,
}

/// One file of the release folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileRecord {
    /// File name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Digest.
    pub sha256: Digest,
}

impl FileRecord {
    /// The record of a file in memory.
    pub fn of_bytes(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }

    /// The record of `name` in `folder`.
    pub fn of_file(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let read = || -> std::io::Result<_> {
            let file = File::open(&path)?;
            let size = file.metadata()?.len();
            Ok((sparse::digest(&file, 0, size)?, size))
        };
        let (sha256, size) = read().with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            size,
            sha256,
        })
    }
}

impl Manifest {
    /// The version that a new manifest carries.
    pub const SCHEMA: u32 = SCHEMA;

    /// The bytes that are signed and stored: JSON, two spaces of indent, a final newline.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).context("write manifest.json")?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads what [`Manifest::to_json`] wrote; refuses other schemas, unknown keys and oversize documents.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let refuse = |why: String| Failure::new(ExitCode::Verification, format!("manifest.json: {why}"));
        if bytes.len() > LIMIT {
            return Err(refuse(format!("{} bytes, more than {LIMIT}", bytes.len())).into());
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        if manifest.schema != SCHEMA {
            let why = format!(
                "schema {} is not known to this kimage (it knows {SCHEMA})",
                manifest.schema
            );
            return Err(refuse(why)
                .hint("use the kimage version that built the image")
                .into());
        }
        Ok(manifest)
    }
}

/// Checks the detached Ed25519 signature (64 bytes) over `bytes`.
pub fn check_signature(bytes: &[u8], signature: &[u8], release_key: &[u8; 32]) -> Result<()> {
    UnparsedPublicKey::new(&ED25519, release_key)
        .verify(bytes, signature)
        .map_err(|_| {
            let message =
                "manifest.json: the signature in manifest.json.sig is not from the given release key";
            Failure::new(ExitCode::Mismatch, message)
                .hint("pass the public key that signed the image with --key, or fetch the image again")
                .into()
        })
}
