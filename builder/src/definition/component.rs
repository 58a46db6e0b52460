//! `images/components/<name>/component.toml`: a program that no package archive has, by how it is built or fetched.
//!
//! Exactly one table says where the bytes come from: `[go]` (a Go module and a list of binaries), `[release]` (a file
//! at a URL), `[registry]` (a container image by digest) or `[cargo]` (a Rust workspace). `[[image]]` tables make
//! container images of a component's static binaries.

mod field;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::digest::{Digest, Hasher};
use crate::download::Address;
use crate::failure::{ExitCode, Failure};
pub use field::{GuestPath, Mode, Name, RelativePath};
pub use source::{
    Archive, Cargo, CargoBinary, Go, GoBinary, Overlay, Registry, Release, ReleaseFile, Source,
};

/// The name of the file that makes a folder a component.
pub const FILE_NAME: &str = "component.toml";

/// One component.
#[derive(Debug, Clone)]
pub struct Component {
    /// The folder's name.
    pub name: String,
    /// The folder itself: `component.toml`, and `go.mod`, `go.sum`, Go files, overlays.
    pub folder: PathBuf,
    /// The content of `component.toml`.
    pub manifest: ComponentManifest,
}

/// The keys of `component.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RawManifest")]
pub struct ComponentManifest {
    /// One sentence for `kimage inspect`.
    pub title: String,
    /// What users call its version (`v1.36.3`); `{version}` in other values stands for it.
    pub version: String,
    /// SPDX expression of what the component's own code is licensed under.
    pub license: String,
    /// Commands that print the version on the machine, each a program with its arguments: the self-test runs them.
    pub version_commands: Vec<Vec<String>>,
    /// Where the bytes come from.
    pub source: Source,
    /// Container images made from the component's files.
    pub images: Vec<Image>,
}

/// A container image made from a component's static binaries: no base image, no shell, one layer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Image {
    /// The name that pods ask for (`registry.k8s.io/coredns/coredns:{version}`).
    pub reference: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    #[serde(default)]
    pub args: Vec<String>,
    /// `uid` or `uid:gid`, numeric, so that the kubelet can check `runAsNonRoot`.
    #[serde(default)]
    pub user: Option<NumericUser>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Path in the image to the name of one of the component's files (its path in the VM image).
    pub files: BTreeMap<GuestPath, GuestPath>,
    /// Only the container image gets the files, not the VM's root filesystem.
    #[serde(default)]
    pub only: bool,
}

/// `uid` or `uid:gid`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NumericUser(String);

impl NumericUser {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NumericUser {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut ids = text.split(':');
        let numeric = |id: Option<&str>| id.is_some_and(|id| id.parse::<u32>().is_ok());
        let valid = numeric(ids.next()) && (ids.clone().next().is_none() || numeric(ids.next()));
        if !valid || ids.next().is_some() {
            return Err(format!("user `{text}` is not `uid` or `uid:gid` in digits"));
        }
        Ok(Self(text))
    }
}

/// The file as written; [`ComponentManifest`] is what holds once it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawManifest {
    schema: u32,
    title: String,
    version: String,
    license: String,
    #[serde(default)]
    version_commands: Vec<Vec<String>>,
    go: Option<Go>,
    release: Option<Release>,
    registry: Option<Registry>,
    cargo: Option<Cargo>,
    #[serde(default)]
    image: Vec<Image>,
}

impl TryFrom<RawManifest> for ComponentManifest {
    type Error = String;

    fn try_from(raw: RawManifest) -> Result<Self, String> {
        if raw.schema != 1 {
            return Err(format!("schema is {}, this kimage reads 1", raw.schema));
        }
        let sources = [
            raw.go.map(Source::Go),
            raw.release.map(Source::Release),
            raw.registry.map(Source::Registry),
            raw.cargo.map(Source::Cargo),
        ];
        let mut sources = sources.into_iter().flatten();
        let (Some(source), None) = (sources.next(), sources.next()) else {
            return Err(
                "exactly one of [go], [release], [registry] and [cargo] says where the bytes come from"
                    .into(),
            );
        };
        let manifest = Self {
            title: raw.title,
            version: raw.version,
            license: raw.license,
            version_commands: raw.version_commands,
            source,
            images: raw.image,
        };
        manifest.check_paths()?;
        manifest.check_addresses()?;
        Ok(manifest)
    }
}

impl ComponentManifest {
    /// `text` with `{version}` filled in.
    pub fn expand(&self, text: &str) -> String {
        let bare = self.version.strip_prefix('v').unwrap_or(&self.version);
        text.replace("{version}", &self.version)
            .replace("{bare-version}", bare)
    }

    /// Addresses go into the lock, which everybody reads: no passwords.
    fn check_addresses(&self) -> Result<(), String> {
        let addresses: Vec<&String> = match &self.source {
            Source::Release(release) => std::iter::once(&release.url).chain(&release.mirrors).collect(),
            Source::Registry(registry) => vec![&registry.url],
            Source::Go(_) | Source::Cargo(_) => Vec::new(),
        };
        for address in addresses.into_iter().map(|url| Address::from(url.as_str())) {
            if address.has_credentials() {
                return Err(format!(
                    "{address} holds a user name or password, which the lock would make public"
                ));
            }
        }
        Ok(())
    }

    /// No two files or links at one path; images are made of files that exist.
    fn check_paths(&self) -> Result<(), String> {
        let files = self.source.files();
        let links = files.iter().flat_map(|file| file.links);
        let mut seen = std::collections::BTreeSet::new();
        for path in files.iter().map(|file| file.path).chain(links) {
            if !seen.insert(path) {
                return Err(format!("two things are installed at {path}"));
            }
        }
        for image in &self.images {
            for file in image.files.values() {
                if !files.iter().any(|known| known.path == file) {
                    return Err(format!(
                        "image {}: {file} is not a file of this component",
                        image.reference
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Component {
    /// Reads the component `name` of `folder` (`images/components`).
    ///
    /// # Errors
    /// [`ExitCode::Usage`] with file and line when the folder is absent or the file is not valid.
    pub fn load(folder: &Path, name: &str) -> Result<Self> {
        let name = Name::try_from(name.to_owned()).map_err(|why| Failure::new(ExitCode::Usage, why))?;
        let folder = folder.join(name.as_str());
        let file = folder.join(FILE_NAME);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("component `{name}`: {} does not exist", file.display());
                return Err(Failure::new(ExitCode::Usage, message).into());
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let component = Self {
            name: name.into(),
            folder,
            manifest: parse(&text, &file)?,
        };
        component.check_folders()?;
        Ok(component)
    }

    /// The folder that holds `go.mod`: this component's, or the one it shares.
    pub fn module_folder(&self) -> PathBuf {
        match &self.manifest.source {
            Source::Go(Go {
                module: Some(other), ..
            }) => self.folder.with_file_name(other.as_str()),
            _ => self.folder.clone(),
        }
    }

    /// The digest of everything in the repository that determines the component's bytes, for the lock: all files of
    /// its folder (or of the module folder it shares) by name, without `rootfs`.
    pub fn source_digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::new();
        let manifest = self.folder.join(FILE_NAME);
        let text = std::fs::read(&manifest).with_context(|| format!("read {}", manifest.display()))?;
        hasher.field(b"component.toml").field(&text);
        let module = self.module_folder();
        for path in files_below(&module)? {
            // Another component's manifest beside a shared module says nothing about this component. What `rootfs`
            // holds is copied into the tree as it is.
            if path == Path::new(FILE_NAME) || path.starts_with("rootfs") || path.starts_with("target") {
                continue;
            }
            let bytes = std::fs::read(module.join(&path))
                .with_context(|| format!("read {}", module.join(&path).display()))?;
            hasher.field(path.as_os_str().as_encoded_bytes()).field(&bytes);
        }
        Ok(hasher.finish())
    }

    fn check_folders(&self) -> Result<()> {
        let file = self.folder.join(FILE_NAME);
        let refuse = |what: String| Failure::new(ExitCode::Usage, format!("{}: {what}", file.display()));
        if let Source::Go(go) = &self.manifest.source {
            for name in ["go.mod", "go.sum"] {
                let path = self.module_folder().join(name);
                if !path.is_file() {
                    return Err(refuse(format!("{} does not exist", path.display())).into());
                }
            }
            for overlay in &go.overlay {
                if !self.module_folder().join(overlay.folder.as_str()).is_dir() {
                    return Err(refuse(format!("overlay folder `{}` does not exist", overlay.folder)).into());
                }
            }
        }
        Ok(())
    }
}

/// The regular files below `folder`, relative, sorted by bytes. Symbolic links are refused: what they point at is
/// not in the folder's digest.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let here = folder.join(&relative);
        let entries = std::fs::read_dir(&here).with_context(|| format!("read folder {}", here.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read folder {}", here.display()))?;
            let kind = entry
                .file_type()
                .with_context(|| format!("look at {}", entry.path().display()))?;
            let path = relative.join(entry.file_name());
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                files.push(path);
            } else {
                anyhow::bail!("{} is neither a file nor a folder", entry.path().display());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Parses a `component.toml`; `file` is its name in errors.
fn parse(text: &str, file: &Path) -> Result<ComponentManifest> {
    toml::from_str(text).map_err(|error| super::toolchain::located(&error, text, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = r#"schema = 1
title = "A tool"
version = "v1"
license = "MIT"
[release]
url = "https://example.com/tool-{version}"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
size = 0
[[release.file]]
path = "/usr/bin/tool"
"#;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text, Path::new("c/component.toml")).unwrap_err())
    }

    #[test]
    fn a_release_is_read() {
        let manifest = parse(RELEASE, Path::new("x")).unwrap();
        let Source::Release(release) = &manifest.source else {
            panic!("{manifest:?}")
        };
        assert_eq!(manifest.expand(&release.url), "https://example.com/tool-v1");
        assert_eq!(release.file[0].mode.bits(), 0o755);
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_and_line() {
        let text = error(&RELEASE.replace("size = 0", "size = 0\nsise = 1"));
        assert!(
            text.starts_with("c/component.toml:9: unknown field `sise`"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_value_is_refused_where_it_stands() {
        for (good, bad, line, why) in [
            ("/usr/bin/tool", "usr/bin/tool", 10, "absolute"),
            ("/usr/bin/tool", "/usr/../tool", 10, "`..`"),
            ("e3b0c442", "zzz", 7, "SHA-256"),
            ("size = 0", "size = -1", 8, "invalid value"),
        ] {
            let text = error(&RELEASE.replace(good, bad));
            assert!(
                text.starts_with(&format!("c/component.toml:{line}: ")) && text.contains(why),
                "{text}"
            );
        }
    }

    #[test]
    fn two_kinds_no_kind_and_a_later_schema_are_refused() {
        let two = format!("{RELEASE}[cargo]\nworkspace = \".\"\npackage = \"x\"\ninputs = []\nbinary = []\n");
        let none = "schema = 1\ntitle = \"\"\nversion = \"1\"\nlicense = \"MIT\"\n";
        for text in [two.as_str(), none] {
            assert!(error(text).contains("exactly one of"), "{}", error(text));
        }
        assert!(error(&RELEASE.replace("schema = 1", "schema = 2")).contains("schema is 2"));
    }

    #[test]
    fn two_files_at_one_path_are_refused() {
        let text = error(&format!("{RELEASE}links = [\"/usr/bin/tool\"]\n"));
        assert!(
            text.contains("two things are installed at /usr/bin/tool"),
            "{text}"
        );
    }

    #[test]
    fn an_image_of_a_file_that_is_not_there_is_refused() {
        let image = "[[image]]\nreference = \"x:1\"\nentrypoint = [\"/t\"]\nfiles = { \"/t\" = \"/usr/bin/other\" }\n";
        assert!(
            error(&format!("{RELEASE}{image}")).contains("/usr/bin/other is not a file of this component")
        );
        let user = image.replace("other", "tool") + "user = \"nobody\"\n";
        assert!(error(&format!("{RELEASE}{user}")).contains("user `nobody`"));
    }
}
