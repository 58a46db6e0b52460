//! Where a component's bytes come from.

use serde::Deserialize;

use super::field::{GuestPath, Mode, Name, RelativePath};
use crate::digest::Digest;

/// Where a component's bytes come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Built from Go modules.
    Go(Go),
    /// Fetched from a URL.
    Release(Release),
    /// A container image of a registry.
    Registry(Registry),
    /// Built from a Rust workspace.
    Cargo(Cargo),
}

/// A file that a source installs, and the links to it.
pub(super) struct Installs<'a> {
    pub(super) path: &'a GuestPath,
    pub(super) links: &'a [GuestPath],
}

impl Source {
    pub(super) fn files(&self) -> Vec<Installs<'_>> {
        match self {
            Self::Go(go) => go
                .binary
                .iter()
                .map(|b| Installs {
                    path: &b.path,
                    links: &b.links,
                })
                .collect(),
            Self::Release(release) => release
                .file
                .iter()
                .map(|file| Installs {
                    path: &file.path,
                    links: &file.links,
                })
                .collect(),
            Self::Registry(_) => Vec::new(),
            Self::Cargo(cargo) => cargo
                .binary
                .iter()
                .map(|b| Installs {
                    path: &b.path,
                    links: &[],
                })
                .collect(),
        }
    }
}

/// `[go]`: binaries of Go modules that the committed `go.mod` and `go.sum` pin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Go {
    /// The component whose `go.mod`, `go.sum` and Go files are used instead of own ones: roles that differ only in
    /// the binary share one module.
    pub module: Option<Name>,
    /// Linker flags of all binaries, joined by spaces.
    #[serde(default)]
    pub ldflags: Vec<String>,
    /// Build tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What is built.
    pub binary: Vec<GoBinary>,
    /// Packages of other modules whose Go files are replaced.
    #[serde(default)]
    pub overlay: Vec<Overlay>,
}

/// One Go program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GoBinary {
    /// Import path, or `./folder` of the module itself.
    pub package: String,
    /// Where it is installed.
    pub path: GuestPath,
    /// Symbolic links to it: the names of a multi-call program.
    #[serde(default)]
    pub links: Vec<GuestPath>,
}

/// A package of a dependency whose files are replaced before the build.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Overlay {
    /// Module path (`github.com/flannel-io/flannel`).
    pub module: String,
    /// The package's folder inside the module.
    pub package: RelativePath,
    /// Folder of the component whose files take the place of all files there.
    pub folder: RelativePath,
    /// Why: required, it changes what upstream published.
    pub because: String,
}

/// `[release]`: a file that somebody publishes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Release {
    /// Where it is (`https://`, `http://` or `file://`).
    pub url: String,
    /// More places with the same bytes.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Digest of the download.
    pub sha256: Digest,
    /// Bytes of the download.
    pub size: u64,
    /// What kind of archive the download is.
    #[serde(default)]
    pub archive: Archive,
    /// What is taken from it.
    pub file: Vec<ReleaseFile>,
}

/// How a download is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Archive {
    /// It is the file itself.
    #[default]
    #[serde(rename = "none")]
    None,
    /// gzip-compressed tar.
    #[serde(rename = "tar.gz")]
    TarGz,
    /// zip.
    #[serde(rename = "zip")]
    Zip,
}

/// A file taken from a download.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReleaseFile {
    /// Its path in the archive; absent when the download is the file.
    pub member: Option<RelativePath>,
    /// Where it is installed.
    pub path: GuestPath,
    /// Permission bits; `0755` where absent.
    #[serde(default)]
    pub mode: Mode,
    /// Symbolic links to it.
    #[serde(default)]
    pub links: Vec<GuestPath>,
}

/// `[registry]`: a container image as its publisher made it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// Base URL of the registry (`https://registry.example.com`).
    pub url: String,
    /// Repository (`coredns/coredns`).
    pub repository: String,
    /// Digest of the manifest or of the index that names it, without `sha256:`.
    pub digest: Digest,
    /// The name that pods ask for.
    pub reference: String,
}

/// `[cargo]`: static programs of a Rust workspace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cargo {
    /// The workspace, relative to the component's folder (`.` or `../../..`).
    pub workspace: String,
    /// The package.
    pub package: String,
    /// Cargo profile.
    #[serde(default = "release")]
    pub profile: String,
    /// Folders and files of the workspace that the package is built from, besides `Cargo.toml` and `Cargo.lock`.
    pub inputs: Vec<RelativePath>,
    /// More flags of rustc.
    #[serde(default)]
    pub rustflags: Vec<String>,
    /// Its binaries.
    pub binary: Vec<CargoBinary>,
}

/// One Rust program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CargoBinary {
    /// Cargo's name of it.
    pub name: String,
    /// Where it is installed.
    pub path: GuestPath,
}

fn release() -> String {
    "release".to_owned()
}
