//! qcow2 read back, by a reader of our own that believes nothing: every place is checked before it is used, and what
//! the tables can make us hold or do is bounded by the lengths of file and disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use flate2::{Decompress, FlushDecompress, Status};

use super::header::{Header, MAX_CLUSTER};
use super::owners::{Owners, read_table};
use super::{COMPRESSED, COPIED, WINDOW_BITS};
use crate::disk::sparse;

/// Bits of a table's entry that hold an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The guest reads zeros.
const ZERO: u64 = 1;
const SECTOR: u64 = 512;

/// An opened qcow2 file without backing file, snapshots, encryption or optional features.
pub struct Image {
    file: File,
    /// Length of the file.
    length: u64,
    header: Header,
    /// Second-level tables; none where the disk is a hole.
    tables: Vec<Option<Vec<u64>>>,
}

/// Where the bytes of one of the disk's clusters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// They are zeros.
    Hole,
    /// At this offset.
    Plain(u64),
    /// Deflated, in so many bytes at this offset.
    Deflated(u64, u64),
}

impl Image {
    /// Reads header and tables, and requires that every cluster of the file has the owners that its refcount says:
    /// one, or the deflated clusters that share it.
    pub fn open(file: File) -> Result<Self> {
        let length = file.metadata().context("look at the file")?.len();
        let mut start = vec![0; length.min(MAX_CLUSTER as u64) as usize];
        file.read_exact_at(&mut start, 0).context("read the header")?;
        let header = Header::parse(&start)?;
        let mut owners = Owners::new(&file, header, length)?;
        let tables = tables(&file, &header, length, &mut owners)?;
        owners.check()?;
        Ok(Self {
            file,
            length,
            header,
            tables,
        })
    }

    /// Length of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Clusters of the disk; the last one may reach beyond its end.
    pub fn clusters(&self) -> u64 {
        self.header.clusters()
    }

    /// Whether the disk's cluster `number` is a hole: zeros that have no place in the file.
    pub fn is_hole(&self, number: u64) -> Result<bool> {
        Ok(self.place(number)? == Place::Hole)
    }

    /// Fills `buffer`, which has the length of a cluster, with the disk's cluster `number`.
    pub fn read(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        ensure!(
            buffer.len() as u64 == self.cluster(),
            "a buffer of {} bytes for a cluster",
            buffer.len()
        );
        match self.place(number)? {
            Place::Hole => buffer.fill(0),
            Place::Plain(offset) => self.read_file(offset, buffer)?,
            Place::Deflated(offset, length) => {
                let mut deflated = vec![0; length as usize];
                self.read_file(offset, &mut deflated)?;
                inflate(&deflated, buffer).with_context(|| format!("deflated cluster at byte {offset}"))?;
            }
        }
        Ok(())
    }

    /// Requires that the clusters in `range` hold what `raw` holds there; a hole is as good as zeros.
    pub fn compare(&self, raw: &File, range: std::ops::Range<u64>) -> Result<()> {
        let cluster = self.cluster();
        let (mut ours, mut theirs) = (vec![0; cluster as usize], vec![0; cluster as usize]);
        for number in range {
            let start = number * cluster;
            let count = cluster.min(self.size().saturating_sub(start));
            let same = if self.is_hole(number)? {
                sparse::is_zero(raw, start, count).context("read the raw disk")?
            } else {
                self.read(number, &mut ours)?;
                theirs.fill(0);
                raw.read_exact_at(&mut theirs[..count as usize], start)
                    .context("read the raw disk")?;
                ours == theirs
            };
            ensure!(same, "cluster {number}, at byte {start} of the disk, differs");
        }
        Ok(())
    }

    fn place(&self, number: u64) -> Result<Place> {
        let entries = self.header.l2_entries();
        ensure!(number < self.clusters(), "the disk has no cluster {number}");
        let table = &self.tables[(number / entries) as usize];
        let entry = table
            .as_ref()
            .map_or(0, |table| table[(number % entries) as usize]);
        place(entry, &self.header)
    }

    /// Fills `buffer` from the file; behind its end are zeros.
    fn read_file(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let there = self.length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (bytes, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        self.file
            .read_exact_at(bytes, offset)
            .with_context(|| format!("read the file at byte {offset}"))
    }
}

/// Reads the tables of both levels and says who owns what.
fn tables(
    file: &File,
    header: &Header,
    length: u64,
    owners: &mut Owners<'_>,
) -> Result<Vec<Option<Vec<u64>>>> {
    let inside = |offset: u64, bytes: u64, what: &str| {
        let end = offset.checked_add(bytes);
        ensure!(
            end.is_some_and(|end| end <= length),
            "{what} ends behind the file's end"
        );
        Ok(())
    };
    let (offset, entries) = (header.l1.0, u64::from(header.l1.1));
    inside(offset, entries * 8, "the first-level table")?;
    owners.take(offset, entries * 8, "the first-level table")?;
    let l1 = read_table(file, offset, entries).context("read the first-level table")?;
    let mut tables = Vec::with_capacity(l1.len());
    let mut left = header.clusters();
    for entry in l1 {
        let here = left.min(header.l2_entries());
        left -= here;
        if entry == 0 {
            tables.push(None);
            continue;
        }
        let place = entry & OFFSET;
        ensure!(
            entry == place | COPIED && place != 0,
            "{entry:#x} is no entry of a first-level table"
        );
        inside(place, header.cluster(), "a second-level table")?;
        owners.take(place, header.cluster(), "a second-level table")?;
        let mut table = read_table(file, place, header.l2_entries()).context("read a second-level table")?;
        let behind = table.split_off(here as usize);
        ensure!(
            behind.iter().all(|entry| *entry == 0),
            "a second-level table goes on behind the disk's end"
        );
        for entry in &table {
            own(self::place(*entry, header)?, header, owners)?;
        }
        tables.push(Some(table));
    }
    Ok(tables)
}

fn own(place: Place, header: &Header, owners: &mut Owners<'_>) -> Result<()> {
    match place {
        Place::Hole => Ok(()),
        Place::Plain(offset) => owners.take(offset, header.cluster(), "a cluster"),
        Place::Deflated(offset, length) => owners.share(offset, length, "a deflated cluster"),
    }
}

/// What an entry of a second-level table says.
fn place(entry: u64, header: &Header) -> Result<Place> {
    if entry & COMPRESSED != 0 {
        let shift = 62 - (header.cluster_bits - 8);
        ensure!(
            entry & COPIED == 0,
            "{entry:#x} is no entry of a second-level table"
        );
        let offset = entry & ((1 << shift) - 1);
        let sectors = ((entry & !COMPRESSED) >> shift) + 1;
        return Ok(Place::Deflated(offset, sectors * SECTOR - offset % SECTOR));
    }
    if entry & !ZERO == 0 {
        return Ok(Place::Hole);
    }
    // A cluster that reads as zeros and has a place could hide bytes there.
    let offset = entry & OFFSET;
    ensure!(
        entry == offset | COPIED && offset != 0,
        "{entry:#x} is no entry of a second-level table"
    );
    Ok(Place::Plain(offset))
}

/// Fills `cluster` from a deflate stream, which must have as much and end.
fn inflate(deflated: &[u8], cluster: &mut [u8]) -> Result<()> {
    let mut inflate = Decompress::new_with_window_bits(false, WINDOW_BITS);
    let status = inflate
        .decompress(deflated, cluster, FlushDecompress::Finish)
        .context("inflate")?;
    ensure!(
        status == Status::StreamEnd && inflate.total_out() == cluster.len() as u64,
        "it inflates to {} bytes or more instead of {}",
        inflate.total_out(),
        cluster.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
