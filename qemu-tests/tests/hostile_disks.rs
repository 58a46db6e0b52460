//! A tenant's disk that imitates the machine's own: the image is public, so anybody has its root, its boot partition and
//! all its identifiers. Real firmware and systemd's boot loader start the machine, as everywhere.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use kimage_builder::disk::{self, Content};
use kimage_builder::explain::{Console, Verdict};
use kimage_builder::partitions::esp::EspFile;
use kimage_builder::partitions::uki::{Section, SectionKind, assemble};
use kimage_builder::tool::Tool;
use kimage_qemu_tests::machine::{Blueprint, Cache, Disk, Firmware, Format, Machine};
use kimage_qemu_tests::packages::Locked;
use kimage_qemu_tests::small_image::{SmallImage, run};
use kimage_roles::cause::Cause;

const DEADLINE: Duration = Duration::from_secs(240);
const PANIC: &str = "Kernel panic";
const MIB: u64 = 1 << 20;
/// Disk of a machine, and of a tenant.
const DISK: u64 = 2560 * MIB;

/// What the real root runs instead of systemd.
const INIT: &str = r#"#!/bin/sh
/usr/lib/kimage/kimage-firstboot state && echo state-is-ready || echo state-failed
mount | grep ' /var '
find /var/lib/kubelet
echo "boots before: $(cat /var/boots | wc -l)"
echo x >>/var/boots
sync
echo test-is-done
sleep 0.2
poweroff -f
"#;

struct Bench {
    small: SmallImage,
    /// The disk that ships: systemd-boot, which starts the UKI.
    shipped: PathBuf,
    /// One whose boot partition has the UKI alone, where the firmware looks for it.
    bare: PathBuf,
}

/// The images, made once for all tests.
fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Not a temporary folder: a static is never dropped, so the next run clears away what this one leaves.
        let small = SmallImage::build(&cache.join("hostile-disks"), cache, INIT, |_| Ok(())).unwrap();
        let locked = Locked::of("ubuntu-24.04").unwrap();
        let programs = locked.unpacked(&["systemd-boot-efi"], cache).unwrap();
        let program = |name: &str| fs::read(programs.join("usr/lib/systemd/boot/efi").join(name)).unwrap();
        let (manager, uki) = (
            program("systemd-bootx64.efi"),
            uki(&small, &program("linuxx64.efi.stub")),
        );
        let shipped: [(&str, &[u8]); 3] = [
            ("EFI/BOOT/BOOTX64.EFI", &manager),
            ("EFI/Linux/kimage.efi", &uki),
            ("loader/loader.conf", b"timeout 0\n"),
        ];
        Bench {
            shipped: image(&small, "shipped.raw", &shipped),
            bare: image(&small, "bare.raw", &[("EFI/BOOT/BOOTX64.EFI", &uki)]),
            small,
        }
    })
}

fn uki(small: &SmallImage, stub: &[u8]) -> Vec<u8> {
    let command_line = format!("console=ttyS0 panic=-1 roothash={}", small.root_hash);
    let (kernel, initrd) = (fs::read(&small.kernel).unwrap(), fs::read(&small.initrd).unwrap());
    let section = |kind, data| Section { kind, data };
    let sections = [
        section(
            SectionKind::OsRelease,
            &b"ID=test\nPRETTY_NAME=\"test\"\nIMAGE_VERSION=1\n"[..],
        ),
        section(SectionKind::CommandLine, command_line.as_bytes()),
        section(SectionKind::Linux, &kernel),
        section(SectionKind::Initrd, &initrd),
    ];
    assemble(stub, &sections).unwrap()
}

/// A disk as the builder makes it, with these files on its boot partition.
fn image(small: &SmallImage, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let esp: Vec<_> = files.iter().map(|(path, data)| EspFile { path, data }).collect();
    let content = Content {
        esp: &esp,
        epoch: 0x6000_0000,
        root: &small.root,
        verity: &small.verity,
        hash_tree_room: 0,
        root_hash: &small.root_hash.parse().unwrap(),
    };
    let path = small.folder.join(name);
    disk::assemble(&content, &path).unwrap();
    path
}

/// The machine's own disk: a copy of `image` with room for the state.
fn own(image: &Path, name: &str) -> Disk {
    let path = bench().small.folder.join(name);
    let disk = Disk::overlay(image, Format::Raw, &path, Some(DISK)).unwrap();
    disk.cache(Cache::Writeback)
}

/// A tenant's raw volume: a copy of the public disk, with or without its boot partition, and a state of the tenant's own
/// with everything that a node keeps there.
fn tenant(name: &str, with_boot_partition: bool) -> (PathBuf, Disk) {
    let Bench { small, shipped, .. } = bench();
    let path = small.folder.join(name);
    copy(shipped, &path);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(DISK)
        .unwrap();
    let start = fs::metadata(shipped).unwrap().len() / MIB;
    let end = DISK / MIB - 1;
    let delete = if with_boot_partition { "" } else { "--delete=1" };
    let change = format!(
        "--move-second-header {delete} --new=4:{start}M:{}M --typecode=4:8300 --change-name=4:state {name}",
        end - 1
    );
    run(&small.folder, "sgdisk", &change).unwrap();
    let files = small.folder.join("tenant-files");
    fs::create_dir_all(files.join("lib/kubelet")).unwrap();
    fs::write(files.join("lib/kubelet/written-by-the-tenant"), "").unwrap();
    let make = format!(
        "-q -F -L var -d tenant-files -E offset={},nodiscard {name} {}m",
        start * MIB,
        end - start - 1
    );
    run(&small.folder, "mkfs.ext4", &make).unwrap();
    let disk = Disk::of(&path, Format::Raw);
    (path, disk)
}

fn copy(from: &Path, to: &Path) {
    let tool = Tool::new("cp").inherit(&["PATH"]).arg("--sparse=always");
    tool.arg(from).arg(to).run().unwrap();
}

/// A machine with these disks, first in the lowest slot of its bus; the firmware boots the last one.
fn boot(others: &[&Disk], own: &Disk) -> Machine {
    let firmware = Firmware::find(false).unwrap();
    let vars = bench().small.folder.join("vars.fd");
    fs::copy(&firmware.vars, &vars).unwrap();
    let mut blueprint = Blueprint::firmware(firmware, &vars).memory_mb(512);
    for other in others {
        blueprint = blueprint.disk((*other).clone().only_data());
    }
    blueprint.disk(own.clone()).start().unwrap()
}

/// The console of a machine that comes up.
fn comes_up(mut machine: Machine) -> String {
    let patterns = ["test-is-done", "state-failed", PANIC];
    let (which, line) = machine.console().wait_for_any(&patterns, DEADLINE).unwrap();
    let transcript = machine.console().transcript();
    assert_eq!(which, 0, "{line}\n{transcript}");
    machine.wait_for_end(DEADLINE).unwrap();
    transcript
}

/// The console of a machine that must not come up.
fn stops(mut machine: Machine) -> String {
    let (which, line) = machine
        .console()
        .wait_for_any(&[PANIC, "test-is-done"], DEADLINE)
        .unwrap();
    assert_eq!(which, 0, "{line}\n{}", machine.console().transcript());
    machine.wait_for_end(DEADLINE).unwrap();
    machine.console().transcript()
}

fn names_both(transcript: &str, disks: [&str; 2]) {
    let line = transcript
        .lines()
        .find(|line| line.contains("can't boot"))
        .unwrap_or_default();
    assert!(
        disks.iter().all(|disk| line.contains(&format!("{disk} (pci"))),
        "{disks:?}\n{transcript}"
    );
    let verdict = Console::read(transcript.as_bytes()).unwrap().verdict();
    let Verdict::Stopped { cause, hint, .. } = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(cause, Some(Cause::DiskAmbiguous));
    assert_eq!(hint, Cause::DiskAmbiguous.hint());
}

#[test]
fn a_machine_keeps_its_own_state_whatever_disks_of_tenants_come_first() {
    let own = own(&bench().shipped, "own.qcow2");
    let first = comes_up(boot(&[], &own));
    assert!(first.contains("boots before: 0"), "{first}");
    let (_, plain) = tenant("tenant-plain.raw", false);
    let (_, copied) = tenant("tenant-copied.raw", true);
    let second = comes_up(boot(&[&plain, &copied], &own));
    assert!(!second.contains("written-by-the-tenant"), "{second}");
    assert!(second.contains("/dev/vdc6 on /var"), "{second}");
    assert!(second.contains("boots before: 1"), "{second}");
}

#[test]
fn a_copy_of_the_booted_disk_that_cannot_be_told_from_it_stops_the_machine_by_name() {
    // The UKI alone: the stub says what the boot loader would.
    let own = own(&bench().bare, "bare.qcow2");
    let (_, copied) = tenant("tenant-of-bare.raw", true);
    names_both(&stops(boot(&[&copied], &own)), ["vda", "vdb"]);
}

#[test]
fn without_the_firmwares_word_two_disks_with_the_root_stop_the_machine_by_name() {
    let Bench { small, shipped, .. } = bench();
    let (_, plain) = tenant("tenant-direct.raw", false);
    let line = format!("console=ttyS0 panic=-1 roothash={}", small.root_hash);
    let machine = Blueprint::direct(&small.kernel, &small.initrd, &line).memory_mb(512);
    let machine = machine.disk(plain).disk(own(shipped, "direct.qcow2"));
    names_both(&stops(machine.start().unwrap()), ["vda", "vdb"]);
}
