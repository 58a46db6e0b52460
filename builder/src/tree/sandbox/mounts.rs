//! Assembles the filesystem that the commands see. Runs as PID 1 of the sandbox, in its own mount namespace.

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_bind_recursive, mount_change, move_mount, open_tree, unmount,
};

use super::limits::Limits;
use super::request::{At, Bind, Root, SetupError, Step};

/// The host's device nodes that are the same on every host.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Files and folders in each of `/tmp` and `/run`: each costs a kilobyte of the kernel's memory.
const TEMPORARY_FILES: u32 = 1 << 18;

/// Makes `root` the root directory, with fresh `/proc`, `/dev`, `/run`, `/sys` and `/tmp` and the `binds`, and lets
/// go of the host's filesystems.
pub(super) fn assemble(root: &Root, binds: &[Bind], limits: &Limits) -> Result<(), SetupError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).at(Step::Mounts, "make mounts private")?;
    let devices = DEVICES.map(|name| (name, detach(Path::new("/dev").join(name).as_os_str())));
    let binds = binds.iter().map(detach_bind).collect::<Result<Vec<_>, _>>()?;
    let top = match root {
        Root::Directory(path) | Root::ReadOnly(path) => {
            mount_bind_recursive(path, path).at(Step::Root, shown("bind", path))?;
            path
        }
        Root::Overlay { lower, upper, work } => {
            mount_overlay(lower, upper, work).at(Step::Overlay, shown("mount an overlay over", upper))?;
            upper
        }
    };
    std::env::set_current_dir(top).at(Step::Root, shown("enter", top))?;
    // The host's root ends up stacked under ".", out of reach of absolute paths (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").at(Step::Root, "change the root directory")?;
    mount_system(limits)?;
    populate_dev(devices)?;
    for (bind, source) in binds {
        attach_bind(bind, &source).at(Step::Mounts, shown("bind to", &bind.inside))?;
    }
    // Not before /proc is there: the kernel wants to see the host's one first.
    unmount(".", UnmountFlags::DETACH).at(Step::Root, "detach the host's filesystems")?;
    std::env::set_current_dir("/").at(Step::Root, "enter /")?;
    if let Root::ReadOnly(path) = root {
        open_directory(&"/".into())
            .and_then(|top| set_read_only(&top, Depth::This))
            .at(Step::Root, shown("make read-only", path))?;
    }
    Ok(())
}

fn shown(verb: &str, path: &OsString) -> String {
    format!("{verb} {}", path.to_string_lossy())
}

/// An overlay whose directories are named by descriptor: option strings have no safe way to spell a `,` or `:`.
fn mount_overlay(lower: &[OsString], upper: &OsString, work: &OsString) -> io::Result<()> {
    let lower = lower.iter().map(open_directory).collect::<io::Result<Vec<_>>>()?;
    let (upper_fd, work_fd) = (open_directory(upper)?, open_directory(work)?);
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let options = format!(
        "userxattr,lowerdir={},upperdir={},workdir={}\0",
        lower.iter().map(path).collect::<Vec<_>>().join(":"),
        path(&upper_fd),
        path(&work_fd),
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).map_err(io::Error::other)?;
    mount("overlay", upper, "overlay", MountFlags::empty(), options)?;
    Ok(())
}

fn open_directory(path: &OsString) -> io::Result<OwnedFd> {
    Ok(open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A copy of the mount at `path`, attached nowhere.
fn detach(path: &std::ffi::OsStr) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

fn detach_bind(bind: &Bind) -> Result<(&Bind, OwnedFd), SetupError> {
    let source = detach(&bind.host).at(Step::Mounts, shown("bind", &bind.host))?;
    if !bind.writable {
        set_read_only(&source, Depth::AllBelow).at(Step::Mounts, shown("make read-only", &bind.host))?;
    }
    Ok((bind, source))
}

fn attach_bind(bind: &Bind, source: &OwnedFd) -> io::Result<()> {
    let target = Path::new(&bind.inside);
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode).is_dir() {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        File::options().append(true).create(true).open(target)?;
    }
    attach(source, target)
}

fn attach(source: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(
        source,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// How far a mount's attribute goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    This,
    AllBelow,
}

/// Sets read-only on the mount that `mount` is the top of, or on it and all below it. A remount would have to repeat the flags that the host's
/// mount has locked; `mount_setattr` only adds.
fn set_read_only(mount: &OwnedFd, depth: Depth) -> io::Result<()> {
    // struct mount_attr of linux/mount.h: attr_set, attr_clr, propagation, userns_fd.
    let attributes: [u64; 4] = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
    let recursive = if depth == Depth::AllBelow {
        libc::AT_RECURSIVE
    } else {
        0
    };
    #[expect(unsafe_code, reason = "mount_setattr has no wrapper")]
    // SAFETY: the path is an empty C string, the structure lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn mount_system(limits: &Limits) -> Result<(), SetupError> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        mount_point(name, mode).at(Step::Root, format!("make /{name}"))?;
    }
    // Read-only: where the host's root runs the sandbox, root inside is the owner of all that is in `/proc/sys`, and
    // what it writes there counts for the whole host (`kernel.core_pattern` names a program to run).
    let proc = PLAIN | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount("proc", "/proc", "proc", proc, None::<&std::ffi::CStr>).at(Step::Proc, "mount /proc")?;
    let temporary = |target: &str, flags, options: String| {
        let mounted = CString::new(options)
            .map_err(io::Error::other)
            .and_then(|options| Ok(mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str()))?));
        mounted.at(Step::Mounts, format!("mount {target}"))
    };
    temporary(
        "/dev",
        MountFlags::NOSUID,
        "mode=0755,size=64m,nr_inodes=4096".to_owned(),
    )?;
    let room = format!("size={},nr_inodes={TEMPORARY_FILES}", limits.temporary);
    temporary("/run", PLAIN, format!("mode=0755,{room}"))?;
    temporary("/tmp", PLAIN, format!("mode=1777,{room}"))?;
    temporary("/sys", PLAIN | MountFlags::RDONLY, "mode=0555".to_owned())
}

/// Makes the directory `/name` unless something is there.
fn mount_point(name: &str, mode: u32) -> io::Result<()> {
    let path = Path::new("/").join(name);
    match DirBuilder::new().mode(mode).create(&path) {
        // Past the umask.
        Ok(()) => fs::set_permissions(&path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn populate_dev(devices: [(&str, io::Result<OwnedFd>); 6]) -> Result<(), SetupError> {
    for (name, source) in devices {
        let target = Path::new("/dev").join(name);
        let attached = source.and_then(|source| {
            File::create(&target)?;
            attach(&source, &target)
        });
        attached.at(Step::Mounts, format!("show /dev/{name}"))?;
    }
    let directories = fs::create_dir("/dev/pts").and_then(|()| fs::create_dir("/dev/shm"));
    directories.at(Step::Mounts, "make directories in /dev")?;
    fs::set_permissions("/dev/shm", Permissions::from_mode(0o1777)).at(Step::Mounts, "make /dev/shm")?;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        terminals,
        c"newinstance,ptmxmode=0666,mode=0620",
    )
    .at(Step::Mounts, "mount /dev/pts")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, Path::new("/dev").join(name)).at(Step::Mounts, format!("link /dev/{name}"))?;
    }
    Ok(())
}
