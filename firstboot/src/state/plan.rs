//! What is to change on a disk's partition table: a function of the table and the disk's size, nothing else.

use anyhow::{Context, Result, ensure};
use kimage_roles::slot::{ALIGNMENT, Slot};

use crate::gpt::{Guid, Partition, Table};

/// Name of the state partition once its filesystem is complete.
pub const STATE: &str = "state";
/// Its name before: whatever is on it is worth nothing.
pub const STATE_NEW: &str = "state-new";
/// Less than this is no place for a node's data.
pub const SMALLEST_STATE: u64 = 1 << 30;

/// EFI system partition.
const ESP: Guid = guid(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// Types of the Discoverable Partitions Specification (x86-64).
const ROOT: Guid = guid(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
const ROOT_VERITY: Guid = guid(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5);
/// Linux data. Not the type for `/var`: that one promises an id made from the machine id.
const LINUX: Guid = guid(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);

const fn guid(value: u128) -> Guid {
    Guid::from_text_order(value.to_be_bytes())
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Disk and boot partition get random ids in place of the image's, which everybody knows. The firmware tells stage 0
    /// the id of the boot partition that it started, so from the next boot on no copy of the public image can be taken
    /// for this disk. Nothing else goes by these ids: the firmware finds the boot partition by its type, at the path for
    /// removable media; root and hash tree keep the ids that the root hash gives them.
    OwnIds {
        /// The boot partition's number.
        boot: u32,
    },
    /// The disk is larger (or smaller) than the table knows: the backup moves to its end.
    MoveEnd {
        /// The last sector for partitions from now on.
        last_usable: u64,
    },
    /// A partition appears.
    Add {
        /// Its number.
        number: u32,
        /// Its type.
        kind: Guid,
        /// Its name.
        name: &'static str,
        /// First sector.
        first: u64,
        /// Last sector.
        last: u64,
    },
    /// A partition becomes longer.
    Grow {
        /// Its number.
        number: u32,
        /// Its first sector, which stays.
        first: u64,
        /// Its new last sector.
        last: u64,
    },
}

/// What is to change on a disk of `sectors` sectors: ids of its own, the end of the table, a slot for updates as large as the role
/// declares (in MiB, see [`Slot`]) and the first slot as large, the state partition. A disk too small for all goes
/// without the slot; one too small for the state goes without.
pub fn plan(table: &Table, sectors: u64, declared_mib: Option<u32>) -> Vec<Change> {
    let align = ALIGNMENT / table.sector_size;
    let mut changes = Vec::new();
    let end = table
        .partitions
        .iter()
        .map(|partition| partition.last)
        .max()
        .unwrap_or(table.first_usable);
    let public = |partition: &&Partition| partition.kind == ESP && partition.id.is_derived();
    if let Some(boot) = table.partitions.iter().find(public) {
        changes.push(Change::OwnIds { boot: boot.number });
    }
    let last_usable = table.last_usable_of(sectors);
    if last_usable != table.last_usable && last_usable >= end {
        changes.push(Change::MoveEnd { last_usable });
    }
    // The last sector before an aligned one, so that the length is a multiple, too.
    let last = ((last_usable + 1) / align * align).saturating_sub(1);
    if let Some(state) = find(table) {
        if state.last == end && last >= end + align {
            changes.push(Change::Grow {
                number: state.number,
                first: state.first,
                last,
            });
        }
        return changes;
    }
    let mut adder = Adder {
        table,
        changes,
        next: (end + 1).next_multiple_of(align),
        align,
    };
    let smallest = SMALLEST_STATE / table.sector_size;
    let slot = only(table, ROOT).zip(only(table, ROOT_VERITY));
    if let Some((root, hashes)) = slot {
        let slot = Slot::new(root.sectors() * table.sector_size, declared_mib);
        let root_sectors = slot.root / table.sector_size;
        let hash_sectors = (slot.hashes / table.sector_size).max(hashes.sectors().next_multiple_of(align));
        // The image ends with its root: nothing lies in the way.
        let grown = root.first + root_sectors - 1;
        let grows = root.last == end && grown > root.last;
        let next = if grows {
            (grown + 1).next_multiple_of(align)
        } else {
            adder.next
        };
        if last + 1 >= next + root_sectors + hash_sectors + smallest {
            if grows {
                adder.changes.push(Change::Grow {
                    number: root.number,
                    first: root.first,
                    last: grown,
                });
            }
            adder.next = next;
            adder.add(ROOT, "root-b", root_sectors);
            adder.add(ROOT_VERITY, "root-b-verity", hash_sectors);
        }
    }
    if last + 1 >= adder.next + smallest {
        let length = last + 1 - adder.next;
        adder.add(LINUX, STATE_NEW, length);
    }
    adder.changes
}

/// The table after `changes`; `new_id` makes ids for new partitions.
pub fn apply(table: &Table, changes: &[Change], mut new_id: impl FnMut() -> Result<Guid>) -> Result<Table> {
    let mut table = table.clone();
    for change in changes {
        match *change {
            Change::OwnIds { boot } => {
                table.disk = new_id()?;
                partition(&mut table, boot)?.id = new_id()?;
            }
            Change::MoveEnd { last_usable } => table.last_usable = last_usable,
            Change::Add {
                number,
                kind,
                name,
                first,
                last,
            } => {
                ensure!(number <= table.entries, "the partition table is full");
                let (id, name) = (new_id()?, name.to_owned());
                table.partitions.push(Partition {
                    number,
                    kind,
                    id,
                    first,
                    last,
                    attributes: 0,
                    name,
                });
            }
            Change::Grow { number, last, .. } => partition(&mut table, number)?.last = last,
        }
    }
    table.partitions.sort_by_key(|partition| partition.number);
    table.check()?;
    Ok(table)
}

fn partition(table: &mut Table, number: u32) -> Result<&mut Partition> {
    let mut partitions = table.partitions.iter_mut();
    let found = partitions.find(|partition| partition.number == number);
    found.with_context(|| format!("no partition {number} to change"))
}

/// The state partition, complete or not.
pub fn find(table: &Table) -> Option<&Partition> {
    // A complete one wins over the remains of another.
    let named = |name: &str| {
        table
            .partitions
            .iter()
            .find(|partition| partition.name == name && partition.kind == LINUX)
    };
    named(STATE).or_else(|| named(STATE_NEW))
}

/// The partition of a type, if there is exactly one.
fn only(table: &Table, kind: Guid) -> Option<&Partition> {
    let mut found = table.partitions.iter().filter(|partition| partition.kind == kind);
    found.next().filter(|_| found.next().is_none())
}

struct Adder<'a> {
    table: &'a Table,
    changes: Vec<Change>,
    next: u64,
    align: u64,
}

impl Adder<'_> {
    fn add(&mut self, kind: Guid, name: &'static str, sectors: u64) {
        let taken = |number: &u32| {
            let added =
                |change: &Change| matches!(change, Change::Add { number: other, .. } if other == number);
            self.table
                .partitions
                .iter()
                .any(|partition| partition.number == *number)
                || self.changes.iter().any(added)
        };
        let number = (1..).find(|number| !taken(number)).unwrap_or(u32::MAX);
        let (first, last) = (self.next, self.next + sectors - 1);
        self.changes.push(Change::Add {
            number,
            kind,
            name,
            first,
            last,
        });
        self.next = (last + 1).next_multiple_of(self.align);
    }
}
