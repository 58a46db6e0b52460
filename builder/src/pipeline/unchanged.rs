//! Nothing changed: when a release of exactly these inputs already lies in the output folder, there is nothing to do.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Order;
use crate::components;
use crate::definition::Definition;
use crate::digest::{Digest, Hasher};
use crate::lock::Lock;
use crate::private;
use crate::release::manifest::Manifest;
use crate::release::names;
use crate::sign::Identity;
use crate::store::Store;
use crate::tree;

/// Where the store keeps what it knows about finished releases.
const CACHE: &str = "releases";

/// Everything that a release follows from.
pub(super) struct Key(Digest);

/// What identified each file of a release when it was finished. A file that was written to since has another ctime.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    place: PathBuf,
    files: Vec<(String, u64, u64, i64, i64)>,
}

impl Key {
    /// The key of `order`: this program, the lock, the definition and its files, the components, the public keys.
    pub(super) fn new(
        order: &Order,
        definition: &Definition,
        lock: &Lock,
        identity: &Identity,
    ) -> Result<Self> {
        let mut hasher = Hasher::new();
        let program = std::env::current_exe().context("find this program")?;
        hasher.field(Digest::of_file(&program)?.0.as_bytes());
        let lock_file = definition.image.folder.join(crate::lock::FILE_NAME);
        hasher.field(Digest::of_file(&lock_file)?.0.as_bytes());
        // The manifests as parsed: what a comment says changes no image.
        hasher.field(format!("{:?}", definition.image.manifest).as_bytes());
        hasher.field(format!("{:?}", definition.role.manifest).as_bytes());
        for folder in tree::definition_folders(definition) {
            add_folder(&mut hasher, &folder)?;
        }
        for component in &definition.components {
            hasher.field(component.name.as_bytes());
            hasher.field(format!("{:?}", component.manifest).as_bytes());
            hasher.field(components::content_key(component, lock)?.as_bytes());
        }
        for part in [
            &identity.platform_key,
            &identity.key_exchange_key,
            &identity.database,
        ] {
            hasher.field(part);
        }
        hasher.field(&identity.release);
        for format in &order.formats {
            hasher.field(format.file_name().as_bytes());
        }
        Ok(Self(hasher.finish()))
    }

    /// The manifest of the finished release, if it is still what was written.
    pub(super) fn find(&self, order: &Order, store: &Store) -> Option<Manifest> {
        let place = place(order).ok()?;
        let stamp: Stamp =
            serde_json::from_slice(&std::fs::read(self.file(&place, store).ok()?).ok()?).ok()?;
        if Stamp::of(&place).ok()? != stamp {
            return None;
        }
        Manifest::from_json(&std::fs::read(place.join(names::MANIFEST)).ok()?).ok()
    }

    /// Remembers the release that `order` has just made.
    pub(super) fn remember(&self, order: &Order, store: &Store) -> Result<()> {
        let place = place(order)?;
        let path = self.file(&place, store)?;
        let bytes = serde_json::to_vec(&Stamp::of(&place)?)?;
        private::write(&path, &bytes, true)
    }

    fn file(&self, place: &Path, store: &Store) -> Result<PathBuf> {
        let mut hasher = Hasher::new();
        hasher
            .field(self.0.as_bytes())
            .field(place.as_os_str().as_encoded_bytes());
        Ok(store.cache(CACHE)?.join(hasher.finish().to_string()))
    }
}

fn place(order: &Order) -> Result<PathBuf> {
    let place = order.output.join(&order.role);
    place
        .canonicalize()
        .with_context(|| format!("find {}", place.display()))
}

impl Stamp {
    fn of(place: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(place)? {
            let entry = entry?;
            let data = entry.metadata()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, data.size(), data.ino(), data.ctime(), data.ctime_nsec()));
        }
        files.sort();
        Ok(Self {
            place: place.to_owned(),
            files,
        })
    }
}

/// Names, permissions and contents below `folder`, in order; an absent folder adds its absence.
fn add_folder(hasher: &mut Hasher, folder: &Path) -> Result<()> {
    let mut names: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
    };
    names.sort();
    hasher.field(&(names.len() as u64).to_le_bytes());
    for path in names {
        let data = std::fs::symlink_metadata(&path)?;
        hasher.field(path.file_name().unwrap_or_default().as_encoded_bytes());
        if data.is_dir() {
            hasher.field(b"folder");
            add_folder(hasher, &path)?;
        } else if data.is_symlink() {
            hasher
                .field(b"link")
                .field(std::fs::read_link(&path)?.as_os_str().as_encoded_bytes());
        } else {
            let executable = data.mode() & 0o111 != 0;
            hasher.field(if executable { b"program" } else { b"file   " });
            hasher.field(
                Digest::of_file(&path)
                    .with_context(|| format!("read {}", path.display()))?
                    .0
                    .as_bytes(),
            );
        }
    }
    Ok(())
}
