//! `kimage run`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::Context;
use crate::cli::{Acceleration, Run};
use crate::disk::sparse;
use crate::failure::{ExitCode, Failure};
use crate::pipeline::DiskFormat;
use crate::progress::bytes;
use crate::qemu::{self, Accelerator, Cache, Disk, Firmware, Format, Hardware};
use crate::release::names;

/// What a machine's disk has for its state, unless told.
const STATE_BYTES: u64 = 8 << 30;

/// Boots the image; returns when the machine is off.
pub(super) fn run(arguments: &Run, context: &Context) -> Result<()> {
    let image = of_release(&arguments.directory, DiskFormat::Raw.file_name())?;
    let vars = of_release(&arguments.directory, names::OVMF_VARS)?;
    let tool = qemu::tool()?;
    let firmware = Firmware::find(true)?;
    let accelerator = accelerator(arguments.accel, context)?;

    let store = context.store()?;
    let scratch = store.scratch()?;
    let own_vars = scratch.path().join(names::OVMF_VARS);
    let copied = File::open(&vars).and_then(|mut from| {
        // Not `fs::copy`: a read-only release must not make a read-only variable store.
        std::io::copy(&mut from, &mut File::create(&own_vars)?)
    });
    copied.with_context(|| format!("copy `{}`", vars.display()))?;
    let (path, cache) = match &arguments.keep {
        Some(path) => (path.clone(), Cache::Writeback),
        None => (scratch.path().join("disk"), Cache::Unsafe),
    };
    let size = make_disk(&image, &path, arguments.disk_size)?;
    let disks = [Disk::of(&path, Format::Raw).cache(cache)];
    let hardware = Hardware {
        accelerator,
        memory_mb: arguments.memory,
        cpus: arguments.cpus,
        firmware: Some((&firmware, &own_vars)),
        disks: &disks,
    };
    // The image may be anybody's: it gets an address and no way to this host or beyond.
    let tool = tool.args(hardware.arguments()).args([
        "-nic",
        "user,restrict=on,model=virtio-net-pci",
        "-serial",
        "mon:stdio",
    ]);
    let how = match accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "emulation",
    };
    context.progress.line(&format!(
        "booting `{}` with {how}, disk {}; Ctrl-A X ends the machine",
        arguments.directory.display(),
        bytes(size)
    ));
    let line = tool.line();
    let status = tool.status()?;
    if !status.success() {
        bail!("QEMU ended with {status}; it was started as `{line}`");
    }
    Ok(())
}

/// A file of the release.
fn of_release(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        let message = format!("`{}` holds no {name}", folder.display());
        bail!(
            Failure::new(ExitCode::Usage, message)
                .hint("name the folder of a role that `kimage build` wrote, as out/worker")
        );
    }
    Ok(path)
}

pub(super) fn accelerator(wanted: Acceleration, context: &Context) -> Result<Accelerator> {
    Ok(match wanted {
        Acceleration::Kvm => Accelerator::Kvm,
        Acceleration::Tcg => Accelerator::Tcg,
        Acceleration::Auto => {
            let fastest = Accelerator::fastest()?;
            if fastest == Accelerator::Tcg {
                context.progress.warn("KVM does not work here: the machine is emulated, some 20 times slower (see `kimage doctor`)");
            }
            fastest
        }
    })
}

/// Makes the machine's disk at `path` from `image` where there is none, with holes where the image has them; returns
/// its size, which grows to `wanted` but never shrinks.
fn make_disk(image: &Path, path: &Path, wanted: Option<u64>) -> Result<u64> {
    let place = || format!("make the disk `{}`", path.display());
    let from = File::open(image).with_context(|| format!("open `{}`", image.display()))?;
    let least = from.metadata().with_context(place)?.len();
    if fs::symlink_metadata(path).is_ok() {
        let disk = File::options()
            .write(true)
            .open(path)
            .with_context(|| format!("open the disk `{}`", path.display()))?;
        let found = disk.metadata().with_context(place)?.len();
        refuse_smaller(wanted, found, &format!("the disk `{}`", path.display()))?;
        let size = wanted.unwrap_or(found);
        disk.set_len(size).with_context(place)?;
        return Ok(size);
    }
    refuse_smaller(wanted, least, "the image")?;
    let size = wanted.unwrap_or(least + STATE_BYTES);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // Beside its place, so that a disk of this name is always a whole one.
    let disk = tempfile::NamedTempFile::new_in(folder).with_context(place)?;
    disk.as_file().set_len(size).with_context(place)?;
    sparse::copy(&from, disk.as_file(), 0).with_context(place)?;
    disk.persist_noclobber(path).with_context(place)?;
    Ok(size)
}

fn refuse_smaller(wanted: Option<u64>, found: u64, what: &str) -> Result<()> {
    if let Some(wanted) = wanted.filter(|wanted| *wanted < found) {
        let message = format!(
            "--disk-size: {} are less than {what} has ({})",
            bytes(wanted),
            bytes(found)
        );
        bail!(Failure::new(ExitCode::Usage, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_disk_is_made_once_grows_and_never_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let (image, disk) = (folder.path().join("image"), folder.path().join("disk"));
        let file = File::create(&image).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"boot", 4 << 20).unwrap();

        assert_eq!(make_disk(&image, &disk, None).unwrap(), (8 << 20) + STATE_BYTES);
        let made = File::options().read(true).write(true).open(&disk).unwrap();
        let mut found = [0; 4];
        made.read_exact_at(&mut found, 4 << 20).unwrap();
        assert_eq!(&found, b"boot");
        assert!(
            made.metadata().unwrap().blocks() * 512 < 4 << 20,
            "the disk is sparse"
        );

        made.write_all_at(b"kept", 6 << 20).unwrap();
        assert_eq!(make_disk(&image, &disk, Some(10 << 30)).unwrap(), 10 << 30);
        made.read_exact_at(&mut found, 6 << 20).unwrap();
        assert_eq!(&found, b"kept");
        assert_eq!(make_disk(&image, &disk, None).unwrap(), 10 << 30);
        assert!(make_disk(&image, &disk, Some(9 << 30)).is_err());
        let error = make_disk(&image, &folder.path().join("other"), Some(1 << 20)).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
    }
}
