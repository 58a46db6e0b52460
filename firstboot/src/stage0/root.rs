//! The mounts that systemd finds, and the move into the real root.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

const SYSROOT: &str = "/sysroot";
const INIT: &str = "/sbin/init";
/// Where the changeable layer of `/etc` lives: gone at power-off, so every boot renders `/etc` anew.
const ETC_LAYERS: &str = "/run/kimage/etc";
const EVERYTHING_OFF: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
/// Magic numbers of the file systems that an initrd can be (`RAMFS_MAGIC`, `TMPFS_MAGIC`).
const INITRD_FILESYSTEMS: [i64; 2] = [0x8584_58f6, 0x0102_1994];

/// Mounts `/dev`, `/proc`, `/sys` and `/run`, with the options that systemd would give them: it keeps what it finds.
pub(super) fn mount_kernel_filesystems() -> Result<()> {
    let run = MountFlags::NOSUID | MountFlags::NODEV;
    let table: [(&str, &str, MountFlags, &CStr); 4] = [
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        ("proc", "/proc", EVERYTHING_OFF, c""),
        ("sysfs", "/sys", EVERYTHING_OFF, c""),
        ("tmpfs", "/run", run, c"mode=755,size=20%,nr_inodes=800k"),
    ];
    for (kind, path, flags, options) in table {
        mount(kind, path, kind, flags, options).with_context(|| format!("mount {kind} on {path}"))?;
    }
    Ok(())
}

/// Mounts the verified device `device` as the real root, lays a changeable layer over its `/etc`, and moves the
/// kernel's file systems there.
pub(super) fn mount_root(device: (u32, u32)) -> Result<()> {
    // device mapper numbers its nodes by the minor number.
    let node = format!("/dev/dm-{}", device.1);
    mount(&node, SYSROOT, "squashfs", MountFlags::RDONLY, c"")
        .with_context(|| format!("mount {node} on {SYSROOT}"))?;
    let init = Path::new(SYSROOT).join(INIT.trim_start_matches('/'));
    // A symlink into the new root can't be followed from here, so its being there has to do.
    fs::symlink_metadata(&init).with_context(|| format!("the root has no {INIT}"))?;
    mount_etc().context("lay a changeable layer over /etc")?;
    for path in ["/dev", "/proc", "/sys", "/run"] {
        mount_move(path, format!("{SYSROOT}{path}")).with_context(|| format!("move {path} into the root"))?;
    }
    Ok(())
}

fn mount_etc() -> Result<()> {
    for layer in ["upper", "work"] {
        // Nobody but root may pass by the mount and reach the layers.
        let path = format!("{ETC_LAYERS}/{layer}");
        fs::DirBuilder::new()
            .mode(0o755)
            .create("/run/kimage")
            .or_else(fine_if_there)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(ETC_LAYERS)
            .or_else(fine_if_there)?;
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("create {path}"))?;
    }
    let etc = format!("{SYSROOT}/etc");
    let options = format!("lowerdir={etc},upperdir={ETC_LAYERS}/upper,workdir={ETC_LAYERS}/work\0");
    let options = CStr::from_bytes_with_nul(options.as_bytes())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("etc", &etc, "overlay", flags, options).with_context(|| format!("mount overlay on {etc}"))
}

/// Frees the initrd's memory, makes the real root `/` and becomes systemd.
#[expect(
    clippy::disallowed_methods,
    reason = "this process becomes another; there is no child"
)]
pub(super) fn switch() -> Result<Infallible> {
    empty_initrd().context("empty the initrd")?;
    chdir(SYSROOT).context("enter the root")?;
    mount_move(".", "/").context("move the root to /")?;
    chroot(".").context("change the root")?;
    chdir("/").context("enter the new /")?;
    let error = std::process::Command::new(INIT)
        .env_clear()
        .env("TERM", "linux")
        .exec();
    Err(error).with_context(|| format!("start {INIT}"))
}

fn empty_initrd() -> Result<()> {
    let kind = statfs("/").context("look at /")?.f_type;
    // The one place that deletes a whole tree must never run on anything but an initrd.
    ensure!(
        INITRD_FILESYSTEMS.contains(&kind),
        "/ is no initrd but a file system of type {kind:#x}"
    );
    let device = fs::symlink_metadata("/")?.dev();
    empty(Path::new("/"), device)
}

/// Deletes everything below `folder` that is on `device`: mount points and what is mounted on them stay.
fn empty(folder: &Path, device: u64) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            empty(&path, device)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
        }
    }
    Ok(())
}

fn fine_if_there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::AlreadyExists {
        Ok(())
    } else {
        Err(error)
    }
}
