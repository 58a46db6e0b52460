use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::{ProptestConfig, any, proptest};

use super::*;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// First byte of root A, and the size of the image's file.
const ROOT: u64 = 9 * MIB;
const IMAGE: u64 = 22 * MIB;
const DISK: u64 = 4096 * MIB;
/// What stands for a finished filesystem, and what the guest wrote into it.
const FILESYSTEM: &[u8] = b"filesystem";
const DATA: &[u8] = b"precious";

#[expect(clippy::disallowed_methods, reason = "a test's oracle")]
fn sgdisk(arguments: &str, disk: &Path) -> String {
    let output = std::process::Command::new("sgdisk")
        .args(arguments.split(' '))
        .arg(disk)
        .output();
    let output = output.expect("sgdisk is needed: apt-get install gdisk");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Sectors by number; those that were never written are zero.
type Sectors = BTreeMap<u64, [u8; SECTOR as usize]>;

/// A disk in memory: what is durable, what is only written, and a power supply that ends.
struct Disk {
    durable: RefCell<Sectors>,
    pending: RefCell<Vec<(u64, Vec<u8>)>>,
    size: u64,
    /// Writes and flushes until the power goes.
    power: Cell<usize>,
    used: Cell<usize>,
}

impl Disk {
    fn new(sectors: Sectors, size: u64) -> Self {
        let (power, used) = (Cell::new(usize::MAX), Cell::new(0));
        Self {
            durable: RefCell::new(sectors),
            pending: RefCell::default(),
            size,
            power,
            used,
        }
    }

    fn step(&self) -> io::Result<()> {
        let left = self.power.get();
        if left == 0 {
            return Err(io::Error::other("power cut"));
        }
        self.power.set(left - 1);
        self.used.set(self.used.get() + 1);
        Ok(())
    }

    fn land(&self, offset: u64, bytes: &[u8]) {
        let mut durable = self.durable.borrow_mut();
        for (at, byte) in (offset..).zip(bytes) {
            durable.entry(at / SECTOR).or_insert([0; SECTOR as usize])[(at % SECTOR) as usize] = *byte;
        }
    }

    /// The power comes back: of the writes that were not flushed, some sectors have landed.
    fn power_on(&self, landed: u64) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        let sectors = pending.iter().flat_map(|(offset, bytes)| {
            bytes
                .chunks(SECTOR as usize)
                .enumerate()
                .map(move |(index, sector)| (offset + index as u64 * SECTOR, sector))
        });
        for (index, (offset, sector)) in sectors.enumerate() {
            if landed.rotate_left(index as u32) & 1 == 1 {
                self.land(offset, sector);
            }
        }
        self.power.set(usize::MAX);
    }
}

impl Storage for Disk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let durable = self.durable.borrow();
        for (at, byte) in (offset..).zip(buffer.iter_mut()) {
            *byte = durable
                .get(&(at / SECTOR))
                .map_or(0, |sector| sector[(at % SECTOR) as usize]);
        }
        for (start, bytes) in self.pending.borrow().iter() {
            for (index, byte) in bytes.iter().enumerate() {
                let at = (start + index as u64).wrapping_sub(offset);
                if at < buffer.len() as u64 {
                    buffer[at as usize] = *byte;
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step()?;
        self.pending.borrow_mut().push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.step()?;
        for (offset, bytes) in std::mem::take(&mut *self.pending.borrow_mut()) {
            self.land(offset, &bytes);
        }
        Ok(())
    }
}

/// Makes "filesystems" on the same disk, in two writes, and refuses to make one over another's data.
struct Model<'a> {
    disk: &'a Disk,
    ids: u128,
}

impl Host for Model<'_> {
    fn new_id(&mut self) -> Result<Guid> {
        self.ids += 1;
        Ok(Guid::from_text_order(self.ids.to_be_bytes()))
    }

    fn announce(&mut self, _table: &Table) -> Result<()> {
        Ok(())
    }

    fn make_filesystem(&mut self, partition: &Partition) -> Result<()> {
        assert_ne!(
            self.disk.bytes(data_at(partition), DATA.len()),
            DATA,
            "a filesystem in use was overwritten"
        );
        self.disk.write_at(&FILESYSTEM[..5], partition.first * SECTOR)?;
        self.disk
            .write_at(&FILESYSTEM[5..], partition.first * SECTOR + 5)?;
        Ok(self.disk.sync()?)
    }

    fn say(&mut self, _text: &str) {}
}

impl Disk {
    fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn prepare(&self, seed: u128) -> Result<Option<Partition>> {
        prepare(
            self,
            SECTOR,
            None,
            &mut Model {
                disk: self,
                ids: seed << 32,
            },
        )
    }

    /// Judges the disk with sgdisk, through a file that is sparse but for the tables.
    fn verify(&self) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(self.size).unwrap();
        for at in [0, self.size - MIB] {
            file.as_file()
                .write_all_at(&self.bytes(at, MIB as usize), at)
                .unwrap();
        }
        let text = sgdisk("--verify", file.path());
        assert!(text.contains("No problems found"), "{text}");
        sgdisk("--print", file.path())
    }
}

fn data_at(partition: &Partition) -> u64 {
    partition.first * SECTOR + 4096
}

/// The image's file, copied onto a disk of `size` bytes.
fn disk(size: u64) -> Disk {
    static IMAGE_BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let image = IMAGE_BYTES.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(IMAGE).unwrap();
        let partitions = "--new=1:2048:+4M --typecode=1:ef00 --change-name=1:esp \
            --partition-guid=1:11111111-1111-8111-8111-111111111111 \
            --new=2:10240:+4M --typecode=2:2c7357ed-ebd2-46d9-aec1-23d437ec2bf5 --change-name=2:root-a-verity \
            --new=3:18432:+12M --typecode=3:4f68bce3-e8cd-4db1-96e7-fbcaf984b709 --change-name=3:root-a";
        let words: Vec<&str> = partitions.split_ascii_whitespace().collect();
        sgdisk(&words.join(" "), file.path());
        std::fs::read(file.path()).unwrap()
    });
    let sectors = image
        .chunks_exact(SECTOR as usize)
        .zip(0..)
        .filter(|(sector, _)| sector.iter().any(|byte| *byte != 0));
    let disk = Disk::new(
        sectors
            .map(|(sector, number)| (number, sector.try_into().unwrap()))
            .collect(),
        size,
    );
    disk.land(ROOT, b"root");
    disk
}

fn names(disk: &Disk) -> Vec<String> {
    let table = gpt::read(disk, SECTOR).unwrap().unwrap().table;
    table
        .partitions
        .into_iter()
        .map(|partition| partition.name)
        .collect()
}

#[test]
fn a_larger_disk_gets_the_second_slot_and_the_state() {
    let disk = disk(DISK);
    let state = disk.prepare(1).unwrap().unwrap();
    assert_eq!(
        names(&disk),
        [
            "esp",
            "root-a-verity",
            "root-a",
            "root-b",
            "root-b-verity",
            "state"
        ]
    );
    assert_eq!(
        (state.last + 1) * SECTOR,
        DISK - MIB,
        "the last MiB holds the backup table"
    );
    assert_eq!(disk.bytes(state.first * SECTOR, FILESYSTEM.len()), FILESYSTEM);
    let table = gpt::read(&disk, SECTOR).unwrap().unwrap();
    assert!(table.whole);
    let [a, b] = [2, 3].map(|index| table.table.partitions[index].sectors());
    assert_eq!(
        (a * SECTOR, b * SECTOR),
        (64 * MIB, 64 * MIB),
        "room for a larger root"
    );
    disk.verify();
}

#[test]
fn the_disk_and_its_boot_partition_get_ids_of_their_own_once() {
    let disk = disk(DISK);
    let table = || gpt::read(&disk, SECTOR).unwrap().unwrap().table;
    let ids = |table: &Table| {
        table
            .partitions
            .iter()
            .map(|partition| partition.id)
            .collect::<Vec<_>>()
    };
    let image = table();
    assert!(image.partitions[0].id.is_derived());
    disk.prepare(1).unwrap().unwrap();
    let own = table();
    assert!(own.disk != image.disk && !own.partitions[0].id.is_derived());
    assert_ne!(own.partitions[0].id, image.partitions[0].id);
    assert_eq!(ids(&own)[1..3], ids(&image)[1..3], "the root hash names these");
    disk.prepare(2).unwrap().unwrap();
    assert_eq!(table(), own);
}

#[test]
fn a_second_run_writes_nothing() {
    let disk = disk(DISK);
    let first = disk.prepare(1).unwrap();
    let used = disk.used.get();
    assert_eq!(disk.prepare(2).unwrap(), first);
    assert_eq!(disk.used.get(), used);
}

#[test]
fn a_disk_without_room_for_a_slot_gets_the_state_only() {
    let disk = disk(IMAGE + 1030 * MIB);
    disk.prepare(1).unwrap().unwrap();
    assert_eq!(names(&disk), ["esp", "root-a-verity", "root-a", "state"]);
    disk.verify();
}

#[test]
fn a_disk_without_room_keeps_its_partitions() {
    for size in [IMAGE, IMAGE + 900 * MIB] {
        let disk = disk(size);
        assert_eq!(disk.prepare(1).unwrap(), None);
        assert_eq!(names(&disk), ["esp", "root-a-verity", "root-a"]);
        disk.verify();
    }
}

#[test]
fn a_disk_that_grew_gives_the_state_more() {
    let small = disk(2048 * MIB);
    let before = small.prepare(1).unwrap().unwrap();
    small.land(data_at(&before), DATA);
    let large = Disk::new(small.durable.into_inner(), DISK);
    let after = large.prepare(2).unwrap().unwrap();
    assert_eq!(
        (after.first, after.id, (after.last + 1) * SECTOR),
        (before.first, before.id, DISK - MIB)
    );
    assert_eq!(large.bytes(data_at(&after), DATA.len()), DATA);
    large.verify();
}

#[test]
fn a_disk_with_sectors_of_4096_bytes_is_planned_alike() {
    let sectors = DISK / 4096;
    let guid = |value: u128| Guid::from_text_order(value.to_be_bytes());
    let kind = guid(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
    let root = Partition {
        number: 1,
        kind,
        id: guid(9),
        first: 256,
        last: 1023,
        attributes: 0,
        name: "root".into(),
    };
    let table = Table {
        sector_size: 4096,
        disk: guid(1),
        first_usable: 6,
        last_usable: 2000,
        entries: 128,
        partitions: vec![root],
    };
    let after = plan::apply(&table, &plan::plan(&table, sectors, None), || Ok(guid(7))).unwrap();
    assert_eq!(after.last_usable, sectors - 6);
    assert_eq!(after.partitions[1].first % 256, 0);
    assert!(after.encode(Place::Backup, sectors).is_ok());
}

/// Cuts the power after `cut` steps of the first run and after `again` steps of the second, then completes.
fn survives(size: u64, cut: usize, again: usize, landed: u64) {
    let disk = disk(size);
    for (seed, power) in [(1, cut), (2, again)] {
        disk.power.set(power);
        let _ = disk.prepare(seed);
        disk.power_on(landed.rotate_left(seed as u32 * 7));
        // Whatever happened, stage 0 finds the root.
        let found = gpt::read(&disk, SECTOR).unwrap().expect("no table is left");
        let root = found
            .table
            .partitions
            .iter()
            .find(|partition| partition.name == "root-a")
            .expect("no root");
        assert_eq!(disk.bytes(root.first * SECTOR, 4), b"root");
        // And a state that is called complete is complete; a guest may write to it.
        if let Some(state) = found
            .table
            .partitions
            .iter()
            .find(|partition| partition.name == "state")
        {
            assert_eq!(disk.bytes(state.first * SECTOR, FILESYSTEM.len()), FILESYSTEM);
            disk.land(data_at(state), DATA);
        }
    }
    let state = disk.prepare(3).unwrap().unwrap();
    assert_eq!(state.name, "state");
    assert_eq!(disk.bytes(state.first * SECTOR, FILESYSTEM.len()), FILESYSTEM);
    assert!(gpt::read(&disk, SECTOR).unwrap().unwrap().whole);
}

#[test]
fn a_power_cut_after_every_single_write_is_survived() {
    let whole = disk(1536 * MIB);
    whole.prepare(1).unwrap();
    let steps = whole.used.get();
    assert!(steps >= 15, "{steps}");
    drop(whole);
    for cut in 0..=steps {
        for landed in [0, u64::MAX] {
            survives(1536 * MIB, cut, usize::MAX, landed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn two_power_cuts_with_torn_writes_are_survived(cut in 0usize..16, again in 0usize..16, landed in any::<u64>()) {
        survives(1536 * MIB, cut, again, landed);
    }
}
