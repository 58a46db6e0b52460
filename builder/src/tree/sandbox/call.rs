//! One stopped system call: its arguments, its caller's memory, and the files it names, seen as the caller sees them.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, stat};
use rustix::io::Errno;

/// `PATH_MAX`: the kernel takes no longer path, terminator included.
const PATH_LIMIT: usize = 4096;

/// The flags of `*at` calls that matter here (`linux/fcntl.h`).
pub(super) const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_EMPTY_PATH: u64 = 0x1000;

/// Where a call's target is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// A descriptor of the caller, or [`AT_FDCWD`].
    pub(super) folder: i32,
    pub(super) path: Vec<u8>,
    /// Follow a symbolic link in the last part.
    pub(super) follow: bool,
    /// An empty path means the descriptor itself.
    pub(super) empty: bool,
}

impl Place {
    pub(super) fn path(path: Vec<u8>, follow: bool) -> Self {
        Self {
            folder: AT_FDCWD,
            path,
            follow,
            empty: false,
        }
    }

    pub(super) fn descriptor(number: u64) -> Self {
        Self {
            folder: number as i32,
            path: Vec::new(),
            follow: true,
            empty: true,
        }
    }

    pub(super) fn at(folder: u64, path: Vec<u8>, flags: u64) -> Self {
        let (follow, empty) = (flags & AT_SYMLINK_NOFOLLOW == 0, flags & AT_EMPTY_PATH != 0);
        Self {
            folder: folder as i32,
            path,
            follow,
            empty,
        }
    }

    /// The folder that holds the place's last part, and that part. An error for a path without one.
    pub(super) fn split(&self) -> Result<(Self, Vec<u8>), Errno> {
        let end = self
            .path
            .iter()
            .rposition(|byte| *byte != b'/')
            .ok_or(Errno::EXIST)?
            + 1;
        let start = self.path[..end]
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let name = &self.path[start..end];
        if name == b"." || name == b".." {
            return Err(Errno::EXIST);
        }
        let folder = if start == 0 {
            b".".to_vec()
        } else {
            self.path[..start].to_vec()
        };
        let folder = Self {
            folder: self.folder,
            path: folder,
            follow: true,
            empty: false,
        };
        Ok((folder, name.to_vec()))
    }
}

/// The process (more exactly: the thread) that made the call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) pid: u32,
}

impl Caller {
    /// The C string at `address` of the caller's memory.
    pub(super) fn string(self, address: u64) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        while text.len() < PATH_LIMIT {
            let at = address.checked_add(text.len() as u64).ok_or(Errno::FAULT)?;
            // Not past the end of a page: the next one may not be there.
            let step = (PATH_LIMIT as u64 - at % PATH_LIMIT as u64).min((PATH_LIMIT - text.len()) as u64);
            let piece = self.bytes(at, step as usize)?;
            match piece.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    text.extend_from_slice(&piece[..end]);
                    return Ok(text);
                }
                None => text.extend_from_slice(&piece),
            }
        }
        Err(Errno::NAMETOOLONG)
    }

    /// `length` bytes at `address` of the caller's memory.
    pub(super) fn bytes(self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0u8; length];
        let local = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: length,
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: length,
        };
        #[expect(unsafe_code, reason = "process_vm_readv has no wrapper")]
        // SAFETY: `local` is `buffer`, valid for writes of `length` bytes; the remote side is checked by the kernel.
        let count = unsafe {
            libc::process_vm_readv(
                self.pid as libc::pid_t,
                &raw const local,
                1,
                &raw const remote,
                1,
                0,
            )
        };
        if usize::try_from(count) == Ok(length) {
            Ok(buffer)
        } else {
            Err(Errno::FAULT)
        }
    }

    /// The caller's file mode creation mask.
    pub(super) fn umask(self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        value
            .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
            .unwrap_or(0o022)
    }

    /// An `O_PATH` descriptor of `place`, or the error that the caller would have got.
    pub(super) fn open(self, place: &Place) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if !place.follow {
            flags |= OFlags::NOFOLLOW;
        }
        if place.path.is_empty() {
            if !place.empty {
                return Err(Errno::NOENT);
            }
            return self.open_below(place.folder, b"", flags - OFlags::NOFOLLOW);
        }
        if self.has_other_root()? {
            return self.open_in_other_root(place, flags);
        }
        if place.path[0] == b'/' {
            let path = self.instead_of_self(&place.path);
            return openat(CWD, path, flags, Mode::empty());
        }
        self.open_below(place.folder, &place.path, flags)
    }

    /// Opens `path` relative to a descriptor of the caller, through `/proc`.
    fn open_below(self, folder: i32, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut full = self.folder_link(folder).into_bytes();
        if !path.is_empty() {
            full.push(b'/');
            full.extend_from_slice(path);
        }
        match openat(CWD, full, flags, Mode::empty()) {
            Err(Errno::NOENT) if folder != AT_FDCWD && !Path::new(&self.folder_link(folder)).is_symlink() => {
                Err(Errno::BADF)
            }
            other => other,
        }
    }

    fn folder_link(self, folder: i32) -> String {
        match folder {
            AT_FDCWD => format!("/proc/{}/cwd", self.pid),
            number => format!("/proc/{}/fd/{number}", self.pid),
        }
    }

    /// `/proc/self` is this process when this process looks; the caller means itself.
    fn instead_of_self(self, path: &[u8]) -> Vec<u8> {
        for prefix in ["/proc/self/", "/proc/thread-self/", "/dev/fd/"] {
            if let Some(rest) = path.strip_prefix(prefix.as_bytes()) {
                let middle = if prefix == "/dev/fd/" { "fd/" } else { "" };
                return [format!("/proc/{}/{middle}", self.pid).as_bytes(), rest].concat();
            }
        }
        path.to_vec()
    }

    /// Whether the caller has changed its root directory.
    fn has_other_root(self) -> Result<bool, Errno> {
        let (theirs, ours) = (stat(format!("/proc/{}/root", self.pid))?, stat("/")?);
        Ok((theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino))
    }

    /// After a `chroot`: absolute paths and links start at the caller's root, which `openat2` can do given a path
    /// relative to that root.
    fn open_in_other_root(self, place: &Place, flags: OFlags) -> Result<OwnedFd, Errno> {
        let link = |path: String| {
            fs::read_link(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        let root = format!("/proc/{}/root", self.pid);
        let path = if place.path[0] == b'/' {
            PathBuf::from(OsString::from_vec(place.path.clone()))
        } else {
            let folder = link(self.folder_link(place.folder))?;
            let inside = folder
                .strip_prefix(link(root.clone())?)
                .map_err(|_| Errno::NOENT)?;
            inside.join(std::ffi::OsStr::from_bytes(&place.path))
        };
        let root = openat(
            CWD,
            root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_splits_into_folder_and_name() {
        let split = |path: &str| {
            let (folder, name) = Place::path(path.into(), true).split().ok()?;
            Some((
                String::from_utf8(folder.path).unwrap(),
                String::from_utf8(name).unwrap(),
            ))
        };
        let pair = |folder: &str, name: &str| Some((folder.to_owned(), name.to_owned()));
        assert_eq!(split("/dev/null"), pair("/dev/", "null"));
        assert_eq!(split("null"), pair(".", "null"));
        assert_eq!(split("a//b//"), pair("a//", "b"));
        assert_eq!(split("/x"), pair("/", "x"));
        for path in ["", "/", "..", "a/.", "a/.."] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn strings_are_read_across_pages_and_bad_addresses_refused() {
        let caller = Caller {
            pid: std::process::id(),
        };
        let text = [vec![b'x'; 4000], vec![b'y'; 90], vec![0]].concat();
        assert_eq!(caller.string(text.as_ptr() as u64).unwrap(), text[..4090]);
        let endless = vec![b'x'; 3 * PATH_LIMIT];
        assert_eq!(caller.string(endless.as_ptr() as u64), Err(Errno::NAMETOOLONG));
        assert_eq!(caller.string(1), Err(Errno::FAULT));
        assert_eq!(caller.string(u64::MAX), Err(Errno::FAULT));
    }

    #[test]
    fn the_callers_own_proc_is_meant() {
        let caller = Caller { pid: 7 };
        assert_eq!(caller.instead_of_self(b"/proc/self/fd/3"), b"/proc/7/fd/3");
        assert_eq!(caller.instead_of_self(b"/dev/fd/3"), b"/proc/7/fd/3");
        assert_eq!(caller.instead_of_self(b"/proc/selfish"), b"/proc/selfish");
    }
}
