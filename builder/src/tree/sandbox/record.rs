//! Where recorded owners live while the sandbox runs.
//!
//! In the inode itself, as an extended attribute, so that renames and hard links need no bookkeeping and a deleted
//! inode takes its record along. Symbolic links take no `user.` attributes, and some filesystems have none: those
//! inodes are remembered by number and kept open, because the kernel reuses the number of an inode that nobody holds.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, XattrFlags, open, statx};
use rustix::io::Errno;

use super::OWNER_XATTR;
use super::owners::{Owner, Owners};
use crate::tree::TreePath;

/// More than any [`Owner`] needs as JSON.
const RECORD_LIMIT: usize = 1024;

/// An inode, held by an `O_PATH` descriptor.
pub(super) struct Inode {
    pub(super) descriptor: OwnedFd,
    /// Device and inode number.
    number: (u32, u32, u64),
    mount: u64,
    mode: u16,
}

impl Inode {
    /// The inode that `descriptor` refers to.
    pub(super) fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::MNT_ID;
        let stat = statx(&descriptor, "", AtFlags::EMPTY_PATH, wanted)?;
        let number = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        Ok(Self {
            descriptor,
            number,
            mount: stat.stx_mnt_id,
            mode: stat.stx_mode,
        })
    }

    fn at(path: &Path) -> Result<Self, Errno> {
        Self::new(open(
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self) -> bool {
        u32::from(self.mode) & libc::S_IFMT == libc::S_IFREG
    }

    /// A path to the inode itself that system calls without a descriptor form take.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd())
    }
}

struct Pinned {
    _inode: OwnedFd,
    owner: Owner,
}

/// Reads and writes the records of inodes of the root filesystem.
pub(super) struct Recorder {
    root_mount: u64,
    pinned: HashMap<(u32, u32, u64), Pinned>,
}

impl Recorder {
    /// A recorder for the root directory of this process, with `known` owners from an earlier sandbox.
    pub(super) fn new(known: &Owners) -> io::Result<Self> {
        let mut recorder = Self {
            root_mount: Inode::at(Path::new("/"))?.mount,
            pinned: HashMap::new(),
        };
        for (path, owner) in known.iter() {
            match Inode::at(&path.under(Path::new("/"))) {
                Ok(inode) if recorder.read(&inode)? != *owner => recorder.write(inode, owner.clone())?,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(recorder)
    }

    /// Whether `inode` belongs to the root filesystem, and not to `/run`, `/dev` or a bind.
    pub(super) fn covers(&self, inode: &Inode) -> bool {
        inode.mount == self.root_mount
    }

    /// The record of `inode`.
    pub(super) fn read(&self, inode: &Inode) -> Result<Owner, Errno> {
        if let Some(pinned) = self.pinned.get(&inode.number) {
            return Ok(pinned.owner.clone());
        }
        let mut value = [0; RECORD_LIMIT];
        match rustix::fs::getxattr(inode.path(), OWNER_XATTR, &mut value) {
            // A foreign value under our name is no record.
            Ok(length) => Ok(serde_json::from_slice(&value[..length]).unwrap_or_default()),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(Owner::default()),
            Err(error) => Err(error),
        }
    }

    /// Makes `owner` the record of `inode`.
    pub(super) fn write(&mut self, inode: Inode, owner: Owner) -> Result<(), Errno> {
        if owner.is_plain() {
            self.pinned.remove(&inode.number);
            return match rustix::fs::removexattr(inode.path(), OWNER_XATTR) {
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
                other => other,
            };
        }
        let value = serde_json::to_vec(&owner).map_err(|_| Errno::INVAL)?;
        match rustix::fs::setxattr(inode.path(), OWNER_XATTR, &value, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => {
                self.pinned.insert(
                    inode.number,
                    Pinned {
                        _inode: inode.descriptor,
                        owner,
                    },
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The records of all paths of the root filesystem. Nothing may change it meanwhile.
    pub(super) fn collect(&self) -> io::Result<Owners> {
        let mut owners = Owners::default();
        let root = open(
            "/",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let root_device = device(&root)?;
        let mut folders = vec![TreePath::root()];
        self.note(&TreePath::root(), Path::new("/"), &mut owners)?;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder.under(Path::new("/")))? {
                let entry = entry?;
                let (path, host) = (folder.join(entry.file_name().as_bytes()), entry.path());
                let is_folder = entry.file_type()?.is_dir();
                if is_folder && self.is_foreign(&host, root_device)? {
                    continue;
                }
                self.note(&path, &host, &mut owners)?;
                if is_folder {
                    folders.push(path);
                }
            }
        }
        inherit_backups(&mut owners);
        Ok(owners)
    }

    /// Whether another filesystem or a bind is mounted at `path`.
    fn is_foreign(&self, path: &Path, root_device: (u32, u32)) -> io::Result<bool> {
        let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?;
        let mounted = StatxFlags::MNT_ID.bits() & stat.stx_mask != 0;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(if mounted {
            stat.stx_mnt_id != self.root_mount
        } else {
            device != root_device
        })
    }

    fn note(&self, path: &TreePath, host: &Path, owners: &mut Owners) -> io::Result<()> {
        let mut value = [0; RECORD_LIMIT];
        let mut owner = match rustix::fs::lgetxattr(host, OWNER_XATTR, &mut value) {
            Ok(length) => serde_json::from_slice(&value[..length]).unwrap_or_default(),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Owner::default(),
            Err(error) => return Err(error.into()),
        };
        if !self.pinned.is_empty()
            && let Some(pinned) = self.pinned.get(&Inode::at(host)?.number)
        {
            owner = pinned.owner.clone();
        }
        owners.insert(path.clone(), owner);
        Ok(())
    }
}

/// The password tools give their backups the owner that they see on the original, and they see 0:0 everywhere.
fn inherit_backups(owners: &mut Owners) {
    for name in [&b"shadow"[..], b"gshadow"] {
        let folder = TreePath::root().join(b"etc");
        let backup = folder.join(&[name, b"-"].concat());
        let is_file = backup
            .under(Path::new("/"))
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file());
        if let Some(owner) = owners.get(&folder.join(name)).cloned()
            && is_file
            && owners.get(&backup).is_none()
        {
            owners.insert(backup, owner);
        }
    }
}

fn device(directory: impl AsFd) -> io::Result<(u32, u32)> {
    let stat = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}
