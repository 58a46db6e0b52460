//! `images/<name>/image.toml`: the base that all roles share.

use std::path::PathBuf;

use serde::Deserialize;

/// A base image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The folder's name below `images/`.
    pub name: String,
    /// The folder itself: `image.toml`, `image.lock`, `keys/`, `rootfs/`.
    pub folder: PathBuf,
    /// The content of `image.toml`.
    pub manifest: ImageManifest,
}

/// The keys of `image.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageManifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// What people call the base ("Ubuntu 24.04 LTS").
    pub title: String,
    /// Where packages come from and who vouches for them.
    pub archive: Archive,
    /// What is installed in every role.
    pub packages: Packages,
    /// The kernel, its command line and its modules.
    pub kernel: Kernel,
    /// System users and groups with fixed ids. A package that makes a user that is not listed fails the build.
    #[serde(default)]
    pub users: Vec<User>,
    /// See [`User`].
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Which systemd units run.
    #[serde(default)]
    pub units: Units,
    /// Components (folders of `images/components`) in every role.
    #[serde(default)]
    pub components: Vec<String>,
    /// The root filesystem's format.
    #[serde(default)]
    pub root: RootFilesystem,
    /// Debug switches; off in release images.
    #[serde(default)]
    pub debug: Debug,
}

/// Package archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Archive {
    /// dpkg's name of the architecture: `amd64`.
    pub architecture: String,
    /// Base URLs of mirrors (what stands before `dists/`). Empty: taken from the host's apt sources or `--mirror`.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Distributor as apt sources name it in their `Origin`/path, used to pick among the host's apt sources:
    /// the last path part of an archive's URL (`debian`, `debian-security`, `ubuntu`).
    pub path: String,
    /// Snapshot service: `{time}` is replaced by the lock's time as `20261120T000000Z`.
    pub snapshot: Option<String>,
    /// OpenPGP certificate files below the image's folder that may sign the suites.
    pub keys: Vec<String>,
    /// Fingerprints (40 hex digits, primary keys) of the certificates that are trusted: pins the files above.
    pub fingerprints: Vec<String>,
    /// The suites, in order; a later one wins over an earlier one with the same version.
    pub suites: Vec<Suite>,
}

/// One suite of an archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Suite {
    /// `noble-updates`.
    pub name: String,
    /// `main`, `universe`.
    pub components: Vec<String>,
    /// Mirrors of this suite, when they differ from the archive's.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Path as in [`Archive::path`], when it differs (`debian-security`).
    pub path: Option<String>,
}

/// Packages to install and what to leave out of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Packages {
    /// Names of packages; their dependencies come along (no Recommends). Every Essential package comes always.
    #[serde(default)]
    pub install: Vec<String>,
    /// What does not come along, and why.
    #[serde(default)]
    pub leave_out: Vec<LeaveOut>,
}

/// Something that packages would bring and the image does without.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LeaveOut {
    /// A package that others depend on and that is never installed: the dependency counts as satisfied.
    pub package: Option<String>,
    /// Globs of absolute paths that are removed from the tree (`*` stays within one part, `**` crosses parts).
    #[serde(default)]
    pub files: Vec<String>,
    /// Globs of paths that stay although `files` matches.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Why that is safe: required, printed by `kimage inspect`.
    pub because: String,
}

/// The kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// Words of the signed command line besides the root hash.
    pub command_line: Vec<String>,
    /// Modules (globs below `/usr/lib/modules/<version>/`) that are left out of the image.
    #[serde(default)]
    pub leave_out: Vec<String>,
    /// Modules that stay although `leave_out` matches.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Modules that stage 0 loads on every machine, by name.
    pub stage0_always: Vec<String>,
    /// Modules (globs) that stage 0 loads where the machine has the hardware: storage drivers.
    pub stage0_hardware: Vec<String>,
}

/// A system user with a fixed id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Comment field.
    #[serde(default)]
    pub comment: String,
    /// Home directory.
    #[serde(default = "nonexistent")]
    pub home: String,
    /// Login shell.
    #[serde(default = "nologin")]
    pub shell: String,
}

/// A system group with a fixed id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// Name.
    pub name: String,
    /// Group id.
    pub gid: u32,
}

/// Which systemd units run. The image's list is the whole truth: what maintainer scripts enable is dropped.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Units {
    /// Units enabled as their `[Install]` section says.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Units that can't be started at all.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// Root filesystem parameters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RootFilesystem {
    /// zstd level, 1 to 22.
    pub compression_level: i32,
    /// squashfs block in bytes: a power of two from 4096 to 1048576.
    pub block_size: u32,
}

impl Default for RootFilesystem {
    fn default() -> Self {
        Self {
            compression_level: 6,
            block_size: 262_144,
        }
    }
}

/// Debug switches.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Debug {
    /// A root login without password on the serial console.
    pub serial_login: bool,
}

fn nonexistent() -> String {
    "/nonexistent".to_owned()
}

fn nologin() -> String {
    "/usr/sbin/nologin".to_owned()
}
