//! `kimage-firstboot containers`: containerd's store on `/var`, seeded from the image.
//!
//! The image holds a finished store under verity. Its databases and manifests, which containerd writes to, are
//! copied; its snapshots stay where they are and are linked to. A store is named by its digest and
//! `/var/lib/containerd` is a link to the one of the running image: another version starts with its own store and
//! finds its old one when it is rolled back.
//!
//! A power cut at any moment leaves either the state before or the state after: a store is made beside its place,
//! made durable, then renamed; so is the link. A store that goes away loses its name first.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kimage_roles::containers::{CONTENT, MAX_NAME, METADATA, SNAPSHOTS, SNAPSHOTTER, STAMP, STORE};
use rustix::fs::syncfs;

use crate::host;

const VAR: &str = "/var";
/// The stores, below `/var`, and the link that containerd follows.
const STORES: &str = "lib/kimage/containerd";
const LINK: &str = "lib/containerd";
/// Names in the folder of stores that no store has: not finished, on its way out, a link before its renaming.
const NEW: &str = ".new";
const GONE: &str = ".gone";
const NEW_LINK: &str = ".link";
/// What lay at the link's place and was no link: kept, for a person to look at.
const FOUND: &str = "found";
/// Folders in folders; a store has a handful.
const MAX_DEPTH: usize = 16;

/// What there was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: the store of this image is in use.
    Unchanged,
    /// Its store was there from an earlier time and is in use again.
    Linked,
    /// Its store was copied.
    Copied,
}

/// Seeds the store of the image that runs.
pub fn run() -> Result<()> {
    let name = name(Path::new(STORE))?;
    let mut seeding = Seeding {
        store: Path::new(STORE),
        var: Path::new(VAR),
        before_change: &mut |change| {
            if change == Change::Copy {
                host::say(
                    "kimage-containers",
                    &format!("store {name} is copied from the image"),
                );
            }
            Ok(())
        },
    };
    let outcome = seeding.run(&name)?;
    if outcome != Outcome::Unchanged {
        host::say("kimage-containers", &format!("store {name} is in use"));
    }
    Ok(())
}

/// The name of the store in the image.
pub fn name(store: &Path) -> Result<String> {
    let path = store.join(STAMP);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let name = text.trim_end_matches('\n');
    let is_name =
        !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(is_name, "{} holds no name of a store", path.display());
    Ok(name.to_owned())
}

/// A step that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The first of a store that is copied.
    Copy,
    /// Any other.
    Step,
}

/// Where from, where to, and who is asked before each change (a test may end it there).
pub struct Seeding<'a> {
    /// The store in the image.
    pub store: &'a Path,
    /// `/var`.
    pub var: &'a Path,
    /// Called before each change.
    pub before_change: &'a mut dyn FnMut(Change) -> Result<()>,
}

impl Seeding<'_> {
    /// Brings the store `name` into use.
    pub fn run(&mut self, name: &str) -> Result<Outcome> {
        let stores = self.var.join(STORES);
        let target = stores.join(name);
        self.step()?;
        fs::create_dir_all(&stores).with_context(|| format!("make {}", stores.display()))?;
        for rest in [NEW, GONE, NEW_LINK] {
            self.remove(&stores.join(rest))?;
        }
        let mut outcome = Outcome::Linked;
        if fs::symlink_metadata(&target).is_err() {
            self.copy(&stores, &target)
                .with_context(|| format!("make {}", target.display()))?;
            outcome = Outcome::Copied;
        }
        let link = self.var.join(LINK);
        let before = fs::read_link(&link).ok();
        if before.as_deref() == Some(&target) {
            return Ok(match outcome {
                Outcome::Copied => outcome,
                _ => Outcome::Unchanged,
            });
        }
        self.link(&stores, &target, &link)
            .with_context(|| format!("link {} to {}", link.display(), target.display()))?;
        // The store before stays: a rollback needs it. Older ones belong to no version on this disk.
        let kept = [target.file_name(), before.as_deref().and_then(Path::file_name)];
        self.tidy(&stores, &kept)
            .with_context(|| format!("tidy {}", stores.display()))?;
        Ok(outcome)
    }

    fn step(&mut self) -> Result<()> {
        (self.before_change)(Change::Step)
    }

    fn copy(&mut self, stores: &Path, target: &Path) -> Result<()> {
        (self.before_change)(Change::Copy)?;
        let new = stores.join(NEW);
        folder(&new, 0o711)?;
        for (plugin, mode) in [(CONTENT, 0o755), (METADATA, 0o711), (SNAPSHOTTER, 0o700)] {
            let (source, place) = (self.store.join(plugin), new.join(plugin));
            folder(&place, mode)?;
            if source.is_dir() {
                self.fill(&source, &place, 0)?;
            }
        }
        self.step()?;
        // Content first, then the name.
        syncfs(File::open(&new)?).context("flush")?;
        self.step()?;
        fs::rename(&new, target)?;
        sync(stores)
    }

    /// Copies files and folders; what the snapshotter has is linked.
    fn fill(&mut self, source: &Path, target: &Path, depth: usize) -> Result<()> {
        ensure!(depth < MAX_DEPTH, "{} is nested too deep", source.display());
        for name in sorted(source)? {
            self.step()?;
            let (source, place) = (source.join(&name), target.join(&name));
            let metadata = fs::symlink_metadata(&source)?;
            if metadata.is_dir() && name == SNAPSHOTS && depth == 0 {
                folder(&place, 0o700)?;
                for snapshot in sorted(&source)? {
                    symlink(source.join(&snapshot), place.join(&snapshot))?;
                }
            } else if metadata.is_dir() {
                folder(&place, 0o755)?;
                self.fill(&source, &place, depth + 1)?;
            } else if metadata.is_file() {
                fs::copy(&source, &place).with_context(|| format!("copy {}", source.display()))?;
                fs::set_permissions(
                    &place,
                    Permissions::from_mode(metadata.permissions().mode() & 0o777),
                )?;
            } else {
                bail!("{} is neither file nor folder", source.display());
            }
        }
        Ok(())
    }

    fn link(&mut self, stores: &Path, target: &Path, link: &Path) -> Result<()> {
        let there = fs::symlink_metadata(link);
        if there.is_ok_and(|metadata| !metadata.is_symlink()) {
            self.step()?;
            fs::rename(link, free_name(stores)?).context("put aside what is there")?;
        }
        self.step()?;
        let new = stores.join(NEW_LINK);
        symlink(target, &new)?;
        self.step()?;
        fs::rename(&new, link)?;
        sync(stores)?;
        sync(link.parent().unwrap_or(Path::new("/")))
    }

    fn tidy(&mut self, stores: &Path, kept: &[Option<&OsStr>]) -> Result<()> {
        for name in sorted(stores)? {
            if kept.contains(&Some(&name)) || name.to_string_lossy().starts_with(FOUND) {
                continue;
            }
            let gone = stores.join(GONE);
            self.step()?;
            fs::rename(stores.join(&name), &gone)?;
            // Half a store must not come back under a whole one's name.
            sync(stores)?;
            self.remove(&gone)?;
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return Ok(());
        };
        self.step()?;
        let removed = if metadata.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.with_context(|| format!("remove {}", path.display()))
    }
}

/// Makes a folder with exactly `mode`.
fn folder(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("make {}", path.display()))
}

fn sorted(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(folder).and_then(|entries| {
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        names
    });
    let mut names = entries.with_context(|| format!("read {}", folder.display()))?;
    names.sort();
    Ok(names)
}

fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("flush {}", folder.display()))
}

/// `found`, `found-2`, ...
fn free_name(stores: &Path) -> Result<PathBuf> {
    let names = (1..1000).map(|number| match number {
        1 => FOUND.to_owned(),
        _ => format!("{FOUND}-{number}"),
    });
    let mut paths = names.map(|name| stores.join(name));
    let free = paths.find(|path| fs::symlink_metadata(path).is_err());
    free.context("too many foreign stores were put aside")
}

#[cfg(test)]
mod tests;
