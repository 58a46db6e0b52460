//! Changes a disk's partition table and makes the state partition, such that a power cut at any moment leaves a disk
//! that boots and that the next run completes.
//!
//! Of the two copies of the table one is always sound: the other is written, made durable, and only then the first.
//! A state partition carries the name `state-new` until its filesystem is durable. So a filesystem is made only
//! where none was in use, and none is used that is not complete.

use anyhow::{Context, Result};

use super::plan::{self, Change, STATE, STATE_NEW};
use crate::gpt::{self, Found, Guid, Partition, Place, Table};
use crate::storage::Storage;

/// What else there is to do with partitions than writing the table.
pub trait Host {
    /// A new random id.
    fn new_id(&mut self) -> Result<Guid>;
    /// Tells the kernel about the partitions of the table that it does not know, or not as long as they are.
    fn announce(&mut self, table: &Table) -> Result<()>;
    /// Makes an empty filesystem and returns when it is durable.
    fn make_filesystem(&mut self, partition: &Partition) -> Result<()>;
    /// Says what happens to the person at the console.
    fn say(&mut self, text: &str);
}

/// Brings the disk to the planned state, with slots of the size that the role declares (in MiB); returns the state
/// partition, or `None` where there is no room for one.
pub fn prepare(
    disk: &impl Storage,
    sector_size: u64,
    declared_mib: Option<u32>,
    host: &mut impl Host,
) -> Result<Option<Partition>> {
    let sectors = disk.size().context("size of the disk")? / sector_size;
    let found = gpt::read(disk, sector_size)?.context("the disk has no partition table any more")?;
    if found.place == Place::Backup {
        host.say("the primary partition table is damaged and is restored from the backup");
        // Before the backup is touched: it is the only sound copy now.
        write_copy(disk, &found.table, Place::Primary, sectors)?;
    }
    let changes = plan::plan(&found.table, sectors, declared_mib);
    for change in &changes {
        host.say(&describe(change, sector_size));
    }
    let mut table = plan::apply(&found.table, &changes, || host.new_id())?;
    if !changes.is_empty() || needs_repair(&found) {
        write(disk, &table, sectors)?;
    }
    host.announce(&table)?;
    let Some(state) = plan::find(&table).cloned() else {
        return Ok(None);
    };
    if state.name == STATE_NEW {
        host.make_filesystem(&state)?;
        for partition in table
            .partitions
            .iter_mut()
            .filter(|partition| partition.number == state.number)
        {
            partition.name = STATE.to_owned();
        }
        write(disk, &table, sectors)?;
    }
    Ok(plan::find(&table).cloned())
}

fn needs_repair(found: &Found) -> bool {
    found.place == Place::Primary && !found.whole
}

/// Writes both copies; the primary must be sound.
fn write(disk: &impl Storage, table: &Table, sectors: u64) -> Result<()> {
    write_copy(disk, table, Place::Backup, sectors)?;
    write_copy(disk, table, Place::Primary, sectors)
}

fn write_copy(disk: &impl Storage, table: &Table, place: Place, sectors: u64) -> Result<()> {
    for (at, bytes) in table.encode(place, sectors)? {
        disk.write_at(&bytes, at)
            .with_context(|| format!("write the {place:?} partition table"))?;
    }
    disk.sync()
        .with_context(|| format!("write the {place:?} partition table"))
}

fn describe(change: &Change, sector_size: u64) -> String {
    let mib = |sectors: u64| (sectors * sector_size) >> 20;
    match change {
        Change::OwnIds { .. } => "disk and boot partition get ids of their own".to_owned(),
        Change::MoveEnd { .. } => "the partition table takes the whole disk".to_owned(),
        Change::Add {
            number,
            name,
            first,
            last,
            ..
        } => {
            let name = if *name == STATE_NEW { STATE } else { name };
            format!(
                "partition {number} is made for {name}, {} MiB",
                mib(last - first + 1)
            )
        }
        Change::Grow { number, first, last } => {
            format!("partition {number} grows to {} MiB", mib(last - first + 1))
        }
    }
}

#[cfg(test)]
mod tests;
