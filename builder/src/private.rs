//! Folders and files that only their owner may read. They appear whole or not at all, and nothing is overwritten unless
//! asked for.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::failure::{ExitCode, Failure};

/// Makes `folder` (0700), which must be absent or empty, with what `fill` writes into it. Killed at any moment, it is
/// absent or complete.
pub fn create_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        bail!(exists(folder));
    }
    let parent = parent(folder);
    let context = || format!("make keys in {}", folder.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .with_context(context)?;
    let scratch = tempfile::Builder::new()
        .prefix(".kimage-keys-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent);
    let scratch = scratch.with_context(context)?;
    fill(scratch.path()).with_context(context)?;
    File::open(scratch.path())?.sync_all().with_context(context)?;
    // Renaming a folder replaces an empty folder and nothing else.
    match fs::rename(scratch.path(), folder) {
        Ok(()) => {
            let _ = scratch.keep();
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
            ) =>
        {
            bail!(exists(folder))
        }
        Err(error) => return Err(error).with_context(context),
    }
    File::open(parent)?.sync_all().with_context(context)
}

fn exists(folder: &Path) -> Failure {
    Failure::new(
        ExitCode::Usage,
        format!("{} exists and is not empty", folder.display()),
    )
    .hint("name another folder; kimage never overwrites keys")
}

/// Writes a new file (0600) and waits until it is on the disk.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = open.with_context(|| format!("create {}", path.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("write {}", path.display()))
}

/// Writes a file (0600) beside its place and moves it there. A file that is there already is replaced only when
/// `replace` says so.
pub fn write(path: &Path, bytes: &[u8], replace: bool) -> Result<()> {
    let context = || format!("write {}", path.display());
    let mut beside = tempfile::Builder::new()
        .prefix(".kimage-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(parent(path))
        .with_context(context)?;
    beside
        .write_all(bytes)
        .and_then(|()| beside.as_file().sync_all())
        .with_context(context)?;
    let moved = if replace {
        beside.persist(path)
    } else {
        beside.persist_noclobber(path)
    };
    match moved {
        Ok(_) => File::open(parent(path))?.sync_all().with_context(context),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            bail!(
                Failure::new(ExitCode::Usage, format!("{} exists", path.display()))
                    .hint("name another file, or replace this one with --force")
            )
        }
        Err(error) => Err(error.error).with_context(context),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_and_replaced_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, b"one", false).unwrap();
        let error = write(&path, b"two", false).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write(&path, b"two", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_can_not_be_filled_does_not_appear() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("keys");
        assert!(create_folder(&folder, |_| bail!("no entropy")).is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        create_folder(&folder, |inside| write_new(&inside.join("a"), b"1")).unwrap();
        assert!(create_folder(&folder, |_| Ok(())).is_err());
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"1");
    }
}
