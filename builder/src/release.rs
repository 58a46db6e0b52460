//! What goes out beside the disk: manifest and signature, bills of materials, provenance, checksums. Everything a
//! verifier needs and nothing that depends on when or where the build ran.

pub mod bill;
pub mod checksums;
pub mod contents;
pub mod cyclonedx;
pub mod difference;
pub mod folder;
pub mod manifest;
pub mod pcr;
pub mod provenance;
pub mod spdx;
pub mod verify;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::digest::Digest;
use crate::sign::{Purpose, Signer};

pub use bill::Bill;
pub use manifest::{FileRecord, Manifest};

/// File names of a release folder: promises to scripts (README, "What lies in the output folder").
pub mod names {
    /// The signed description of everything else.
    pub const MANIFEST: &str = "manifest.json";
    /// Ed25519 signature (64 raw bytes) over `manifest.json`.
    pub const MANIFEST_SIGNATURE: &str = "manifest.json.sig";
    /// SPDX 2.3 bill of materials.
    pub const SPDX: &str = "sbom.spdx.json";
    /// CycloneDX 1.6 bill of materials.
    pub const CYCLONEDX: &str = "sbom.cdx.json";
    /// SLSA v1 provenance in a DSSE envelope.
    pub const PROVENANCE: &str = "provenance.json";
    /// The signed unified kernel image.
    pub const UKI: &str = "kernel.efi";
    /// OVMF variable store with the image's keys enrolled and Secure Boot on.
    pub const OVMF_VARS: &str = "ovmf-vars.fd";
    /// Public half of the release key, PEM: what `openssl pkeyutl -verify` takes.
    pub const RELEASE_KEY: &str = "release.pub.pem";
    /// Certificate of the key that signed `kernel.efi`, PEM: what `sbverify --cert` takes.
    pub const DATABASE_CERTIFICATE: &str = "db.crt";
    /// `sha256sum -c` input for all other files.
    pub const CHECKSUMS: &str = "SHA256SUMS";
}

/// Writes the documents into `folder`, which already holds the disk formats, `kernel.efi`, `ovmf-vars.fd` and the
/// public key. `manifest.files` must list those; the bills of materials are added here. Returns the manifest as
/// signed.
pub fn write(folder: &Path, mut manifest: Manifest, bill: &Bill, signer: &dyn Signer) -> Result<Manifest> {
    let documents = [
        (names::SPDX, spdx::document(&manifest, bill)?),
        (names::CYCLONEDX, cyclonedx::document(&manifest, bill)?),
    ];
    for (name, bytes) in documents {
        manifest.files.push(FileRecord::of_bytes(name, &bytes));
        put(folder, name, &bytes)?;
    }
    let statement = provenance::statement(&manifest, bill)?;
    let envelope = provenance::envelope(&statement, signer)?;
    manifest
        .files
        .push(FileRecord::of_bytes(names::PROVENANCE, &envelope));
    put(folder, names::PROVENANCE, &envelope)?;

    manifest.files.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = manifest.to_json()?;
    let signature = signer
        .sign(Purpose::Release, &bytes)
        .context("sign manifest.json")?;
    ensure!(
        signature.len() == 64,
        "the release signature has {} bytes instead of 64",
        signature.len()
    );
    put(folder, names::MANIFEST, &bytes)?;
    put(folder, names::MANIFEST_SIGNATURE, &signature)?;

    let mut records = manifest.files.clone();
    records.push(FileRecord::of_bytes(names::MANIFEST, &bytes));
    records.push(FileRecord::of_bytes(names::MANIFEST_SIGNATURE, &signature));
    put(folder, names::CHECKSUMS, checksums::render(&records).as_bytes())?;
    Ok(manifest)
}

/// The signature check of a release folder's manifest: first thing any reader does.
pub fn read_signed_manifest(folder: &Path, release_key: &[u8; 32]) -> Result<(Manifest, Digest)> {
    let bytes = read(folder, names::MANIFEST)?;
    let signature = read(folder, names::MANIFEST_SIGNATURE)?;
    manifest::check_signature(&bytes, &signature, release_key)?;
    Ok((Manifest::from_json(&bytes)?, Digest::of(&bytes)))
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}
