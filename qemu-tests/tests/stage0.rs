//! Stage 0 and the state partition on a distribution's kernel, with a root of one busybox, before any image exists.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use kimage_builder::tool::Tool;
use kimage_qemu_tests::machine::{Blueprint, Bus, Cache, Disk, Format, Machine};
use kimage_qemu_tests::small_image::{self, SmallImage};
use kimage_roles::containers::{CONTENT, METADATA, SNAPSHOTS, SNAPSHOTTER, STAMP, STORE};

const DEADLINE: Duration = Duration::from_secs(120);
const SECTOR: u64 = 512;
/// First sectors of the hash partition and of the root partition, and the disk's size in sectors.
const HASHES: u64 = 2048;
const ROOT: u64 = 4096;
const DISK: u64 = 32768;
const PANIC: &str = "Kernel panic";

/// What the real root runs instead of systemd.
const INIT: &str = r#"#!/bin/sh
mount | grep ' / \| /etc \| /run '
touch /etc/probe && echo etc-can-change
touch /probe 2>/dev/null || echo root-can-not
cat /run/kimage/stage0.json; echo
echo root-is-up
if grep -q test=state /proc/cmdline; then
    /usr/lib/kimage/kimage-firstboot state && echo state-is-ready || echo state-failed
    mount | grep ' /var '
    echo "size $(df -m /var | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2) MiB"
    echo "boots before: $(cat /var/boots | wc -l), factory says $(cat /var/lib/factory-file)"
    echo x >>/var/boots
    sync
    echo test-is-done
fi
if grep -q test=containers /proc/cmdline; then
    /usr/lib/kimage/kimage-firstboot state || echo state-failed
    /usr/lib/kimage/kimage-firstboot containers && echo store-is-ready
    echo "in use: $(readlink /var/lib/containerd)"
    echo "stores: $(ls -A /var/lib/kimage/containerd)"
    cd /usr/lib/kimage/containerd
    for file in $(find io.containerd* -type f); do
        cmp $file /var/lib/containerd/$file && echo same
    done
    sync
    echo test-is-done
fi
sleep 0.2
poweroff -f
"#;

struct Bench {
    small: SmallImage,
    image: PathBuf,
}

/// The image, made once for all tests.
fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Not a temporary folder: a static is never dropped, so the next run clears away what this one leaves.
        let small = SmallImage::build(&cache.join("stage0"), cache, INIT, write_store).unwrap();
        let image = build_disk(&small);
        Bench { small, image }
    })
}

/// A store for containerd that takes a while to copy.
fn write_store(root: &Path) -> anyhow::Result<()> {
    let put = |path: &str, bytes: &[u8]| -> anyhow::Result<()> {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap())?;
        Ok(fs::write(path, bytes)?)
    };
    put(&format!("{STORE}/{STAMP}"), b"5eed\n")?;
    // Each block another one, so that a hole or a swap shows, and all together small in the root.
    let blob = |seed: u8| -> Vec<u8> {
        let block = |number: u32| [seed, number as u8, (number >> 8) as u8].repeat(1365);
        (0..2048).flat_map(block).collect()
    };
    put(&format!("{STORE}/{CONTENT}/blobs/1"), &blob(1))?;
    put(&format!("{STORE}/{CONTENT}/blobs/2"), &blob(2))?;
    put(&format!("{STORE}/{METADATA}/meta.db"), b"database")?;
    put(&format!("{STORE}/{SNAPSHOTTER}/{SNAPSHOTS}/1/fs/app"), b"program")
}

/// A disk with the root and its hash tree, and no boot partition: QEMU loads the kernel.
fn build_disk(small: &SmallImage) -> PathBuf {
    let image = small.folder.join("disk.raw");
    let mut disk = vec![0; (DISK * SECTOR) as usize];
    for (path, start, end) in [(&small.verity, HASHES, ROOT), (&small.root, ROOT, DISK - 34)] {
        let bytes = fs::read(path).unwrap();
        assert!(bytes.len() as u64 <= (end - start) * SECTOR);
        disk[(start * SECTOR) as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    fs::write(&image, disk).unwrap();
    let guid = |half: &str| {
        [
            &half[..8],
            &half[8..12],
            &half[12..16],
            &half[16..20],
            &half[20..],
        ]
        .join("-")
    };
    let (root, hashes) = (guid(&small.root_hash[..32]), guid(&small.root_hash[32..]));
    let partitions = format!(
        "--new=1:{HASHES}:{} --partition-guid=1:{hashes} --typecode=1:2c7357ed-ebd2-46d9-aec1-23d437ec2bf5 \
         --new=2:{ROOT}: --partition-guid=2:{root} --typecode=2:4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        ROOT - 1
    );
    small_image::run(&small.folder, "sgdisk", &format!("{partitions} disk.raw")).unwrap();
    image
}

/// A fresh copy of the image, changed by `change`.
fn copy(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let path = bench().small.folder.join(format!("{name}.raw"));
    let mut bytes = fs::read(&bench().image).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    path
}

fn boot(disk: Disk, words: &str) -> Machine {
    let small = &bench().small;
    let command_line = format!("console=ttyS0 panic=-1 roothash={} {words}", small.root_hash);
    Blueprint::direct(&small.kernel, &small.initrd, &command_line)
        .memory_mb(512)
        .disk(disk)
        .start()
        .unwrap()
}

/// Boots and returns stage 0's line when the root came up.
fn comes_up(disk: Disk) -> String {
    let mut machine = boot(disk, "");
    let (which, line) = machine
        .console()
        .wait_for_any(&["kimage-init: root found", PANIC], DEADLINE)
        .unwrap();
    assert_eq!(which, 0, "{line}\n{}", machine.console().transcript());
    let (which, last) = machine
        .console()
        .wait_for_any(&["root-is-up", PANIC], DEADLINE)
        .unwrap();
    assert_eq!(which, 0, "{last}\n{}", machine.console().transcript());
    machine.wait_for_end(DEADLINE).unwrap();
    let text = machine.console().transcript();
    for expected in [
        "/dev/dm-0 on / type squashfs (ro",
        "on /etc type overlay (rw",
        "etc-can-change",
        "root-can-not",
        "\"root_partition\":2",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    line
}

/// Boots and returns the console of a machine that must not come up.
fn panics(disk: Disk, words: &str) -> String {
    let mut machine = boot(disk, words);
    let (which, line) = machine
        .console()
        .wait_for_any(&[PANIC, "root-is-up"], DEADLINE)
        .unwrap();
    assert_eq!(which, 0, "{line}");
    machine.wait_for_end(DEADLINE).unwrap();
    machine.console().transcript()
}

#[test]
fn the_root_is_found_on_every_bus() {
    let buses = [
        Bus::VirtioBlk,
        Bus::Nvme,
        Bus::Ahci,
        Bus::VirtioScsi,
        Bus::Pvscsi,
        Bus::MptSas,
        Bus::MegaSas,
        Bus::Usb,
    ];
    for bus in buses {
        let path = bench().small.folder.join(format!("{bus:?}.qcow2"));
        let disk = Disk::overlay(&bench().image, Format::Raw, &path, Some(64 << 20)).unwrap();
        println!("{bus:?}: {}", comes_up(disk.bus(bus)));
    }
}

#[test]
fn a_flipped_bit_in_the_root_panics() {
    // Every 64th block, so that the very first reads meet one.
    let path = copy("flipped", |bytes| {
        for block in (ROOT * SECTOR / 4096..bytes.len() as u64 / 4096).step_by(8) {
            bytes[block as usize * 4096 + 100] ^= 1;
        }
    });
    let text = panics(Disk::of(&path, Format::Raw), "");
    assert!(text.contains("dm-verity device corrupted"), "{text}");
}

#[test]
fn a_root_that_another_hash_signs_is_not_entered() {
    let path = copy("foreign", |bytes| bytes[(HASHES * SECTOR) as usize + 88] ^= 1);
    let text = panics(Disk::of(&path, Format::Raw), "");
    assert!(text.contains("dm-verity device corrupted"), "{text}");
}

#[test]
fn a_disk_without_the_root_is_named_and_the_machine_gives_up() {
    let path = copy("empty", |bytes| bytes[..].fill(0));
    let text = panics(Disk::of(&path, Format::Raw), "kimage.root_timeout=2");
    let expected = "after 2 s; looked at: vda (no GUID partition table); can't boot";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn the_backup_table_is_used_when_the_primary_is_damaged() {
    let path = copy("primary-damaged", |bytes| bytes[512..1024].fill(0));
    let line = comes_up(Disk::of(&path, Format::Raw));
    assert!(line.contains("disk vda"), "{line}");
}

/// Boots a machine whose `/var` is on the disk and returns its console.
fn boots_with_state(disk: Disk) -> String {
    let mut machine = boot(disk, "test=state");
    let (which, line) = machine
        .console()
        .wait_for_any(&["test-is-done", "state-failed", PANIC], DEADLINE)
        .unwrap();
    assert_eq!(which, 0, "{line}\n{}", machine.console().transcript());
    machine.wait_for_end(DEADLINE).unwrap();
    machine.console().transcript()
}

fn state_disk(name: &str, size: u64) -> (PathBuf, Disk) {
    let path = bench().small.folder.join(format!("{name}.qcow2"));
    let disk = Disk::overlay(&bench().image, Format::Raw, &path, Some(size)).unwrap();
    (path, disk.cache(Cache::Writeback))
}

/// What sgdisk finds wrong with the disk, and its list of partitions.
fn inspect(path: &Path) -> String {
    let raw = path.with_extension("inspected");
    let run = |program: &str| Tool::new(program).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    run("qemu-img")
        .args(["convert", "-O", "raw"])
        .args([path, &raw])
        .run()
        .unwrap();
    let text = [["--verify"], ["--print"]].map(|option| run("sgdisk").args(option).arg(&raw).run().unwrap());
    fs::remove_file(raw).unwrap();
    let text = String::from_utf8(text.concat()).unwrap();
    assert!(text.contains("No problems found"), "{text}");
    text
}

#[test]
fn the_state_is_made_kept_and_grown() {
    let (path, disk) = state_disk("state", 3 << 30);
    let first = boots_with_state(disk.clone());
    assert!(
        first.contains("/dev/vda5 on /var type ext4 (rw,nosuid,nodev"),
        "{first}"
    );
    assert!(first.contains("boots before: 0, factory says hello"), "{first}");
    let second = boots_with_state(disk.clone());
    assert!(second.contains("boots before: 1, factory says hello"), "{second}");
    assert!(
        !second.contains("kimage-state:"),
        "a later boot has nothing to say\n{second}"
    );
    let table = inspect(&path);
    assert!(
        table.contains(" root-b\n") && table.contains(" root-b-verity\n") && table.contains(" state\n"),
        "{table}"
    );

    Tool::new("qemu-img")
        .inherit(&["PATH"])
        .args(["resize", "-q"])
        .arg(&path)
        .arg("5G")
        .run()
        .unwrap();
    let third = boots_with_state(disk);
    assert!(
        third.contains("boots before: 2") && third.contains("/dev/vda5 grew from"),
        "{third}"
    );
    let size = |text: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("size ")).unwrap();
        line.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(
        size(&third) > size(&second) + 1900,
        "{} MiB, then {} MiB",
        size(&second),
        size(&third)
    );
    let table = inspect(&path);
    // Declared are 96 MiB; the image's own root is smaller.
    let roots = table.lines().filter(|line| line.contains("96.0 MiB"));
    assert_eq!(
        roots.count(),
        2,
        "both slots have room for a larger root\n{table}"
    );
}

#[test]
fn a_power_cut_while_the_state_is_made_is_survived() {
    let (path, disk) = state_disk("cut", 3 << 30);
    for pattern in ["the partition table takes the whole disk", "is made for state"] {
        let mut machine = boot(disk.clone(), "test=state");
        machine.console().wait_for(pattern, DEADLINE).unwrap();
        machine.cut_power();
    }
    let text = boots_with_state(disk);
    assert!(text.contains("boots before: 0, factory says hello"), "{text}");
    inspect(&path);
}

#[test]
fn a_power_cut_while_containerds_store_is_copied_is_survived() {
    let (_, disk) = state_disk("store", 3 << 30);
    for _ in 0..2 {
        let mut machine = boot(disk.clone(), "test=containers");
        let (which, line) = machine
            .console()
            .wait_for_any(&["is copied from the image", "is in use", PANIC], DEADLINE)
            .unwrap();
        assert_eq!(which, 0, "{line}");
        machine.cut_power();
    }
    let mut machine = boot(disk, "test=containers");
    machine.console().wait_for("test-is-done", DEADLINE).unwrap();
    machine.wait_for_end(DEADLINE).unwrap();
    let text = machine.console().transcript();
    assert!(
        text.contains("is copied from the image"),
        "the cuts came too late\n{text}"
    );
    for expected in [
        "in use: /var/lib/kimage/containerd/5eed",
        "stores: 5eed\r\n",
        "store-is-ready",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert_eq!(text.matches("same\r\n").count(), 4, "{text}");
}

#[test]
fn without_room_var_is_in_memory_and_the_console_says_so() {
    let text = boots_with_state(state_disk("small", 512 << 20).1);
    assert!(
        text.contains("/var is in memory") && text.contains("on /var type tmpfs (rw,nosuid,nodev"),
        "{text}"
    );
}
