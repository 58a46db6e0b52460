//! What sysfs says about disks (Documentation/ABI/stable/sysfs-block).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Bytes of the unit in which sysfs counts, whatever the disk's sectors are.
const SECTOR: u64 = 512;

/// A partition as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelPartition {
    /// Its device's name: `vda1`, `nvme0n1p1`.
    pub(crate) name: String,
    /// Its number.
    pub(crate) number: u32,
    /// First byte on the disk.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// Major and minor number of its device.
    pub(crate) device: (u32, u32),
}

/// The folder of a disk: `/sys/block/vda`.
pub(crate) fn folder(disk: &str) -> PathBuf {
    Path::new("/sys/block").join(disk)
}

/// The device node for a name of sysfs, which writes the `/` of a device's name as `!`.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// Where a disk is plugged in, by its path among the kernel's devices: `pci0000:00/0000:00:03.0/virtio1`.
pub(crate) fn place(disk: &str) -> String {
    let path = fs::canonicalize(folder(disk)).unwrap_or_default();
    let path = path
        .strip_prefix("/sys/devices")
        .unwrap_or(&path)
        .display()
        .to_string();
    path.strip_suffix(&format!("/block/{disk}"))
        .unwrap_or(&path)
        .to_owned()
}

/// Major and minor number of a disk's device.
pub(crate) fn device(disk: &str) -> Result<(u32, u32)> {
    device_number(&folder(disk).join("dev"))
}

/// Opens the node of a disk or partition, which must be that of the device with this number.
pub(crate) fn open(name: &str, device: (u32, u32), options: &OpenOptions) -> Result<File> {
    let path = node(name);
    let file = options
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let number = file
        .metadata()
        .with_context(|| format!("look at {}", path.display()))?
        .rdev();
    let found = (rustix::fs::major(number), rustix::fs::minor(number));
    ensure!(
        found == device,
        "{} is device {found:?}, not {device:?}",
        path.display()
    );
    Ok(file)
}

/// The partitions that the kernel sees on a disk, in no order.
pub(crate) fn partitions(disk: &str) -> Result<Vec<KernelPartition>> {
    let folder = folder(disk);
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut found = Vec::new();
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("partition").exists())
    {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let number = u32::try_from(self::number(&path.join("partition"))?).context("partition number")?;
        let (start, length) = (
            self::number(&path.join("start"))?,
            self::number(&path.join("size"))?,
        );
        let device = device_number(&path.join("dev"))?;
        found.push(KernelPartition {
            name,
            number,
            start: start * SECTOR,
            length: length * SECTOR,
            device,
        });
    }
    Ok(found)
}

/// Reads a file that holds one number.
pub(crate) fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.trim_end()
        .parse()
        .with_context(|| format!("{} is not a number", path.display()))
}

/// Reads a file that holds a device number like `252:3`.
fn device_number(path: &Path) -> Result<(u32, u32)> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let numbers: Vec<u32> = text
        .trim_end()
        .split(':')
        .filter_map(|part| part.parse().ok())
        .collect();
    ensure!(numbers.len() == 2, "{} holds {text:?}", path.display());
    Ok((numbers[0], numbers[1]))
}
