//! The GUID partition table (UEFI specification 2.10, chapter 5): read with bounds, from whichever of its two copies
//! is sound, and encoded so that the caller decides in which order the sectors reach the disk.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use crate::storage::Storage;

/// Bytes of one entry; the specification allows more, nobody writes more.
const ENTRY: usize = 128;
/// Bytes of the header.
const HEADER: usize = 92;
/// Most entries; 128 is usual.
const MAX_ENTRIES: u32 = 512;
/// UTF-16 units of a name.
const NAME_UNITS: usize = 36;

/// A GUID in its order on the disk: the first three fields are little endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// From the order in which the text form has the bytes, as the two halves of a root hash are meant.
    pub const fn from_text_order(b: [u8; 16]) -> Self {
        Self([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
            b[15],
        ])
    }

    /// From its text, 8-4-4-4-12 hex digits in either case and nothing around them.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let dashes = [8, 13, 18, 23];
        if text.len() != 36 || dashes.iter().any(|at| text[*at] != b'-') {
            return None;
        }
        let digits = (0..text.len()).filter(|at| !dashes.contains(at));
        let mut value = 0_u128;
        for at in digits {
            value = value << 4 | u128::from(char::from(text[at]).to_digit(16)?);
        }
        Some(Self::from_text_order(value.to_be_bytes()))
    }

    /// Whether it was computed from something (version 8 of RFC 9562), as the builder computes an image's: everybody who
    /// has the image knows it, and every machine begins with it.
    pub fn is_derived(self) -> bool {
        self.0[7] >> 4 == 8
    }

    /// Whether it is the one that stands for nothing.
    pub(crate) fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The mapping between the orders is its own inverse.
        for (index, byte) in Self::from_text_order(self.0).0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Position in the table, counted from 1, as in `/dev/vda1`.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own id, `PARTUUID`.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector.
    pub last: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// At most 36 UTF-16 units.
    pub name: String,
}

impl Partition {
    /// Number of sectors.
    pub fn sectors(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// A partition table, checked: partitions lie inside the usable sectors and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Bytes of a sector: 512 or 4096.
    pub sector_size: u64,
    /// The disk's id.
    pub disk: Guid,
    /// First sector that partitions may use.
    pub first_usable: u64,
    /// Last sector that partitions may use.
    pub last_usable: u64,
    /// Entries that the table has room for.
    pub entries: u32,
    /// The used entries by number.
    pub partitions: Vec<Partition>,
}

/// One of the two copies on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind the protective MBR.
    Primary,
    /// In the disk's last sectors.
    Backup,
}

/// What a disk holds.
#[derive(Debug)]
pub struct Found {
    /// The table of the primary copy, or of the backup where the primary is damaged.
    pub table: Table,
    /// Where it was read.
    pub place: Place,
    /// Whether both copies are sound, alike, and the backup stands in the disk's last sector.
    pub whole: bool,
}

/// Reads the table of a disk with sectors of `sector_size` bytes; `None` if neither copy has the signature.
///
/// # Errors
///
/// Reading failed, or a signature is there but both copies are damaged.
pub fn read(disk: &impl Storage, sector_size: u64) -> Result<Option<Found>> {
    let sectors = disk.size()? / sector_size;
    if sectors < 3 {
        return Ok(None);
    }
    let backup_wanted = sectors - 1;
    let primary = read_copy(disk, sector_size, 1, sectors);
    let backup = read_copy(disk, sector_size, backup_wanted, sectors);
    match (primary, backup) {
        (Ok(Some((table, alternate))), backup) => {
            let same = matches!(&backup, Ok(Some((other, 1))) if *other == table);
            Ok(Some(Found {
                table,
                place: Place::Primary,
                whole: same && alternate == backup_wanted,
            }))
        }
        (_, Ok(Some((table, _)))) => Ok(Some(Found {
            table,
            place: Place::Backup,
            whole: false,
        })),
        (Err(error), _) => Err(error.context("primary partition table")),
        (_, Err(error)) => Err(error.context("backup partition table")),
        (Ok(None), Ok(None)) => Ok(None),
    }
}

/// The copy whose header is in sector `at`, with the sector of the other copy.
fn read_copy(disk: &impl Storage, sector_size: u64, at: u64, sectors: u64) -> Result<Option<(Table, u64)>> {
    let mut header = [0; HEADER];
    disk.read_at(&mut header, at * sector_size)
        .with_context(|| format!("read sector {at}"))?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    ensure!(
        u32_at(&header, 12) as usize == HEADER,
        "header of {} bytes",
        u32_at(&header, 12)
    );
    let checksum = u32_at(&header, 16);
    header[16..20].fill(0);
    ensure!(
        crc32(&header) == checksum,
        "wrong checksum of the header in sector {at}"
    );
    ensure!(
        u64_at(&header, 24) == at,
        "header in sector {at} says it stands in {}",
        u64_at(&header, 24)
    );
    let (entries_at, entries) = (u64_at(&header, 72), u32_at(&header, 80));
    let table = Table {
        sector_size,
        disk: guid_at(&header, 56),
        first_usable: u64_at(&header, 40),
        last_usable: u64_at(&header, 48),
        entries,
        partitions: Vec::new(),
    };
    ensure!(
        u32_at(&header, 84) as usize == ENTRY,
        "entries of {} bytes",
        u32_at(&header, 84)
    );
    ensure!((1..=MAX_ENTRIES).contains(&entries), "{entries} entries");
    ensure!(
        table.first_usable <= table.last_usable && table.last_usable < sectors,
        "usable sectors beyond the disk"
    );
    let entries_end = entries_at
        .checked_add(table.array_sectors())
        .context("entries beyond any disk")?;
    let apart = entries_end <= table.first_usable || entries_at > table.last_usable;
    ensure!(
        entries_at >= 2 && entries_end <= sectors && apart,
        "entries in sectors {entries_at}..{entries_end}"
    );
    let mut array = vec![0; entries as usize * ENTRY];
    disk.read_at(&mut array, entries_at * sector_size)
        .context("read entries")?;
    ensure!(
        crc32(&array) == u32_at(&header, 88),
        "wrong checksum of the entries in sector {entries_at}"
    );
    let table = table.with_entries(&array)?;
    Ok(Some((table, u64_at(&header, 32))))
}

impl Table {
    fn with_entries(mut self, array: &[u8]) -> Result<Self> {
        for (entry, number) in array.chunks_exact(ENTRY).zip(1..) {
            let kind = guid_at(entry, 0);
            if kind.is_zero() {
                continue;
            }
            let units = entry[56..56 + 2 * NAME_UNITS]
                .chunks_exact(2)
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let name = char::decode_utf16(units.take_while(|unit| *unit != 0));
            self.partitions.push(Partition {
                number,
                kind,
                id: guid_at(entry, 16),
                first: u64_at(entry, 32),
                last: u64_at(entry, 40),
                attributes: u64_at(entry, 48),
                name: name.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
            });
        }
        self.check()?;
        Ok(self)
    }

    /// Whether all partitions lie inside the usable sectors, do not overlap and have their own ids.
    pub fn check(&self) -> Result<()> {
        let mut sorted: Vec<&Partition> = self.partitions.iter().collect();
        sorted.sort_by_key(|partition| partition.first);
        let mut free = self.first_usable;
        for partition in &sorted {
            let Partition {
                number, first, last, ..
            } = partition;
            ensure!(
                *first >= free && last >= first,
                "partition {number} ({first}..={last}) overlaps another"
            );
            ensure!(
                *last <= self.last_usable,
                "partition {number} ends in sector {last}, beyond the usable ones"
            );
            free = last + 1;
        }
        for (index, partition) in self.partitions.iter().enumerate() {
            let twin = self.partitions[..index]
                .iter()
                .any(|other| other.id == partition.id || other.number == partition.number);
            ensure!(
                !twin && partition.number >= 1 && partition.number <= self.entries,
                "partition {} is there twice",
                partition.number
            );
        }
        Ok(())
    }

    /// Sectors that the entries take.
    pub fn array_sectors(&self) -> u64 {
        (u64::from(self.entries) * ENTRY as u64).div_ceil(self.sector_size)
    }

    /// The last usable sector when the backup stands at the end of a disk of `sectors` sectors.
    pub fn last_usable_of(&self, sectors: u64) -> u64 {
        sectors.saturating_sub(2 + self.array_sectors())
    }

    /// The bytes of one copy for a disk of `sectors` sectors: first the entries, then the header, each with its
    /// place in bytes. The header may only be written when the entries are durable.
    pub fn encode(&self, place: Place, sectors: u64) -> Result<[(u64, Vec<u8>); 2]> {
        self.check()?;
        let array_sectors = self.array_sectors();
        ensure!(
            self.last_usable <= self.last_usable_of(sectors),
            "the table is larger than the disk"
        );
        ensure!(
            self.first_usable >= 2 + array_sectors,
            "no room for the entries in front"
        );
        let (own, other, entries_at) = match place {
            Place::Primary => (1, sectors - 1, 2),
            Place::Backup => (sectors - 1, 1, sectors - 1 - array_sectors),
        };
        let array = self.encode_entries()?;
        let mut header = vec![0; self.sector_size as usize];
        header[..8].copy_from_slice(b"EFI PART");
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(8, &[0, 0, 1, 0]);
        put(12, &(HEADER as u32).to_le_bytes());
        for (at, value) in [
            (24, own),
            (32, other),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, entries_at),
        ] {
            put(at, &value.to_le_bytes());
        }
        put(56, &self.disk.0);
        put(80, &self.entries.to_le_bytes());
        put(84, &(ENTRY as u32).to_le_bytes());
        put(88, &crc32(&array).to_le_bytes());
        let checksum = crc32(&header[..HEADER]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        Ok([
            (entries_at * self.sector_size, array),
            (own * self.sector_size, header),
        ])
    }

    fn encode_entries(&self) -> Result<Vec<u8>> {
        let mut array = vec![0; self.entries as usize * ENTRY];
        for partition in &self.partitions {
            let entry = &mut array[(partition.number - 1) as usize * ENTRY..][..ENTRY];
            entry[..16].copy_from_slice(&partition.kind.0);
            entry[16..32].copy_from_slice(&partition.id.0);
            for (at, value) in [
                (32, partition.first),
                (40, partition.last),
                (48, partition.attributes),
            ] {
                entry[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            let units: Vec<u16> = partition.name.encode_utf16().collect();
            if units.len() > NAME_UNITS {
                bail!(
                    "partition name {:?} is longer than {NAME_UNITS} units",
                    partition.name
                );
            }
            for (index, unit) in units.iter().enumerate() {
                entry[56 + 2 * index..58 + 2 * index].copy_from_slice(&unit.to_le_bytes());
            }
        }
        Ok(array)
    }
}

/// CRC-32 as in the specification (ISO 3309, reflected polynomial 0xedb88320).
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    Guid(guid)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests;
