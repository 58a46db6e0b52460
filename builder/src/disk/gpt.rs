//! The partition table at both ends of the disk.
//!
//! Source: UEFI 2.10, chapter 5; UAPI Group, Discoverable Partitions Specification.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::partitions::guid::Guid;

const SECTOR: u64 = 512;
const ENTRIES: u32 = 128;
const ENTRY: u32 = 128;
/// Protective MBR, header and 128 entries.
const PRIMARY: u64 = 34 * SECTOR;
/// 128 entries and header.
const BACKUP: u64 = 33 * SECTOR;
/// Attribute bit 60 of the Discoverable Partitions Specification.
const READ_ONLY: u64 = 1 << 60;

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionType {
    /// EFI system partition.
    Esp,
    /// Root filesystem, x86-64.
    Root,
    /// dm-verity hash tree of the root filesystem, x86-64.
    RootVerity,
}

impl PartitionType {
    const ALL: [Self; 3] = [Self::Esp, Self::Root, Self::RootVerity];

    /// The type's GUID.
    pub fn guid(self) -> Guid {
        match self {
            Self::Esp => Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b),
            Self::Root => Guid::new(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709),
            Self::RootVerity => Guid::new(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5),
        }
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name, ASCII, at most 36 characters.
    pub name: String,
    /// Its type.
    pub kind: PartitionType,
    /// Its own GUID.
    pub guid: Guid,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Marked as never to be written.
    pub read_only: bool,
}

/// A partition table read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt {
    /// GUID of the disk.
    pub guid: Guid,
    /// The partitions in the table's order.
    pub partitions: Vec<Partition>,
}

/// Writes both tables and the protective MBR of a disk of `size` bytes into `disk`, which has that length.
pub fn write(mut disk: &File, size: u64, guid: Guid, partitions: &[Partition]) -> Result<()> {
    let mut table = gptman::GPT::new_from(&mut disk, SECTOR, guid.to_disk()).context("partition table")?;
    ensure!(
        table.header.backup_lba == size / SECTOR - 1,
        "disk is not {size} bytes long"
    );
    ensure!(
        partitions.len() <= ENTRIES as usize,
        "{} partitions",
        partitions.len()
    );
    for (number, partition) in (1..).zip(partitions) {
        ensure!(
            partition.name.is_ascii() && partition.name.len() <= 36,
            "`{}` is no name for a partition",
            partition.name
        );
        table[number] = gptman::GPTPartitionEntry {
            partition_type_guid: partition.kind.guid().to_disk(),
            unique_partition_guid: partition.guid.to_disk(),
            starting_lba: partition.start / SECTOR,
            ending_lba: (partition.start + partition.size) / SECTOR - 1,
            attribute_bits: if partition.read_only { READ_ONLY } else { 0 },
            partition_name: partition.name.as_str().into(),
        };
    }
    gptman::GPT::write_protective_mbr_into(&mut disk, SECTOR).context("write protective MBR")?;
    table.write_into(&mut disk).context("write partition table")?;
    Ok(())
}

impl Gpt {
    /// Reads the table of `disk` and requires that both copies, and the protective MBR, are what [`write`] makes of
    /// its content: a table that two readers could understand differently is refused.
    pub fn read(disk: &File) -> Result<Self> {
        let size = disk.metadata().context("disk")?.len();
        ensure!(
            size >= PRIMARY + BACKUP && size.is_multiple_of(SECTOR),
            "disk of {size} bytes holds no partition table"
        );
        let table = read_primary(disk)?;
        let mut gpt = Self {
            guid: Guid::from_disk(table.header.disk_guid),
            partitions: Vec::new(),
        };
        for (number, entry) in table.iter().filter(|(_, entry)| entry.is_used()) {
            ensure!(
                number as usize == gpt.partitions.len() + 1,
                "partition {number} follows an empty entry"
            );
            gpt.partitions
                .push(partition(entry, size).with_context(|| format!("partition {number}"))?);
        }
        gpt.compare(disk, size)?;
        Ok(gpt)
    }

    /// The partition with that name.
    pub fn partition(&self, name: &str) -> Result<&Partition> {
        let found = self.partitions.iter().find(|partition| partition.name == name);
        found.with_context(|| format!("disk has no partition {name}"))
    }

    /// The bytes of a disk of `size` bytes that belong neither to a table nor to a partition.
    pub fn gaps(&self, size: u64) -> Vec<Range<u64>> {
        let mut places: Vec<Range<u64>> = self
            .partitions
            .iter()
            .map(|partition| partition.start..partition.start.saturating_add(partition.size))
            .collect();
        places.push(size.saturating_sub(BACKUP)..size);
        places.sort_by_key(|place| (place.start, place.end));
        let mut gaps = Vec::new();
        let mut position = PRIMARY;
        for place in places {
            if position < place.start {
                gaps.push(position..place.start);
            }
            position = position.max(place.end);
        }
        gaps
    }

    fn compare(&self, disk: &File, size: u64) -> Result<()> {
        let expected = tempfile::tempfile().context("temporary file")?;
        expected.set_len(size).context("temporary file")?;
        write(&expected, size, self.guid, &self.partitions)?;
        for (place, length, what) in [(0, PRIMARY, "first"), (size - BACKUP, BACKUP, "second")] {
            let read = |file: &File| -> Result<Vec<u8>> {
                let mut bytes = vec![0; length as usize];
                file.read_exact_at(&mut bytes, place)
                    .context("read partition table")?;
                Ok(bytes)
            };
            ensure!(
                read(disk)? == read(&expected)?,
                "the disk's {what} partition table is not kimage's"
            );
        }
        Ok(())
    }
}

/// Reads the first table. Its shape is checked before gptman sees it, which believes any count of entries.
fn read_primary(disk: &File) -> Result<gptman::GPT> {
    let mut bytes = vec![0; PRIMARY as usize];
    disk.read_exact_at(&mut bytes, 0)
        .context("read partition table")?;
    let field = |place: usize| {
        u32::from_le_bytes([bytes[place], bytes[place + 1], bytes[place + 2], bytes[place + 3]])
    };
    let header = SECTOR as usize;
    let shape = (
        field(header + 72),
        field(header + 76),
        field(header + 80),
        field(header + 84),
    );
    if !bytes[header..].starts_with(b"EFI PART") || shape != (2, 0, ENTRIES, ENTRY) {
        bail!("disk has no partition table of {ENTRIES} entries");
    }
    // gptman looks for the alignment of all partitions and finds none where they start in sector 0.
    let entries = bytes[2 * SECTOR as usize..].chunks_exact(ENTRY as usize);
    for (number, entry) in (1..).zip(entries) {
        let used = entry[..16].iter().any(|byte| *byte != 0);
        ensure!(
            !used || entry[32..40].iter().any(|byte| *byte != 0),
            "partition {number} starts at the disk's first sector"
        );
    }
    // gptman reads each entry with some bytes of what follows.
    bytes.resize(bytes.len() + SECTOR as usize, 0);
    gptman::GPT::read_from(&mut std::io::Cursor::new(bytes), SECTOR).context("read partition table")
}

fn partition(entry: &gptman::GPTPartitionEntry, size: u64) -> Result<Partition> {
    let kind = Guid::from_disk(entry.partition_type_guid);
    let Some(kind) = PartitionType::ALL.into_iter().find(|known| known.guid() == kind) else {
        bail!("unknown partition type {kind}");
    };
    ensure!(
        entry.starting_lba <= entry.ending_lba && entry.ending_lba < size / SECTOR,
        "it lies outside the disk ({}..={})",
        entry.starting_lba,
        entry.ending_lba
    );
    Ok(Partition {
        name: entry.partition_name.as_str().to_owned(),
        kind,
        guid: Guid::from_disk(entry.unique_partition_guid),
        start: entry.starting_lba * SECTOR,
        size: (entry.ending_lba - entry.starting_lba + 1) * SECTOR,
        read_only: entry.attribute_bits & READ_ONLY != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::disk::{derived_guid, layout};
    use proptest::prelude::*;

    const SIZE: u64 = 300 << 20;

    fn sample() -> (File, Gpt) {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(SIZE).unwrap();
        let hash = Digest::of(b"root");
        let gpt = Gpt {
            guid: derived_guid(&hash, "disk-uuid"),
            partitions: layout(&hash, 20 << 20, 200_000),
        };
        write(&disk, SIZE, gpt.guid, &gpt.partitions).unwrap();
        (disk, gpt)
    }

    #[test]
    fn a_table_comes_back_and_both_copies_count() {
        let (disk, gpt) = sample();
        assert_eq!(Gpt::read(&disk).unwrap(), gpt);
        assert_eq!(gpt.partition("root-a").unwrap().kind, PartitionType::Root);
        for place in [
            440,
            510,
            512 + 56,
            1024 + 16,
            1024 + 40,
            1024 + 128 * 7,
            SIZE - 512 + 24,
            SIZE - 33 * 512 + 1,
        ] {
            let (disk, _) = sample();
            let mut byte = [0];
            disk.read_exact_at(&mut byte, place).unwrap();
            disk.write_all_at(&[byte[0] ^ 1], place).unwrap();
            assert!(Gpt::read(&disk).is_err(), "byte {place}");
        }
    }

    #[test]
    fn gaps_are_all_that_no_table_and_no_partition_owns() {
        let partition = |start: u64, size: u64| Partition {
            name: "p".to_owned(),
            kind: PartitionType::Root,
            guid: derived_guid(&Digest::of(b"x"), "p"),
            start,
            size,
            read_only: false,
        };
        let gpt = |partitions| Gpt {
            guid: derived_guid(&Digest::of(b"x"), "disk"),
            partitions,
        };
        let size = 10 << 20;
        assert_eq!(gpt(vec![]).gaps(size), vec![PRIMARY..size - BACKUP; 1]);
        // Out of order, and one within another.
        let found = gpt(vec![
            partition(4 << 20, 2 << 20),
            partition(1 << 20, 1 << 20),
            partition(5 << 20, 4096),
        ]);
        assert_eq!(
            found.gaps(size),
            [PRIMARY..1 << 20, 2 << 20..4 << 20, 6 << 20..size - BACKUP]
        );
        let all = gpt(vec![partition(PRIMARY, size - BACKUP - PRIMARY)]);
        assert_eq!(all.gaps(size), []);
    }

    #[test]
    fn a_partition_in_sector_0_is_refused() {
        let (disk, _) = sample();
        let mut bytes = vec![0; PRIMARY as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        let (header, entries) = bytes[SECTOR as usize..].split_at_mut(SECTOR as usize);
        for entry in entries.chunks_exact_mut(ENTRY as usize) {
            entry[32..40].fill(0);
        }
        let checksum = |bytes: &[u8]| {
            let mut sum = flate2::Crc::new();
            sum.update(bytes);
            sum.sum().to_le_bytes()
        };
        header[88..92].copy_from_slice(&checksum(entries));
        header[16..20].fill(0);
        let sum = checksum(&header[..92]);
        header[16..20].copy_from_slice(&sum);
        disk.write_all_at(&bytes, 0).unwrap();
        let error = Gpt::read(&disk).unwrap_err();
        assert!(error.to_string().contains("first sector"), "{error:#}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_tables_never_panic(changes in prop::collection::vec((512u64..2000, any::<u8>()), 1..12)) {
            let (disk, _) = sample();
            for (place, value) in changes {
                disk.write_all_at(&[value], place).unwrap();
            }
            let _ = Gpt::read(&disk);
        }
    }
}
