//! The sources of a `[cargo]` component: exactly the files that its key is made of, read once. Nothing else of the
//! checkout is shown to a compiler, so nothing else can be in the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component as Part, Path, PathBuf};

use anyhow::{Context, Result};

use super::cargo_lock::CargoLock;
use crate::definition::Component;
use crate::definition::component::{Cargo, files_below};
use crate::digest::{Digest, Hasher};

const MANIFEST: &str = "Cargo.toml";
pub(super) const LOCK: &str = "Cargo.lock";

/// The sources, in memory.
pub(super) struct Sources {
    /// By path below the workspace; the root manifest names those members only that are here.
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// What the members need of the workspace's lock.
    pub(super) lock: CargoLock,
}

impl Sources {
    /// Reads what `cargo` says that `component` is built from.
    pub(super) fn read(component: &Component, cargo: &Cargo) -> Result<Self> {
        let workspace = component.folder.join(&cargo.workspace);
        let workspace = workspace
            .canonicalize()
            .with_context(|| format!("find the Rust workspace {}", workspace.display()))?;
        let mut files = BTreeMap::new();
        for input in &cargo.inputs {
            let path = workspace.join(input.as_str());
            if path.is_dir() {
                for file in files_below(&path)? {
                    let file = Path::new(input.as_str()).join(file);
                    files.insert(file.clone(), read(&workspace.join(file))?);
                }
            } else {
                files.insert(input.as_str().into(), read(&path)?);
            }
        }
        let root = workspace.join(MANIFEST);
        let (manifest, mut members) =
            manifest(&read(&root)?, &files).with_context(|| format!("read {}", root.display()))?;
        files.insert(MANIFEST.into(), manifest.into_bytes());
        members.insert(cargo.package.clone());
        let lock_file = workspace.join(LOCK);
        let text = String::from_utf8(read(&lock_file)?);
        let lock = text
            .context("it is no text")
            .and_then(|text| CargoLock::parse(&text)?.needed_by(&members))
            .with_context(|| format!("read {}", lock_file.display()))?;
        Ok(Self { files, lock })
    }

    /// Adds all of it.
    pub(super) fn add_to_key(&self, hasher: &mut Hasher) -> Result<()> {
        for (path, bytes) in &self.files {
            hasher.field(path.as_os_str().as_encoded_bytes()).field(bytes);
        }
        hasher
            .field(LOCK.as_bytes())
            .field(self.lock.to_text()?.as_bytes());
        Ok(())
    }

    /// Writes the workspace into the empty `folder`. Cargo compares times of files of a workspace with those of what it
    /// has compiled: they must be new.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let put = |path: &Path, bytes: &[u8]| {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
        };
        for (path, bytes) in &self.files {
            put(path, bytes)?;
        }
        put(Path::new(LOCK), self.lock.to_text()?.as_bytes())
    }

    /// What decides which crates are needed.
    pub(super) fn manifests_digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::new();
        hasher.field(b"needed crates 1");
        for (path, bytes) in self.files.iter().filter(|(path, _)| is_manifest(path)) {
            hasher.field(path.as_os_str().as_encoded_bytes()).field(bytes);
        }
        hasher.field(self.lock.to_text()?.as_bytes());
        Ok(hasher.finish())
    }

    /// The lock at `path`, from which cargo has dropped what nobody needs. It must not have added anything.
    pub(super) fn narrowed(&self, path: &Path) -> Result<CargoLock> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let needed = CargoLock::parse(&text).with_context(|| format!("read {}", path.display()))?;
        if let Some(package) = self.lock.lacks(&needed) {
            anyhow::bail!(
                "Cargo.lock does not fit the manifests: it lacks {} {}; run `cargo update --workspace`",
                package.name,
                package.version
            );
        }
        Ok(needed)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The root manifest without the members whose manifests are not among `files`, and the names of all packages that are.
fn manifest(root: &[u8], files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(String, BTreeSet<String>)> {
    let text = std::str::from_utf8(root)?;
    let mut table: toml::Table = toml::from_str(text)?;
    let here =
        |member: &str| member.contains(['*', '?', '[']) || files.contains_key(&member_manifest(member));
    if let Some(workspace) = table.get_mut("workspace").and_then(toml::Value::as_table_mut) {
        for list in ["members", "default-members"] {
            if let Some(members) = workspace.get_mut(list).and_then(toml::Value::as_array_mut) {
                members.retain(|member| member.as_str().is_none_or(here));
            }
        }
    }
    let mut names = BTreeSet::new();
    names.extend(package_name(&table));
    for (path, bytes) in files.iter().filter(|(path, _)| is_manifest(path)) {
        let table: toml::Table = std::str::from_utf8(bytes)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(toml::from_str(text)?))
            .with_context(|| format!("{}", path.display()))?;
        names.extend(package_name(&table));
    }
    Ok((toml::to_string(&table).context("write the manifest")?, names))
}

fn is_manifest(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == MANIFEST)
}

fn member_manifest(member: &str) -> PathBuf {
    let parts = Path::new(member).components();
    parts
        .filter(|part| *part != Part::CurDir)
        .collect::<PathBuf>()
        .join(MANIFEST)
}

fn package_name(manifest: &toml::Table) -> Option<String> {
    Some(manifest.get("package")?.get("name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_shrinks_to_the_members_that_are_inputs() {
        let root = b"[workspace]\nmembers = [\"builder\", \"./firstboot\", \"more/*\"]\ndefault-members = [\"builder\"]\n\
            [profile.guest]\ninherits = \"release\"\n";
        let files = BTreeMap::from([
            (
                PathBuf::from("firstboot/Cargo.toml"),
                b"[package]\nname = \"first\"\n".to_vec(),
            ),
            (PathBuf::from("firstboot/src/main.rs"), Vec::new()),
        ]);
        let (text, names) = manifest(root, &files).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let members = table["workspace"]["members"].as_array().unwrap();
        let members: Vec<_> = members.iter().filter_map(toml::Value::as_str).collect();
        assert_eq!(members, ["./firstboot", "more/*"]);
        assert_eq!(table["workspace"]["default-members"].as_array().unwrap().len(), 0);
        assert_eq!(table["profile"]["guest"]["inherits"].as_str(), Some("release"));
        assert_eq!(names, BTreeSet::from(["first".to_owned()]));
    }

    #[test]
    fn a_manifest_that_is_none_is_refused() {
        assert!(manifest(b"\xff", &BTreeMap::new()).is_err());
        assert!(manifest(b"[workspace", &BTreeMap::new()).is_err());
    }
}
