//! `images/<name>/image.toml`: the base that all roles share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use super::field;
use super::file::TomlFile;

/// The name of the file that makes a folder an image.
pub(super) const FILE_NAME: &str = "image.toml";

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
    #[serde(deserialize_with = "field::schema")]
    pub schema: u32,
    /// What people call the base ("Ubuntu 24.04 LTS").
    #[serde(deserialize_with = "field::one::<_, field::Line>")]
    pub title: String,
    /// Where packages come from and who vouches for them.
    pub archive: Archive,
    /// What is installed in every role.
    pub packages: Packages,
    /// What compiles components for this base, and is on no machine.
    #[serde(default)]
    pub compile: Compile,
    /// The kernel, its command line and its modules.
    pub kernel: Kernel,
    /// System users and groups with fixed ids. A package that makes a user that is not listed fails the build.
    #[serde(default, deserialize_with = "field::tables")]
    pub users: Vec<User>,
    /// See [`User`].
    #[serde(default, deserialize_with = "field::tables")]
    pub groups: Vec<Group>,
    /// Which systemd units run.
    #[serde(default)]
    pub units: Units,
    /// Components (folders of `images/components`) in every role.
    #[serde(default, deserialize_with = "field::list::<_, field::Folder>")]
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
    #[serde(deserialize_with = "field::one::<_, field::ArchiveWord>")]
    pub architecture: String,
    /// Base URLs of mirrors (what stands before `dists/`). Empty: taken from the host's apt sources or `--mirror`.
    #[serde(default, deserialize_with = "field::list::<_, field::MirrorUrl>")]
    pub mirrors: Vec<String>,
    /// Distributor as apt sources name it in their `Origin`/path, used to pick among the host's apt sources:
    /// the last path part of an archive's URL (`debian`, `debian-security`, `ubuntu`).
    #[serde(deserialize_with = "field::one::<_, field::ArchiveWord>")]
    pub path: String,
    /// Snapshot service: `{time}` is replaced by the lock's time as `20261120T000000Z`.
    #[serde(default, deserialize_with = "field::option::<_, field::MirrorUrl>")]
    pub snapshot: Option<String>,
    /// OpenPGP certificate files below the image's folder that may sign the suites.
    #[serde(deserialize_with = "field::list::<_, field::RelativeFile>")]
    pub keys: Vec<String>,
    /// Fingerprints (40 hex digits, primary keys) of the certificates that are trusted: pins the files above.
    #[serde(deserialize_with = "field::list::<_, field::Fingerprint>")]
    pub fingerprints: Vec<String>,
    /// The suites, in order; a later one wins over an earlier one with the same version.
    #[serde(deserialize_with = "field::tables")]
    pub suites: Vec<Suite>,
}

/// One suite of an archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Suite {
    /// `noble-updates`.
    #[serde(deserialize_with = "field::one::<_, field::ArchiveWord>")]
    pub name: String,
    /// `main`, `universe`.
    #[serde(deserialize_with = "field::list::<_, field::ArchiveWord>")]
    pub components: Vec<String>,
    /// Mirrors of this suite, when they differ from the archive's.
    #[serde(default, deserialize_with = "field::list::<_, field::MirrorUrl>")]
    pub mirrors: Vec<String>,
    /// Path as in [`Archive::path`], when it differs (`debian-security`).
    #[serde(default, deserialize_with = "field::option::<_, field::ArchiveWord>")]
    pub path: Option<String>,
    /// Days after its signature in which `kimage lock` believes the suite; for ever where absent. Set it for pockets
    /// that are signed again and again (`-updates`, `-security`): a mirror that stands still must not pass for one
    /// that has no news.
    #[serde(default)]
    pub max_age_days: Option<u32>,
}

/// Packages to install and what to leave out of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Packages {
    /// Names of packages; their dependencies come along (no Recommends). Every Essential package comes always.
    #[serde(default, deserialize_with = "field::list::<_, field::Package>")]
    pub install: Vec<String>,
    /// What does not come along, and why.
    #[serde(default, deserialize_with = "field::tables")]
    pub leave_out: Vec<LeaveOut>,
}

/// The C compiler, linker and C library that components are compiled and linked with: packages of the base's own
/// archive, so that nothing of the building host gets into the bytes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Compile {
    /// Names of packages; their dependencies come along (no Recommends, nothing Essential).
    #[serde(default, deserialize_with = "field::list::<_, field::Package>")]
    pub install: Vec<String>,
}

/// Something that packages would bring and the image does without.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LeaveOut {
    /// A package that others depend on and that is never installed: the dependency counts as satisfied.
    #[serde(default, deserialize_with = "field::option::<_, field::Package>")]
    pub package: Option<String>,
    /// Globs of absolute paths that are removed from the tree (`*` stays within one part, `**` crosses parts).
    #[serde(default, deserialize_with = "field::list::<_, field::FileGlob>")]
    pub files: Vec<String>,
    /// Globs of paths that stay although `files` matches.
    #[serde(default, deserialize_with = "field::list::<_, field::FileGlob>")]
    pub keep: Vec<String>,
    /// Why that is safe: required, printed by `kimage inspect`.
    #[serde(deserialize_with = "field::one::<_, field::Line>")]
    pub because: String,
}

/// The kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// Words of the signed command line besides the root hash.
    #[serde(deserialize_with = "field::list::<_, field::KernelWord>")]
    pub command_line: Vec<String>,
    /// Modules (globs below `/usr/lib/modules/<version>/`) that are left out of the image.
    #[serde(default, deserialize_with = "field::list::<_, field::ModuleGlob>")]
    pub leave_out: Vec<String>,
    /// Modules that stay although `leave_out` matches.
    #[serde(default, deserialize_with = "field::list::<_, field::ModuleGlob>")]
    pub keep: Vec<String>,
    /// Modules that stage 0 loads on every machine, by name.
    #[serde(deserialize_with = "field::list::<_, field::Module>")]
    pub stage0_always: Vec<String>,
    /// Modules (globs) that stage 0 loads where the machine has the hardware: storage drivers.
    #[serde(deserialize_with = "field::list::<_, field::ModuleGlob>")]
    pub stage0_hardware: Vec<String>,
}

/// A system user with a fixed id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// Login name.
    #[serde(deserialize_with = "field::one::<_, field::Account>")]
    pub name: String,
    /// User id.
    #[serde(deserialize_with = "field::account_id")]
    pub uid: u32,
    /// Primary group id.
    #[serde(deserialize_with = "field::account_id")]
    pub gid: u32,
    /// Comment field.
    #[serde(default, deserialize_with = "field::one::<_, field::PasswdField>")]
    pub comment: String,
    /// Home directory.
    #[serde(
        default = "nonexistent",
        deserialize_with = "field::one::<_, field::PasswdPath>"
    )]
    pub home: String,
    /// Login shell.
    #[serde(default = "nologin", deserialize_with = "field::one::<_, field::PasswdPath>")]
    pub shell: String,
}

/// A system group with a fixed id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// Name.
    #[serde(deserialize_with = "field::one::<_, field::Account>")]
    pub name: String,
    /// Group id.
    #[serde(deserialize_with = "field::account_id")]
    pub gid: u32,
}

/// Which systemd units run. The image's list is the whole truth: what maintainer scripts enable is dropped.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Units {
    /// Units enabled as their `[Install]` section says.
    #[serde(default, deserialize_with = "field::list::<_, field::Unit>")]
    pub enable: Vec<String>,
    /// Units that can't be started at all.
    #[serde(default, deserialize_with = "field::list::<_, field::Unit>")]
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

impl Packages {
    /// The packages that are never installed, in the file's order.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.leave_out.iter().filter_map(|entry| entry.package.as_deref())
    }
}

/// Reads the image in `folder`.
pub(super) fn read(folder: &Path, name: &str) -> Result<(Image, TomlFile)> {
    let file = TomlFile::read(&folder.join(FILE_NAME))?;
    let manifest: ImageManifest = file.parse()?;
    check(&file, folder, &manifest)?;
    Ok((
        Image {
            name: name.to_owned(),
            folder: folder.to_owned(),
            manifest,
        },
        file,
    ))
}

/// What no single value shows.
fn check(file: &TomlFile, folder: &Path, manifest: &ImageManifest) -> Result<()> {
    let archive = &manifest.archive;
    if archive.suites.is_empty() || archive.fingerprints.is_empty() || archive.keys.is_empty() {
        let message = "[archive] needs at least one suite, one key file and one fingerprint";
        return Err(file.refuse_at("[archive]", message).into());
    }
    for (place, suite) in archive.suites.iter().enumerate() {
        if suite.components.is_empty() {
            return Err(file
                .refuse_at(&suite.name, format!("suite `{}` has no components", suite.name))
                .into());
        }
        if suite.max_age_days == Some(0) {
            let message = format!("suite `{}`: max-age-days must be 1 or more", suite.name);
            return Err(file.refuse_at("max-age-days", message).into());
        }
        if archive.suites[..place]
            .iter()
            .any(|other| other.name == suite.name)
        {
            return Err(file
                .refuse_at(&suite.name, format!("suite `{}` is listed twice", suite.name))
                .into());
        }
    }
    for key in &archive.keys {
        if !folder.join(key).is_file() {
            return Err(file
                .refuse_at(key, format!("key file `{key}` does not exist"))
                .into());
        }
    }
    if archive
        .snapshot
        .as_ref()
        .is_some_and(|url| !url.contains("{time}"))
    {
        return Err(file.refuse_at("snapshot", "snapshot must hold `{time}`").into());
    }
    check_packages(file, &manifest.packages)?;
    let root = &manifest.root;
    if !(1..=22).contains(&root.compression_level) {
        return Err(file
            .refuse_at("compression-level", "compression-level must be 1 to 22")
            .into());
    }
    if !(4096..=1 << 20).contains(&root.block_size) || !root.block_size.is_power_of_two() {
        let message = "block-size must be a power of two from 4096 to 1048576";
        return Err(file.refuse_at("block-size", message).into());
    }
    Ok(())
}

/// A `leave-out` says what; nothing is installed and left out at once.
pub(super) fn check_packages(file: &TomlFile, packages: &Packages) -> Result<()> {
    for entry in &packages.leave_out {
        if entry.package.is_none() && entry.files.is_empty() {
            let message = "a leave-out needs `package` or `files`";
            return Err(file.refuse_at(&entry.because, message).into());
        }
    }
    for (place, name) in packages.install.iter().enumerate() {
        if packages.install[..place].contains(name) {
            return Err(file
                .refuse_at(name, format!("package `{name}` is listed twice"))
                .into());
        }
        if packages.left_out().any(|left_out| left_out == name) {
            return Err(file
                .refuse_at(name, format!("package `{name}` is both installed and left out"))
                .into());
        }
    }
    Ok(())
}

fn nonexistent() -> String {
    "/nonexistent".to_owned()
}

fn nologin() -> String {
    "/usr/sbin/nologin".to_owned()
}
