//! Finds the disk whose partition table has the two partitions that a root hash names.

use std::collections::BTreeMap;
use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::command_line::RootHash;
use super::console;
use crate::gpt::{self, Guid, Place};
use crate::storage::{PartitionChange, tell_kernel};
use crate::sysfs;

/// Block devices that never hold the root partition. Opening a floppy drive would take seconds.
const NEVER: [&str; 8] = ["loop", "ram", "zram", "dm-", "sr", "fd", "md", "nbd"];

/// The disk with the root.
#[derive(Debug)]
pub(super) struct Found {
    /// The kernel's name for the disk: `vda`.
    pub(super) disk: String,
    /// The disk itself.
    pub(super) file: File,
    /// Bytes of a sector of its partition table.
    pub(super) sector_size: u64,
    /// The root filesystem.
    pub(super) root: Slice,
    /// Its hash tree.
    pub(super) hashes: Slice,
    /// The primary partition table could not be used.
    pub(super) from_backup: bool,
}

/// A partition as dm-verity needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    /// Its number in the table.
    pub(super) number: u32,
    /// First byte on the disk.
    pub(super) start: u64,
    /// Bytes.
    pub(super) length: u64,
    /// Major and minor number of its device.
    pub(super) device: (u32, u32),
}

/// A search over the disks, repeated as they appear.
pub(super) struct Search {
    root: Guid,
    hashes: Guid,
    seen: BTreeMap<String, String>,
}

impl Search {
    /// A search for the partitions that `root_hash` names: their ids are its two halves.
    pub(super) fn new(root_hash: &RootHash) -> Self {
        let [root, hashes] = root_hash.halves().map(Guid::from_text_order);
        Self {
            root,
            hashes,
            seen: BTreeMap::new(),
        }
    }

    /// Looks at all disks, in the order of their names. A disk that can't be read is noted and passed over.
    ///
    /// # Errors
    ///
    /// The partitions are there, but the kernel does not take them.
    pub(super) fn look(&mut self) -> Result<Option<Found>> {
        let mut names: Vec<String> = fs::read_dir("/sys/block")
            .context("read /sys/block")?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !NEVER.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        names.sort();
        for name in names {
            match self.look_at(&name) {
                Ok(Ok(found)) => return Ok(Some(found)),
                Ok(Err(other)) => drop(self.seen.insert(name, other)),
                Err(error) => drop(self.seen.insert(name, format!("{error:#}"))),
            }
        }
        Ok(None)
    }

    /// What is looked for, in words.
    pub(super) fn wanted(&self) -> String {
        format!("root partition {} and hash partition {}", self.root, self.hashes)
    }

    /// The disks seen so far and what they hold, in words.
    pub(super) fn seen(&self) -> String {
        let words: Vec<String> = self
            .seen
            .iter()
            .map(|(name, what)| format!("{name} ({what})"))
            .collect();
        if words.is_empty() {
            "no disk at all".to_owned()
        } else {
            words.join(", ")
        }
    }

    fn look_at(&self, name: &str) -> Result<Result<Found, String>> {
        let folder = sysfs::folder(name);
        if sysfs::number(&folder.join("size"))? == 0 {
            return Ok(Err("no medium".to_owned()));
        }
        let path = sysfs::node(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let own = sysfs::number(&folder.join("queue/logical_block_size")).unwrap_or(512);
        // An image made for 512-byte sectors may have been copied to a disk with larger ones.
        let sizes: &[u64] = if own == 4096 { &[4096, 512] } else { &[512] };
        let mut table = None;
        for size in sizes {
            table = table.or(gpt::read(&file, *size)?);
        }
        let Some(gpt::Found { table, place, .. }) = table else {
            return Ok(Err("no GUID partition table".to_owned()));
        };
        let by_id = |id: Guid| table.partitions.iter().find(|partition| partition.id == id);
        let (Some(root), Some(hashes)) = (by_id(self.root), by_id(self.hashes)) else {
            return Ok(Err(format!("{} other partitions", table.partitions.len())));
        };
        let slice = |partition| slice(name, &file, partition, table.sector_size);
        let (root, hashes) = (slice(root)?, slice(hashes)?);
        let (disk, sector_size) = (name.to_owned(), table.sector_size);
        Ok(Ok(Found {
            disk,
            sector_size,
            root,
            hashes,
            from_backup: place == Place::Backup,
            file,
        }))
    }
}

/// The kernel's device for a partition. The kernel reads the primary table only, so the device may have to be made.
fn slice(disk: &str, file: &File, partition: &gpt::Partition, sector_size: u64) -> Result<Slice> {
    let start = partition
        .first
        .checked_mul(sector_size)
        .context("a partition beyond any disk")?;
    let length = partition
        .sectors()
        .checked_mul(sector_size)
        .context("a partition beyond any disk")?;
    let slice = |device| Slice {
        number: partition.number,
        start,
        length,
        device,
    };
    let known = || -> Result<Option<(u32, u32)>> {
        let partitions = sysfs::partitions(disk)?;
        let same = partitions
            .iter()
            .find(|known| (known.start, known.length) == (start, length));
        Ok(same.map(|known| known.device))
    };
    if let Some(device) = known()? {
        return Ok(slice(device));
    }
    match tell_kernel(file, PartitionChange::Add, partition.number, start, length) {
        Ok(()) => console::say(&format!("{disk}: partition {} added by hand", partition.number)),
        // Busy: the kernel was still reading the table and has the partition by now.
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
        Err(error) => return Err(error).with_context(|| format!("add partition {}", partition.number)),
    }
    let device = known()?;
    device.map(slice).with_context(|| {
        format!(
            "the kernel has no partition {} as the table has it",
            partition.number
        )
    })
}
