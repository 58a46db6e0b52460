//! `images/<name>/image.lock`: every input of an image by name, version, size and digest. `kimage lock` writes it,
//! `kimage build` only reads it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The lock of one image: all roles' packages and components. TOML, sorted, reviewable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lock {
    /// Version of this format: 1.
    pub schema: u32,
    /// Digest of all definition keys that resolution depends on: the lock is stale when it differs.
    pub definition: Digest,
    /// The newest archive date, seconds since 1970: the time that every file of the image carries.
    pub epoch: u32,
    /// The archive states that packages came from, in the definition's order.
    pub suite: Vec<LockedSuite>,
    /// The base's packages and each role's additional ones, sorted by name.
    pub package: Vec<LockedPackage>,
    /// Components, sorted by name.
    #[serde(default)]
    pub component: Vec<LockedComponent>,
    /// Toolchains, sorted by name.
    #[serde(default)]
    pub toolchain: Vec<LockedToolchain>,
}

/// One suite's signed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedSuite {
    /// `noble-updates`.
    pub name: String,
    /// SHA-256 of its InRelease.
    pub inrelease: Digest,
    /// `Date` of the InRelease, RFC 3339 UTC.
    pub date: String,
    /// Fingerprint of the certificate that signed it.
    pub signer: String,
}

/// One .deb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedPackage {
    /// Binary package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Source package, where its name differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The suite of [`LockedSuite`] that lists it.
    pub suite: String,
    /// Path below the mirror's base URL (`pool/main/s/systemd/...deb`).
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// Part of every role. When false, `roles` says whose it is.
    #[serde(default, skip_serializing_if = "is_false")]
    pub base: bool,
    /// The roles that add it to the base, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
}

/// One component's pinned sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedComponent {
    /// Folder below `images/components`.
    pub name: String,
    /// What users call its version (`v1.36.3`).
    pub version: String,
    /// Digest of everything that determines its bytes and is in the repository: component.toml, go.mod, go.sum, main.go...
    pub source: Digest,
    /// Downloads besides: URL and digest of `release` and `oci` components.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub download: Vec<LockedDownload>,
}

/// A file that a component downloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedDownload {
    /// Where from.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// Digest.
    pub sha256: Digest,
}

/// A compiler that builds components.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedToolchain {
    /// `go`.
    pub name: String,
    /// `go1.26.8`.
    pub version: String,
    /// Its module's `h1:` hash (`golang.org/toolchain`), as in go.sum.
    pub hash: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}
