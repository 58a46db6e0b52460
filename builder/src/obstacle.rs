//! Files and folders of our own at names that somebody else can guess. What stands there already and is no file or
//! folder is never followed, never waited for and never removed: a link would lead our bytes to another place, and
//! opening a named pipe would wait for ever.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// What stands in the way; the source of an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle {
    found: &'static str,
    wanted: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, wanted } = self;
        write!(f, "it is {found}, and kimage needs a {wanted} there")
    }
}

impl std::error::Error for Obstacle {}

impl Obstacle {
    /// What stands where a folder is needed.
    pub fn folder(there: &Metadata) -> Self {
        Self {
            found: kind(there),
            wanted: "folder",
        }
    }

    /// The obstacle that `error` is about.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    fn error(self) -> io::Error {
        io::Error::other(self)
    }
}

fn kind(there: &Metadata) -> &'static str {
    let kind = there.file_type();
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_file() {
        "a file"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Whether a folder is at `path`. Nothing may be there, but no link and no file.
pub fn is_folder(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => Ok(true),
        Ok(there) => Err(Obstacle::folder(&there).error()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the folder at `path`, itself and not what a link leads to.
pub fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(folder) => Ok(folder.into()),
        Err(error @ (Errno::NOTDIR | Errno::LOOP)) => {
            // A folder now: then the first answer was about something that is gone.
            is_folder(path)?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the file at `path` with `access`, which may ask for it to be made, and follows no link.
pub fn open_file(path: &Path, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let refuse = |there: &Metadata| {
        let (found, wanted) = (kind(there), "file");
        Obstacle { found, wanted }.error()
    };
    // As the user's umask has it.
    match open(path, flags, Mode::from_raw_mode(0o666)) {
        Ok(opened) => {
            let file = File::from(opened);
            let there = file.metadata()?;
            if there.is_file() {
                Ok(file)
            } else {
                Err(refuse(&there))
            }
        }
        // A link, a pipe that nobody reads, a folder.
        Err(error @ (Errno::LOOP | Errno::NXIO | Errno::ISDIR)) => match fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => Err(refuse(&there)),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    /// Makes something at a path, given a place elsewhere.
    type Make = fn(&Path, &Path);

    /// What may stand in the way: what an error calls it, and what makes it.
    pub(crate) const OBSTACLES: [(&str, Make); 5] = [
        ("a symbolic link", |path, elsewhere| {
            symlink(elsewhere, path).unwrap()
        }),
        ("a symbolic link", |path, _| symlink("nowhere", path).unwrap()),
        ("a symbolic link", |path, _| symlink(path, path).unwrap()),
        ("a named pipe", |path, _| {
            mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("a socket", |path, _| {
            mknodat(CWD, path, FileType::Socket, Mode::RWXU, 0).unwrap();
        }),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_neither_followed_nor_waited_for() {
        for (what, make) in testing::OBSTACLES {
            for access in [
                OFlags::RDONLY,
                OFlags::WRONLY | OFlags::CREATE,
                OFlags::RDWR | OFlags::CREATE,
            ] {
                let folder = tempfile::tempdir().unwrap();
                let (path, other) = (folder.path().join("x"), folder.path().join("other"));
                fs::write(&other, b"keep").unwrap();
                make(&path, &other);
                let error = open_file(&path, access).unwrap_err();
                let obstacle = Obstacle::of(&error).unwrap_or_else(|| panic!("{what}: {error}"));
                assert!(obstacle.to_string().contains(what), "{obstacle}");
                assert_eq!(fs::read(&other).unwrap(), b"keep");
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x");
            make(&path, folder.path());
            assert!(Obstacle::of(&open_folder(&path).unwrap_err()).is_some(), "{what}");
            assert!(Obstacle::of(&is_folder(&path).unwrap_err()).is_some(), "{what}");
        }
    }

    #[test]
    fn files_and_folders_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert!(!is_folder(&path).unwrap());
        assert_eq!(open_folder(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        open_file(&path, OFlags::WRONLY | OFlags::CREATE).unwrap();
        open_file(&path, OFlags::RDONLY).unwrap();
        open_folder(folder.path()).unwrap();
        let error = open_file(folder.path(), OFlags::RDWR).unwrap_err();
        assert!(error.to_string().contains("a folder"), "{error}");
        let error = open_folder(&path).unwrap_err();
        assert!(error.to_string().contains("a file"), "{error}");
    }
}
