//! Disks that a platform attaches to hand over metadata, told by their label. udev has read the labels; the kernel
//! mounts what is used read-only on a mount that no path leads to.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kimage_roles::cause::Cause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::pin::Place;
use super::{MAX_DOCUMENT, server};
use crate::failure::Failure;
use crate::host::{Host, read_bounded};

/// Block devices that a platform never hands metadata over on.
const NEVER: [&str; 7] = ["loop", "ram", "zram", "dm-", "md", "nbd", "fd"];
/// File systems that metadata comes on.
const KINDS: [&str; 2] = ["iso9660", "vfat"];
/// udev's folder: `data` has what it knows of each device, `queue` is there while it is busy (udevadm-settle(8)).
const UDEV: &str = "/run/udev";
/// Largest file of udev's database that is read, in bytes.
const MAX_UDEV: u64 = 64 << 10;
/// Longest wait for udev to look at the devices there are.
const SETTLE: Duration = Duration::from_secs(30);
/// Longest wait for a disk that the machine can't do without: hypervisors attach some after the start.
const LATE: Duration = Duration::from_secs(10);

/// Gives a folder with the files of a file system.
type Mount<'a> = Box<dyn Fn(&Labelled) -> Result<OwnedFd> + 'a>;

/// The disks of a machine.
pub(super) struct Disks<'a> {
    host: &'a Host,
    mount: Mount<'a>,
    late: Duration,
    choice: Choice,
}

/// Which disks may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// The one that there is.
    TheOnlyOne,
    /// The one in this place.
    At(Place),
    /// None.
    Nothing,
}

/// A file system with a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labelled {
    /// The kernel's name for its device: `sr0`.
    pub(super) device: String,
    kind: String,
    label: String,
    /// Where it is plugged in.
    pub(super) place: Place,
}

/// A disk with metadata, mounted for as long as this lives.
pub(super) struct Disk {
    labelled: Labelled,
    folder: OwnedFd,
}

impl<'a> Disks<'a> {
    /// The disks of this machine, mounted by the kernel.
    pub(super) fn of(host: &'a Host) -> Self {
        Self::mounted_by(host, Box::new(|found| mount(host, found)), LATE)
    }

    /// Disks that `mount` opens; waits so long for one that comes late.
    pub(super) fn mounted_by(host: &'a Host, mount: Mount<'a>, late: Duration) -> Self {
        Self {
            host,
            mount,
            late,
            choice: Choice::TheOnlyOne,
        }
    }

    /// Says which disks may be opened from now on; as long as nobody says, the one that there is.
    pub(super) fn choose(&mut self, choice: Choice) {
        self.choice = choice;
    }

    /// Waits until a disk with one of these labels is there, but no longer than is useful.
    pub(super) fn wait_for(&self, labels: &[&str]) -> Result<(), Failure> {
        if self.choice != Choice::TheOnlyOne {
            return Ok(());
        }
        let here = || !self.labelled(labels).is_empty();
        self.wait(self.late, here).map_err(Failure::internal)
    }

    /// Waits until a disk with one of these labels is in `place`, but no longer than is useful.
    pub(super) fn wait_for_place(&self, place: &Place, labels: &[&str]) -> Result<(), Failure> {
        let here = || self.labelled(labels).iter().any(|disk| disk.place == *place);
        self.wait(self.late, here).map_err(Failure::internal)
    }

    /// The one disk with this label, in any case, that may be opened; `None` when there is none.
    ///
    /// # Errors
    ///
    /// There are two: whoever attached the second may be anybody.
    pub(super) fn open(&self, label: &str) -> Result<Option<Disk>, Failure> {
        let Some(labelled) = self.only(&[label])? else {
            return Ok(None);
        };
        let folder = (self.mount)(&labelled);
        let folder = folder.map_err(|error| server::broken(format!("{labelled}: {error:#}")))?;
        Ok(Some(Disk { labelled, folder }))
    }

    /// The one disk with any of these labels that may be opened.
    ///
    /// # Errors
    ///
    /// There are two.
    pub(super) fn only(&self, labels: &[&str]) -> Result<Option<Labelled>, Failure> {
        let busy = self.host.path(format!("{UDEV}/queue"));
        self.wait(SETTLE, || !busy.exists()).map_err(Failure::internal)?;
        let mut found = self.labelled(labels);
        found.retain(|disk| match &self.choice {
            Choice::TheOnlyOne => true,
            Choice::At(place) => disk.place == *place,
            Choice::Nothing => false,
        });
        if found.len() > 1 {
            let names: Vec<String> = found
                .iter()
                .map(|disk| format!("{disk} at {}", disk.place.path))
                .collect();
            let message = format!("{} all offer metadata", names.join(" and "));
            return Err(Failure::because(Cause::MetadataAmbiguous, message));
        }
        Ok(found.pop())
    }

    /// All file systems with any of these labels, sorted by device.
    pub(super) fn labelled(&self, labels: &[&str]) -> Vec<Labelled> {
        let devices = self
            .host
            .path("/sys/class/block")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = devices
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.retain(|name| !NEVER.iter().any(|prefix| name.starts_with(prefix)));
        names.sort();
        let known = names.into_iter().filter_map(|name| self.known(name));
        known
            .filter(|found| labels.iter().any(|label| found.label.eq_ignore_ascii_case(label)))
            .collect()
    }

    /// What udev knows of a device's file system.
    fn known(&self, device: String) -> Option<Labelled> {
        let text = |path: String| {
            let bytes = read_bounded(&self.host.path(path), MAX_UDEV).ok()?;
            String::from_utf8(bytes).ok()
        };
        let number = text(format!("/sys/class/block/{device}/dev"))?;
        let properties = text(format!("{UDEV}/data/b{}", number.trim()))?;
        let property = |name: &str| {
            let mut lines = properties
                .lines()
                .filter_map(|line| line.strip_prefix("E:")?.split_once('='));
            lines
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        };
        let kind = property("ID_FS_TYPE").filter(|kind| KINDS.contains(&kind.as_str()))?;
        let label = property("ID_FS_LABEL")?;
        let mut path = property("ID_PATH").unwrap_or_else(|| self.kernel_path(&device));
        if let Some(number) = property("ID_PART_ENTRY_NUMBER") {
            path.push_str(&format!("-part{number}"));
        }
        let serial = property("ID_SERIAL");
        let place = Place { path, serial };
        Some(Labelled {
            device,
            kind,
            label,
            place,
        })
    }

    /// Where a device is among the kernel's: for buses that udev has no name for.
    fn kernel_path(&self, device: &str) -> String {
        let path = self.host.path(format!("/sys/class/block/{device}"));
        let path = path.read_link().unwrap_or_default().display().to_string();
        path.split("/block/")
            .next()
            .unwrap_or_default()
            .trim_start_matches("../")
            .to_owned()
    }

    /// Returns when `done`, or after `limit`, or at once where there is no udev that could tell news.
    fn wait(&self, limit: Duration, done: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let news = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("watch udev")?;
        for folder in [UDEV.to_owned(), format!("{UDEV}/data")] {
            let events = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE;
            match inotify::add_watch(&news, self.host.path(&folder), events) {
                Err(Errno::NOENT) => return Ok(()),
                added => added.with_context(|| format!("watch {folder}"))?,
            };
        }
        // The watch stands before the first look, so no news can slip in between.
        while !done() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            let timeout = Timespec::try_from(left).context("wait for udev")?;
            match poll(&mut [PollFd::new(&news, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for udev"),
            }
            // What happened doesn't matter: `done` looks anew.
            let mut buffer = [0; 4096];
            while rustix::io::read(&news, &mut buffer).is_ok_and(|count| count > 0) {}
        }
        Ok(())
    }
}

impl Disk {
    /// Where it is plugged in.
    pub(super) fn place(&self) -> Place {
        self.labelled.place.clone()
    }

    /// A file that must be there.
    pub(super) fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let missing = || server::nothing(format!("{self} has no {path}"));
        self.find(path)?.ok_or_else(missing)
    }

    /// A file that need not be there. Nothing on the disk can lead out of it.
    pub(super) fn find(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        match read_beneath(self.folder.as_fd(), path) {
            Ok(bytes) if bytes.len() > MAX_DOCUMENT => Err(server::too_large(path)),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(server::broken(format!("{self}: read {path}: {error}"))),
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.labelled.fmt(f)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TheOnlyOne => f.write_str("any disk"),
            Self::At(place) => write!(f, "disk at {}", place.path),
            Self::Nothing => f.write_str("without a disk"),
        }
    }
}

impl fmt::Display for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {} ({} {})", self.device, self.kind, self.label)
    }
}

/// At most one byte more of a plain file than a document may have.
fn read_beneath(folder: impl AsFd, path: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = File::from(openat2(folder, path, flags, Mode::empty(), beneath)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no plain file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Mounts a file system where no path leads; the kernel loads its module. It is unmounted when the answer is closed.
fn mount(host: &Host, found: &Labelled) -> Result<OwnedFd> {
    mount_device(&host.path(crate::sysfs::node(&found.device)), &found.kind)
}

fn mount_device(device: &Path, kind: &str) -> Result<OwnedFd> {
    ensure!(KINDS.contains(&kind), "{kind} is no file system for metadata");
    let mounted = || -> Result<OwnedFd, Errno> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)?;
        let nothing_more = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nothing_more)
    };
    mounted().with_context(|| format!("mount {} as {kind}", device.display()))
}
