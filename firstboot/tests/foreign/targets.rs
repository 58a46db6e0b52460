//! The readers inside a machine, each as a function of bytes. The fuzzers (`qemu-tests/fuzz/`) take this file in as well.

use std::io;

use kimage_firstboot::gpt::{self, Place};
use kimage_firstboot::stage0::command_line::CommandLine;
use kimage_firstboot::stage0::firmware;
use kimage_firstboot::stage0::verity;
use kimage_firstboot::state::ext4;
use kimage_firstboot::storage::Storage;
use kimage_roles::role::{Component, ROLE_PATH, Role};
use kimage_roles::stage0::{Table, matches};

use super::damage::Target;

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "machine_gpt",
        run: machine_gpt,
        seeds: machine_gpt_seeds,
    },
    Target {
        name: "command_line",
        run: command_line,
        seeds: command_line_seeds,
    },
    Target {
        name: "booted_partition",
        run: booted_partition,
        seeds: booted_partition_seeds,
    },
    Target {
        name: "machine_verity",
        run: machine_verity,
        seeds: machine_verity_seeds,
    },
    Target {
        name: "ext4_superblock",
        run: ext4_superblock,
        seeds: ext4_superblock_seeds,
    },
    Target {
        name: "role",
        run: role,
        seeds: role_seeds,
    },
    Target {
        name: "stage0_table",
        run: stage0_table,
        seeds: stage0_table_seeds,
    },
    Target {
        name: "modalias",
        run: modalias,
        seeds: modalias_seeds,
    },
];

const SECTOR: usize = 512;
const SECTORS: usize = 256;
const HEADER: usize = 92;
const ENTRIES: usize = 128 * 128;

/// A disk in memory.
struct Disk(Vec<u8>);

impl Storage for Disk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start
            .checked_add(buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A table's header and entries with right checksums, as primary and as backup copy: what is believed is sound, can
/// be written and reads the same.
pub(crate) fn machine_gpt(data: &[u8]) -> bool {
    let (header, entries) = data.split_at(data.len().min(HEADER));
    let mut taken = true;
    for header_at in [SECTOR, (SECTORS - 1) * SECTOR] {
        let mut disk = Disk(vec![0; SECTORS * SECTOR]);
        disk.0[header_at..header_at + header.len()].copy_from_slice(header);
        let field = |disk: &Disk, at: usize| {
            let bytes = disk.0[header_at + at..header_at + at + 4].try_into();
            u32::from_le_bytes(bytes.unwrap_or_default()) as usize
        };
        if header_at != SECTOR {
            disk.0[header_at + 24..header_at + 32].copy_from_slice(&(SECTORS as u64 - 1).to_le_bytes());
        }
        let entries_at = field(&disk, 72).saturating_mul(SECTOR);
        let length = field(&disk, 80).saturating_mul(128);
        if let Some(place) = disk.0.get_mut(entries_at..entries_at.saturating_add(length)) {
            let count = entries.len().min(place.len()).min(ENTRIES);
            // The entries may claim to stand where the header does; what counts is that nothing panics.
            place[..count].copy_from_slice(&entries[..count]);
            let sum = gpt::crc32(place);
            disk.0[header_at + 88..header_at + HEADER].copy_from_slice(&sum.to_le_bytes());
        }
        disk.0[header_at + 16..header_at + 20].fill(0);
        let sum = gpt::crc32(&disk.0[header_at..header_at + HEADER]);
        disk.0[header_at + 16..header_at + 20].copy_from_slice(&sum.to_le_bytes());
        taken &= check_table(&disk);
    }
    // As they are, with whatever checksum.
    let mut bytes = data.to_vec();
    bytes.resize(SECTORS * SECTOR, 0);
    check_table(&Disk(bytes));
    taken
}

fn check_table(disk: &Disk) -> bool {
    let Ok(Some(found)) = gpt::read(disk, SECTOR as u64) else {
        return false;
    };
    let table = found.table;
    table.check().unwrap();
    assert!(
        table
            .partitions
            .iter()
            .all(|one| one.sectors() > 0 && one.last < SECTORS as u64)
    );
    // A table that leaves no room for itself can be read, not written.
    let (Ok(primary), Ok(backup)) = (
        table.encode(Place::Primary, SECTORS as u64),
        table.encode(Place::Backup, SECTORS as u64),
    ) else {
        return true;
    };
    let mut written = Disk(vec![0; SECTORS * SECTOR]);
    for (place, bytes) in primary.into_iter().chain(backup) {
        let place = place as usize;
        written.0[place..place + bytes.len()].copy_from_slice(&bytes);
    }
    let again = gpt::read(&written, SECTOR as u64).unwrap().unwrap();
    assert_eq!(again.table, table);
    assert!(again.whole);
    true
}

/// A header and two entries.
pub(crate) fn machine_gpt_seeds() -> Vec<Vec<u8>> {
    let mut header = vec![0; HEADER];
    header[..8].copy_from_slice(b"EFI PART");
    header[10] = 1;
    header[12] = HEADER as u8;
    for (at, value) in [
        (24, 1u64),
        (32, SECTORS as u64 - 1),
        (40, 34),
        (48, SECTORS as u64 - 34),
        (72, 2),
    ] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    (header[80], header[84]) = (128, 128);
    for number in 1..3u8 {
        let mut entry = [0; 128];
        entry[..32].fill(number);
        (entry[32], entry[40]) = (number * 40, number * 40 + 9);
        (entry[56], entry[58]) = (b'a', b'b');
        header.extend(entry);
    }
    vec![header]
}

/// The kernel's command line.
pub(crate) fn command_line(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(line) = CommandLine::parse(text) else {
        return false;
    };
    let shown = format!("roothash={}", line.root_hash);
    assert_eq!(CommandLine::parse(&shown).unwrap().root_hash, line.root_hash);
    assert!(text.to_ascii_lowercase().contains(&shown));
    true
}

/// One with all words.
pub(crate) fn command_line_seeds() -> Vec<Vec<u8>> {
    let hash = "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF";
    vec![format!("quiet roothash={hash} kimage.root_timeout=7 roothash={hash} -- roothash=x\n").into_bytes()]
}

/// The EFI variable that says which partition the firmware started: what is believed reads the same when it is written
/// again.
pub(crate) fn booted_partition(data: &[u8]) -> bool {
    let Ok(id) = firmware::parse(data) else {
        return false;
    };
    assert_eq!(firmware::parse(&variable(&id.to_string())).unwrap(), id);
    true
}

fn variable(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_le_bytes);
    [6, 0, 0, 0].into_iter().chain(units).collect()
}

fn booted_partition_seeds() -> Vec<Vec<u8>> {
    [
        "0A1B2C3D-4E5F-4789-8ABC-DEF012345678\0",
        "0a1b2c3d-4e5f-4789-8abc-def012345678",
    ]
    .map(variable)
    .into()
}

/// dm-verity's superblock, as stage 0 reads it.
pub(crate) fn machine_verity(data: &[u8]) -> bool {
    let mut block = [0; verity::SUPERBLOCK];
    let count = data.len().min(block.len());
    block[..count].copy_from_slice(&data[..count]);
    let Ok(superblock) = verity::Superblock::parse(&block) else {
        return false;
    };
    assert!(superblock.sectors().is_multiple_of(8) && superblock.sectors() > 0);
    true
}

/// One with a salt.
pub(crate) fn machine_verity_seeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![0; 120];
    bytes[..8].copy_from_slice(b"verity\0\0");
    (bytes[8], bytes[12]) = (1, 1);
    bytes[32..38].copy_from_slice(b"sha256");
    (bytes[65], bytes[69]) = (16, 16);
    (bytes[72], bytes[73], bytes[80]) = (0x62, 0x8c, 32);
    vec![bytes]
}

/// ext4's superblock.
pub(crate) fn ext4_superblock(data: &[u8]) -> bool {
    let mut block = [0; 1024];
    let count = data.len().min(block.len());
    block[..count].copy_from_slice(&data[..count]);
    let Ok(superblock) = ext4::Superblock::parse(&block) else {
        return false;
    };
    assert!(superblock.should_grow_to(u64::MAX));
    true
}

/// A clean one.
pub(crate) fn ext4_superblock_seeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![0; 0x160];
    (bytes[5], bytes[0x18], bytes[0x38], bytes[0x39], bytes[0x3a]) = (1, 2, 0x53, 0xef, 1);
    bytes[0x60] = 0x80;
    vec![bytes]
}

/// `role.json`.
pub(crate) fn role(data: &[u8]) -> bool {
    let Ok(role) = Role::from_json(data) else {
        return false;
    };
    assert_eq!(Role::from_json(&role.to_json().unwrap()).unwrap(), role);
    true
}

/// One with a component.
pub(crate) fn role_seeds() -> Vec<Vec<u8>> {
    let role = Role {
        schema: kimage_roles::role::SCHEMA,
        role: "worker".to_owned(),
        image: "ubuntu-24.04".to_owned(),
        kernel: "6.8.0-149-generic".to_owned(),
        root_size_mib: Some(1024),
        components: vec![Component {
            name: "etcd".to_owned(),
            version: "v3.6.14".to_owned(),
            version_commands: vec![vec![ROLE_PATH.to_owned(), "--version".to_owned()]],
        }],
    };
    vec![role.to_json().unwrap()]
}

/// The table of modules and modaliases: what is read is written the same, and each device loads needs first.
pub(crate) fn stage0_table(data: &[u8]) -> bool {
    let Ok(table) = Table::parse(data) else {
        return false;
    };
    let text = table.to_string();
    assert_eq!(Table::parse(text.as_bytes()).unwrap().to_string(), text);
    for alias in table.aliases().iter().take(50) {
        for module in table.for_device(&alias.pattern) {
            assert_eq!(table.closure(module).last(), Some(&module));
        }
    }
    true
}

/// A module with a need and an alias.
pub(crate) fn stage0_table_seeds() -> Vec<Vec<u8>> {
    vec![
        b"kimage-stage0 1\nkernel 6.8.0-151-generic\nmodule dm_bufio dm-bufio.ko -\nmodule dm_verity dm-verity.ko dm_bufio\n\
          module nvme nvme.ko -\nalways dm_verity\nalias nvme pci:v*d*sv*sd*bc01sc08i02*\nalias nvme usb:v0525pA4A5d0[0-4]*dc*\n"
            .to_vec(),
    ]
}

/// A pattern, a line feed and a device: what has no special sign matches itself and nothing else.
pub(crate) fn modalias(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Some((pattern, device)) = text.split_once('\n') else {
        return false;
    };
    if pattern.len() > 1024 || device.len() > 1024 {
        return false;
    }
    let found = matches(pattern, device);
    if !pattern.contains(['*', '?', '[', '\\']) {
        assert_eq!(found, pattern == device);
    }
    assert!(matches("*", device) && matches(&format!("*{pattern}"), device) >= found);
    found
}

/// Two patterns and their devices.
pub(crate) fn modalias_seeds() -> Vec<Vec<u8>> {
    vec![
        b"pci:v000015ADd000007C0sv*sd*bc*sc*i*\npci:v000015ADd000007C0sv000015ADsd000007C0bc01sc07i00"
            .to_vec(),
        b"usb:v0525pA4A5d0[0-4]*d\\c[!a]?\nusb:v0525pA4A5d03dcbc".to_vec(),
    ]
}
