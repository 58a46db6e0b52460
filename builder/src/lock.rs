//! `images/<name>/image.lock`: every input of an image by name, version, size and digest. `kimage lock` writes it,
//! `kimage build` only reads it.

pub mod changes;
mod drift;
mod file;
mod resolve;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use file::{FILE_NAME, load, load_fresh, write};
pub use resolve::{Pins, resolve};

/// The lock of one image: all roles' packages and components. TOML, sorted, reviewable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lock {
    /// Version of this format: 1.
    pub schema: u32,
    /// The newest archive date, seconds since 1970: the time that every file of the image carries.
    pub epoch: u32,
    /// What the definitions asked for when the lock was made: the base first, then the roles by name. The lock is
    /// stale when they ask for something else now.
    pub request: Vec<LockedRequest>,
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

/// What one definition asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedRequest {
    /// The role; absent for the base image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Packages to install, sorted.
    pub install: Vec<String>,
    /// Packages to leave out, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leave_out: Vec<String>,
}

/// One suite's signed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedSuite {
    /// `noble-updates`.
    pub name: String,
    /// `main`, `universe`: what was searched.
    pub components: Vec<String>,
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

impl Lock {
    /// The packages of an image with `role`, sorted by name: the base's and the role's.
    pub fn packages_of<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a LockedPackage> {
        self.package
            .iter()
            .filter(move |package| package.base || package.roles.iter().any(|name| name == role))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}
