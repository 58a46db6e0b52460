//! `images/<name>/image.lock`: every input of an image by name, version, size and digest. `kimage lock` writes it,
//! `kimage build` only reads it.

pub mod changes;
mod drift;
mod file;
mod resolve;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use file::{FILE_NAME, load, load_fresh, stale, write};
pub use resolve::{Pins, keep, resolve};

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
    /// The role; absent for the base image and for what compiles components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// It is about the packages that compile components.
    #[serde(default, skip_serializing_if = "is_false")]
    pub compile: bool,
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
    /// Part of what compiles components.
    #[serde(default, skip_serializing_if = "is_false")]
    pub compile: bool,
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
    /// What comes out of it. Absent only while the lock is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<LockedOutput>,
}

/// What a component was when it was locked: a host that makes something else of the same inputs may not ship it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedOutput {
    /// Digest of all that goes into it: the sources, the compilers, kimage's own recipe
    /// ([`crate::components::content_key`]).
    pub key: Digest,
    /// Digest of all that comes out ([`crate::components::BuiltComponent::output`]).
    pub output: Digest,
    /// The files among it, by path, so that a difference has a name.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, Digest>,
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
    /// `go` or `rust`.
    pub name: String,
    /// `go1.26.8`, `1.95.0`.
    pub version: String,
    /// Of what runs. Go: its module's `h1:` hash (`golang.org/toolchain`), as in go.sum. Rust: `sha256:` and the
    /// digest of its files ([`crate::definition::toolchain::Pin`]).
    pub hash: String,
    /// Rust: base URLs of servers that have its releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
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
