//! `roles/<name>/role.toml`: what one role adds to the base.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::image::{Group, Packages, Units, User};

/// A role.
#[derive(Debug, Clone)]
pub struct Role {
    /// The folder's name below `roles/`: `control-plane`, `etcd` or `worker`.
    pub name: String,
    /// The folder itself: `role.toml`, `files/`.
    pub folder: PathBuf,
    /// The content of `role.toml`.
    pub manifest: RoleManifest,
}

/// The keys of `role.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleManifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// One sentence for `kimage inspect`.
    pub title: String,
    /// Packages on top of the base.
    #[serde(default)]
    pub packages: Packages,
    /// Where this role's packages have other names on one base: by image name.
    #[serde(default)]
    pub on: BTreeMap<String, RoleOnImage>,
    /// Components (folders of `images/components`).
    #[serde(default)]
    pub components: Vec<String>,
    /// Users on top of the base.
    #[serde(default)]
    pub users: Vec<User>,
    /// Groups on top of the base.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Units on top of the base.
    #[serde(default)]
    pub units: Units,
    /// Kernel modules to load at boot, written to `/usr/lib/modules-load.d/kimage.conf`.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Kernel parameters, written to `/usr/lib/sysctl.d/90-kimage.conf`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// What the role may cost; `kimage build` warns beyond it.
    pub budget: Budget,
}

/// What differs on one base image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleOnImage {
    /// More packages on that base.
    #[serde(default)]
    pub packages: Packages,
    /// More components on that base.
    #[serde(default)]
    pub components: Vec<String>,
}

/// Limits that `kimage build` reports against.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Budget {
    /// Compressed qcow2, in MB (10^6 bytes).
    pub image_mb: u64,
    /// From power-on to `multi-user.target` under emulation on two cores, in seconds.
    pub boot_seconds: u64,
}
