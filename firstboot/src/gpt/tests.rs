use std::fs::File;
use std::process::Output;
use std::sync::OnceLock;

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use tempfile::NamedTempFile;

use super::*;

const SECTORS: u64 = 12 * 2048;

#[expect(clippy::disallowed_methods, reason = "a test's oracle")]
fn sgdisk(arguments: &[&str], disk: &NamedTempFile) -> Output {
    let output = std::process::Command::new("sgdisk")
        .args(arguments)
        .arg(disk.path())
        .output();
    let output = output.expect("sgdisk is needed: apt-get install gdisk");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

/// A disk as sgdisk partitions it.
fn disk() -> NamedTempFile {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let disk = NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), BYTES.get_or_init(partitioned)).unwrap();
    disk
}

fn partitioned() -> Vec<u8> {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(SECTORS * 512).unwrap();
    sgdisk(
        &[
            "--new=1:2048:+1M",
            "--typecode=1:ef00",
            "--change-name=1:esp",
            "--new=3:0:+8M",
            "--typecode=3:4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "--change-name=3:root ä",
            "--partition-guid=3:00112233-4455-6677-8899-aabbccddeeff",
            "--attributes=3:set:60",
        ],
        &disk,
    );
    std::fs::read(disk.path()).unwrap()
}

fn table(disk: &File) -> Found {
    read(disk, 512).unwrap().unwrap()
}

#[test]
fn a_table_of_sgdisk_is_read() {
    let disk = disk();
    let found = table(disk.as_file());
    assert!(found.whole && found.place == Place::Primary);
    let root = &found.table.partitions[1];
    assert_eq!(
        (root.number, root.sectors(), root.attributes),
        (3, 8 * 2048, 1 << 60)
    );
    assert_eq!(root.name, "root ä");
    assert_eq!(root.kind.to_string(), "4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
    let bytes: Vec<u8> = (0..16).map(|digit| digit * 0x11).collect();
    assert_eq!(root.id, Guid::from_text_order(bytes.try_into().unwrap()));
}

#[test]
fn our_bytes_are_the_bytes_of_sgdisk() {
    let disk = disk();
    let before = std::fs::read(disk.path()).unwrap();
    let table = table(disk.as_file()).table;
    for place in [Place::Primary, Place::Backup] {
        for (at, bytes) in table.encode(place, SECTORS).unwrap() {
            assert_eq!(
                &before[at as usize..at as usize + bytes.len()],
                bytes,
                "{place:?} at {at}"
            );
        }
    }
}

#[test]
fn the_backup_is_used_when_the_primary_is_damaged() {
    let disk = disk();
    let healthy = table(disk.as_file()).table;
    for damaged in [512, 1024 + 40] {
        let mut byte = [0];
        Storage::read_at(disk.as_file(), &mut byte, damaged).unwrap();
        Storage::write_at(disk.as_file(), &[byte[0] ^ 1], damaged).unwrap();
        let found = table(disk.as_file());
        assert_eq!((found.place, found.whole), (Place::Backup, false));
        assert_eq!(found.table, healthy);
        Storage::write_at(disk.as_file(), &byte, damaged).unwrap();
    }
    Storage::write_at(disk.as_file(), &[7; 4], (SECTORS - 1) * 512).unwrap();
    assert!(!table(disk.as_file()).whole);
}

#[test]
fn a_larger_disk_makes_the_table_not_whole() {
    let disk = disk();
    disk.as_file().set_len(SECTORS * 1024).unwrap();
    let found = table(disk.as_file());
    assert_eq!((found.place, found.whole), (Place::Primary, false));
}

#[test]
fn a_disk_without_a_table_is_none() {
    let disk = NamedTempFile::new().unwrap();
    assert!(read(disk.as_file(), 512).unwrap().is_none());
    disk.as_file().set_len(1 << 20).unwrap();
    assert!(read(disk.as_file(), 512).unwrap().is_none());
    assert!(read(disk.as_file(), 4096).unwrap().is_none());
}

#[test]
fn a_table_whose_partitions_overlap_is_refused() {
    let disk = disk();
    let mut table = table(disk.as_file()).table;
    table.partitions[1].first -= 1;
    assert!(table.encode(Place::Primary, SECTORS).is_err());
}

/// Puts header fields with a right checksum on a disk that has no backup.
fn forge(disk: &File, changes: &[(usize, Vec<u8>)]) {
    let mut header = [0; 92];
    Storage::read_at(disk, &mut header, 512).unwrap();
    for (at, bytes) in changes {
        header[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    header[16..20].fill(0);
    let checksum = crc32(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    Storage::write_at(disk, &header, 512).unwrap();
    Storage::write_at(disk, &[0; 512], (SECTORS - 1) * 512).unwrap();
}

#[test]
fn a_forged_header_is_refused_without_taking_memory() {
    let cases: [(usize, Vec<u8>); 6] = [
        (80, u32::MAX.to_le_bytes().to_vec()),
        (84, u32::MAX.to_le_bytes().to_vec()),
        (72, u64::MAX.to_le_bytes().to_vec()),
        (72, 1u64.to_le_bytes().to_vec()),
        (48, u64::MAX.to_le_bytes().to_vec()),
        (40, u64::MAX.to_le_bytes().to_vec()),
    ];
    for change in cases {
        let disk = disk();
        forge(disk.as_file(), std::slice::from_ref(&change));
        assert!(read(disk.as_file(), 512).is_err(), "{change:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_header_makes_the_reader_panic(changes in prop::collection::vec((24usize..88, prop::collection::vec(any::<u8>(), 1..4)), 1..5)) {
        let disk = disk();
        forge(disk.as_file(), &changes);
        let _ = read(disk.as_file(), 512);
    }
}
