//! Fills a new `/var` from `/usr/share/factory/var`: entries that are missing, with owners, modes, times and extended
//! attributes. What is there already stays as it is.
//!
//! A file appears under its name only when its content is durable: all files are written under temporary names,
//! made durable with one call, then renamed. So a power cut never leaves a half file that the next boot would keep.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr, syncfs};
use rustix::io::Errno;

/// Prefix of a file that is not complete.
const UNFINISHED: &str = ".kimage-factory-";
/// Folders in folders; the factory has a handful.
const MAX_DEPTH: usize = 64;
/// Largest list or value of extended attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 65_536;

/// Copies what `target` lacks from `factory`; returns the number of new entries.
pub fn fill(factory: &Path, target: &Path) -> Result<usize> {
    let mut filler = Filler {
        finished: Vec::new(),
        count: 0,
    };
    filler.folder(factory, target, 0)?;
    if !filler.finished.is_empty() {
        let folder = File::open(target).with_context(|| format!("open {}", target.display()))?;
        syncfs(&folder).with_context(|| format!("flush {}", target.display()))?;
        for (temporary, path) in &filler.finished {
            fs::rename(temporary, path).with_context(|| format!("rename {}", path.display()))?;
        }
    }
    Ok(filler.count)
}

struct Filler {
    /// Complete files: temporary name, name.
    finished: Vec<(PathBuf, PathBuf)>,
    count: usize,
}

impl Filler {
    fn folder(&mut self, source: &Path, target: &Path, depth: usize) -> Result<()> {
        ensure!(depth < MAX_DEPTH, "{} is nested too deep", source.display());
        let entries = fs::read_dir(source).with_context(|| format!("read {}", source.display()))?;
        let mut names: Vec<_> = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        for name in names {
            let (source, path) = (source.join(&name), target.join(&name));
            let is_folder = fs::symlink_metadata(&source)?.is_dir();
            let there = fs::symlink_metadata(&path);
            if there.is_err() {
                self.make(&source, &path)
                    .with_context(|| format!("make {}", path.display()))?;
                self.count += 1;
            }
            // Into a symlink that someone put there the factory must not follow.
            if is_folder && there.map_or(true, |metadata| metadata.is_dir()) {
                self.folder(&source, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, source: &Path, path: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(source)?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(source)?, path)?;
            lchown(path, Some(metadata.uid()), Some(metadata.gid()))?;
            return copy_xattrs(source, path);
        }
        let place = if kind.is_file() {
            let name = path.file_name().context("a path without a name")?;
            let mut temporary = std::ffi::OsString::from(UNFINISHED);
            temporary.push(name);
            let temporary = path.with_file_name(temporary);
            let _ = fs::remove_file(&temporary);
            fs::copy(source, &temporary)?;
            temporary
        } else if kind.is_dir() {
            fs::create_dir(path)?;
            path.to_owned()
        } else {
            let what = if kind.is_fifo() {
                "a pipe"
            } else {
                "a device or socket"
            };
            bail!("the factory holds {what}, which can't be copied");
        };
        chown(&place, Some(metadata.uid()), Some(metadata.gid()))?;
        // After the owner, whose change drops set-user-id and capabilities.
        fs::set_permissions(&place, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        copy_xattrs(source, &place)?;
        if kind.is_file() {
            let modified = fs::FileTimes::new().set_modified(metadata.modified()?);
            File::open(&place)?.set_times(modified)?;
            self.finished.push((place, path.to_owned()));
        }
        Ok(())
    }
}

fn copy_xattrs(source: &Path, target: &Path) -> Result<()> {
    let mut names = vec![0u8; MAX_XATTR];
    let length = match llistxattr(source, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error).context("list extended attributes"),
    };
    let mut value = vec![0u8; MAX_XATTR];
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = std::ffi::OsStr::from_bytes(name);
        let shown = || format!("extended attribute {}", name.display());
        let length = lgetxattr(source, name, &mut value[..]).with_context(shown)?;
        lsetxattr(target, name, &value[..length], XattrFlags::empty()).with_context(shown)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factory(folder: &Path) -> PathBuf {
        let factory = folder.join("factory");
        fs::create_dir_all(factory.join("lib/thing")).unwrap();
        fs::write(factory.join("lib/thing/config"), "from the factory").unwrap();
        fs::set_permissions(
            factory.join("lib/thing/config"),
            fs::Permissions::from_mode(0o640),
        )
        .unwrap();
        fs::set_permissions(factory.join("lib/thing"), fs::Permissions::from_mode(0o2750)).unwrap();
        symlink("/run", factory.join("run")).unwrap();
        factory
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (factory, target) = (factory(folder.path()), folder.path().join("var"));
        fs::create_dir(&target).unwrap();
        assert_eq!(fill(&factory, &target).unwrap(), 4);
        let mode = |path: &str| fs::symlink_metadata(target.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("lib/thing"), mode("lib/thing/config")), (0o2750, 0o640));
        assert_eq!(fs::read_link(target.join("run")).unwrap(), Path::new("/run"));
        let times = |root: &Path| {
            fs::metadata(root.join("lib/thing/config"))
                .unwrap()
                .modified()
                .unwrap()
        };
        assert_eq!(times(&factory), times(&target));

        fs::write(target.join("lib/thing/config"), "changed").unwrap();
        fs::write(factory.join("lib/more"), "new").unwrap();
        assert_eq!(fill(&factory, &target).unwrap(), 1);
        assert_eq!(
            fs::read_to_string(target.join("lib/thing/config")).unwrap(),
            "changed"
        );
        assert_eq!(fs::read_to_string(target.join("lib/more")).unwrap(), "new");
    }

    #[test]
    fn a_half_file_of_an_earlier_try_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (factory, target) = (factory(folder.path()), folder.path().join("var"));
        fs::create_dir_all(target.join("lib/thing")).unwrap();
        let half = target.join("lib/thing/.kimage-factory-config");
        fs::write(&half, "from the fac").unwrap();
        fill(&factory, &target).unwrap();
        assert_eq!(
            fs::read_to_string(target.join("lib/thing/config")).unwrap(),
            "from the factory"
        );
        assert!(!half.exists());
    }

    #[test]
    fn a_symlink_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (factory, target) = (factory(folder.path()), folder.path().join("var"));
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::create_dir(&target).unwrap();
        symlink(&elsewhere, target.join("lib")).unwrap();
        fill(&factory, &target).unwrap();
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
