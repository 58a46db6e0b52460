//! Finds the machine's own disk: its partition table has the two partitions that a root hash names, and
//! [`super::choice`] tells it from others that have them, too.

use std::collections::BTreeMap;
use std::fs::{self, File};

use anyhow::{Context, Result};
use kimage_roles::cause::Cause;
use rustix::io::Errno;

use super::choice::{self, Choice};
use super::command_line::RootHash;
use super::console;
use crate::failure::Failure;
use crate::gpt::{self, Guid, Place, Table};
use crate::storage::{PartitionChange, tell_kernel};
use crate::sysfs;

/// Block devices that never hold the root partition. Opening a floppy drive would take seconds.
const NEVER: [&str; 8] = ["loop", "ram", "zram", "dm-", "sr", "fd", "md", "nbd"];

/// The disk with the root.
#[derive(Debug)]
pub(super) struct Found {
    /// The kernel's name for the disk: `vda`.
    pub(super) disk: String,
    /// Major and minor number of its device.
    pub(super) device: (u32, u32),
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

/// A disk whose partition table has the root and its hash tree.
struct Candidate {
    name: String,
    file: File,
    table: Table,
    place: Place,
}

/// How far a search is.
pub(super) enum Outcome {
    /// The machine's own disk has not appeared.
    Missing,
    /// This is the machine's own disk if no more disks appear.
    Likely(Box<Found>),
    /// This is the machine's own disk.
    Sure(Box<Found>),
}

/// A search over the disks, repeated as they appear.
pub(super) struct Search {
    root: Guid,
    hashes: Guid,
    /// The partition that the firmware started.
    booted: Option<Guid>,
    seen: BTreeMap<String, String>,
}

impl Search {
    /// A search for the partitions that `root_hash` names (their ids are its two halves), on the disk with the partition
    /// that the firmware started, where it says which one that is.
    pub(super) fn new(root_hash: &RootHash, booted: Option<Guid>) -> Self {
        let [root, hashes] = root_hash.halves().map(Guid::from_text_order);
        Self {
            root,
            hashes,
            booted,
            seen: BTreeMap::new(),
        }
    }

    /// Looks at all disks, in the order of their names. A disk that can't be read is noted and passed over.
    ///
    /// # Errors
    ///
    /// Several disks might be the machine's own; the partitions are there, but the kernel does not take them.
    pub(super) fn look(&mut self) -> Result<Outcome> {
        let mut names: Vec<String> = fs::read_dir("/sys/block")
            .context("read /sys/block")?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !NEVER.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        names.sort();
        let mut candidates = Vec::new();
        for name in names {
            match self.look_at(&name) {
                Ok(Ok(candidate)) => candidates.push(candidate),
                Ok(Err(other)) => drop(self.seen.insert(name, other)),
                Err(error) => drop(self.seen.insert(name, format!("{error:#}"))),
            }
        }
        let tables: Vec<&Table> = candidates.iter().map(|candidate| &candidate.table).collect();
        match choice::choose(self.booted, &tables) {
            Choice::Wait => Ok(Outcome::Missing),
            Choice::Refuse(which) => {
                let names: Vec<&str> = which
                    .iter()
                    .map(|index| candidates[*index].name.as_str())
                    .collect();
                Err(self.refusal(&names).into())
            }
            Choice::Take(index) => Ok(Outcome::Sure(Box::new(
                self.found(candidates.swap_remove(index))?,
            ))),
            Choice::Settle(index) => Ok(Outcome::Likely(Box::new(
                self.found(candidates.swap_remove(index))?,
            ))),
        }
    }

    /// What is looked for, in words.
    pub(super) fn wanted(&self) -> String {
        let partitions = format!("root partition {} and hash partition {}", self.root, self.hashes);
        match self.booted {
            Some(id) => format!("{partitions} beside boot partition {id}, which the firmware started"),
            None => partitions,
        }
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

    /// Why none of these disks is booted from. Each is named with the path that leads to it: the kernel's names change.
    fn refusal(&self, names: &[&str]) -> Failure {
        let places: Vec<String> = names
            .iter()
            .map(|name| format!("{name} ({})", sysfs::place(name)))
            .collect();
        let what = match self.booted {
            Some(_) => "the root and the boot partition that the firmware started",
            None => "the root, and the firmware doesn't say which one it started",
        };
        let message = format!("{} all have {what}", places.join(" and "));
        Failure::because(Cause::DiskAmbiguous, message)
    }

    fn look_at(&self, name: &str) -> Result<Result<Candidate, String>> {
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
        if !choice::has(&table, self.root) || !choice::has(&table, self.hashes) {
            return Ok(Err(format!("{} other partitions", table.partitions.len())));
        }
        if self.booted.is_some_and(|id| !choice::has(&table, id)) {
            return Ok(Err("the root, but the firmware started another disk".to_owned()));
        }
        let name = name.to_owned();
        Ok(Ok(Candidate {
            name,
            file,
            table,
            place,
        }))
    }

    fn found(&self, candidate: Candidate) -> Result<Found> {
        let Candidate {
            name,
            file,
            table,
            place,
        } = candidate;
        let slice = |id: Guid| {
            let partition = table.partitions.iter().find(|partition| partition.id == id);
            let partition = partition.with_context(|| format!("no partition {id}"))?;
            slice(&name, &file, partition, table.sector_size)
        };
        let (root, hashes) = (slice(self.root)?, slice(self.hashes)?);
        Ok(Found {
            device: sysfs::device(&name)?,
            sector_size: table.sector_size,
            root,
            hashes,
            from_backup: place == Place::Backup,
            disk: name,
            file,
        })
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
