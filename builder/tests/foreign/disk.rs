//! What stands on a disk that somebody hands us.

use std::cell::RefCell;
use std::io::Cursor;
use std::os::unix::fs::FileExt;

use kimage_builder::disk::gpt::{self as table, Gpt, Partition, PartitionType};
use kimage_builder::disk::qcow2::{self as disks, Image};
use kimage_builder::partitions::esp::{self as boot, Esp, EspFile, Parameters};
use kimage_builder::partitions::guid::Guid;
use kimage_builder::partitions::verity;

use super::memory::MemoryFile;

const SECTOR: usize = 512;
const DISK: usize = 1 << 20;
const HEADER: usize = 92;
const ENTRIES: usize = 128 * 128;

fn partitioned() -> Vec<u8> {
    let disk = MemoryFile::new(&[]);
    disk.0.set_len(DISK as u64).unwrap();
    let partition = |number: u128, kind, start| Partition {
        name: format!("part-{number}"),
        kind,
        guid: Guid::new(number),
        start,
        size: 64 << 10,
        read_only: number == 2,
    };
    let partitions = [
        partition(1, PartitionType::Esp, 64 << 10),
        partition(2, PartitionType::Root, 128 << 10),
        partition(3, PartitionType::RootVerity, 192 << 10),
    ];
    table::write(&disk.0, DISK as u64, Guid::new(9), &partitions).unwrap();
    let mut bytes = vec![0; DISK];
    disk.0.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The header and the entries of both copies of a partition table, with right checksums: a table that is believed
/// has its partitions on the disk, and is what we would write.
pub(crate) fn gpt(data: &[u8]) -> bool {
    let mut bytes = partitioned();
    let (header, entries) = data.split_at(data.len().min(HEADER));
    let entries = &entries[..entries.len().min(ENTRIES)];
    let backup = DISK - SECTOR;
    for (header_at, entries_at) in [(SECTOR, 2 * SECTOR), (backup, backup - ENTRIES)] {
        let kept: [u8; HEADER] = bytes[header_at..header_at + HEADER].try_into().unwrap();
        bytes[header_at..header_at + header.len()].copy_from_slice(header);
        if header_at == backup {
            // Its own place, that of the other copy and of its entries.
            for field in [24..40, 72..80] {
                bytes[header_at..][field.clone()].copy_from_slice(&kept[field]);
            }
        }
        bytes[entries_at..entries_at + entries.len()].copy_from_slice(entries);
        let sum = crc32(&bytes[entries_at..entries_at + ENTRIES]);
        bytes[header_at + 88..header_at + HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes[header_at + 16..header_at + 20].fill(0);
        let sum = crc32(&bytes[header_at..header_at + HEADER]);
        bytes[header_at + 16..header_at + 20].copy_from_slice(&sum.to_le_bytes());
    }
    let disk = MemoryFile::new(&bytes);
    let Ok(found) = Gpt::read(&disk.0) else {
        return false;
    };
    for partition in &found.partitions {
        assert!(
            partition
                .start
                .checked_add(partition.size)
                .is_some_and(|end| end <= DISK as u64)
        );
    }
    true
}

/// A sound table.
pub(crate) fn gpt_seeds() -> Vec<Vec<u8>> {
    let bytes = partitioned();
    vec![
        [
            &bytes[SECTOR..SECTOR + HEADER],
            &bytes[2 * SECTOR..2 * SECTOR + 4 * 128],
        ]
        .concat(),
    ]
}

/// CRC-32 (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}

const ESP: u64 = 300 << 20;
const RESERVED: u64 = 32 * 512;

struct BootPartition {
    file: MemoryFile,
    /// Bytes of one allocation table.
    table: u64,
}

fn boot_partition() -> BootPartition {
    let file = MemoryFile::new(&[]);
    file.0.set_len(ESP).unwrap();
    let parameters = Parameters {
        size: ESP,
        volume_id: 1,
        epoch: 1_700_000_000,
    };
    let files = [
        EspFile {
            path: "EFI/Linux/kimage_1+3.efi",
            data: &[7; 5000],
        },
        EspFile {
            path: "EFI/BOOT/BOOTX64.EFI",
            data: b"boot",
        },
    ];
    boot::write(&file.0, 0, &parameters, &files).unwrap();
    let mut sectors = [0; 4];
    file.0.read_exact_at(&mut sectors, 36).unwrap();
    BootPartition {
        file,
        table: u64::from(u32::from_le_bytes(sectors)) * 512,
    }
}

/// Changes to a boot partition, four bytes each: allocation table (both copies) or a cluster, place, value.
pub(crate) fn esp(data: &[u8]) -> bool {
    thread_local! {
        static PARTITION: RefCell<Option<BootPartition>> = const { RefCell::new(None) };
    }
    PARTITION.with_borrow_mut(|partition| {
        let BootPartition { file, table } = partition.get_or_insert_with(boot_partition);
        let mut old = Vec::new();
        for change in data.chunks_exact(4).take(256) {
            let place = u64::from(u16::from_le_bytes([change[1], change[2]]));
            let places = match change[0] % 8 {
                0 => [RESERVED + place % 128, RESERVED + *table + place % 128],
                cluster => [RESERVED + 2 * *table + u64::from(cluster - 1) * 2048 + place % 2048; 2],
            };
            for place in places {
                let mut byte = [0];
                file.0.read_exact_at(&mut byte, place).unwrap();
                old.push((place, byte));
                file.0.write_all_at(&change[3..], place).unwrap();
            }
        }
        let mut taken = false;
        if let Ok(esp) = Esp::read(&file.0, 0, ESP) {
            taken = true;
            for (path, size) in esp.files() {
                if let Ok(bytes) = esp.file(path) {
                    assert_eq!(bytes.len(), size as usize);
                }
            }
        }
        for (place, byte) in old.into_iter().rev() {
            file.0.write_all_at(&byte, place).unwrap();
        }
        taken
    })
}

/// Nothing changed, and other bytes at the end of a file.
pub(crate) fn esp_seeds() -> Vec<Vec<u8>> {
    vec![vec![], [7, 0xff, 7, 2].repeat(8)]
}

/// A hole, text and noise.
fn qcow2_file() -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut state = 7u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut raw = vec![0; CLUSTER];
    raw.extend(b"kimage ".iter().copied().cycle().take(CLUSTER));
    raw.extend(noise.take(CLUSTER));
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("raw"), folder.path().join("qcow2"));
    std::fs::write(&from, raw).unwrap();
    disks::write(&from, &to).unwrap();
    std::fs::read(to).unwrap()
}

/// Changes to a qcow2 file, four bytes each: header or which table, place, value.
pub(crate) fn qcow2(data: &[u8]) -> bool {
    thread_local! {
        static GOOD: Vec<u8> = qcow2_file();
    }
    let mut bytes = GOOD.with(Clone::clone);
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (l1, refcounts) = (number(40), number(48));
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    let places = [
        (0, 128),
        (l1, 8),
        (l2, 32),
        (refcounts, 16),
        (number(refcounts), 32),
    ];
    for change in data.chunks_exact(4).take(64) {
        let (start, length) = places[usize::from(change[0]) % places.len()];
        let place = usize::from(u16::from_le_bytes([change[1], change[2]]));
        bytes[start + place % length] = change[3];
    }
    let Ok(image) = Image::open(MemoryFile::new(&bytes).0.try_clone().unwrap()) else {
        return false;
    };
    assert!(image.clusters() <= 1 << 24 && image.cluster() <= 2 << 20);
    let mut cluster = vec![0; image.cluster() as usize];
    for number in 0..image.clusters().min(64) {
        let _ = image.read(number, &mut cluster);
    }
    true
}

/// Changes that change nothing.
pub(crate) fn qcow2_seeds() -> Vec<Vec<u8>> {
    vec![[0, 0, 0, b'Q', 0, 1, 0, b'F'].repeat(4)]
}

/// The superblock of a hash tree.
pub(crate) fn verity_superblock(data: &[u8]) -> bool {
    let superblock = verity::Superblock::read(&mut Cursor::new(padded(data)));
    let _ = verity::check(
        &mut Cursor::new(&[0; 4096]),
        &mut Cursor::new(padded(data)),
        &[0; 32],
        1,
    );
    superblock.is_ok_and(|superblock| superblock.data_blocks > 0 && superblock.salt.len() <= 256)
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut block = data.to_vec();
    block.resize(block.len().max(8192), 0);
    block
}

/// The superblock of one block of zeros.
pub(crate) fn verity_superblock_seeds() -> Vec<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    verity::format(&mut Cursor::new(vec![0; 8192]), [7; 32], [9; 16], &mut out, 1).unwrap();
    vec![out.into_inner()[..512].to_vec()]
}
