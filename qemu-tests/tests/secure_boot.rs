//! The chain from firmware to kernel: what we sign starts, what anybody changed does not. Oracles: OVMF under QEMU with
//! Secure Boot enforced and a TPM, `sbverify` and `objdump`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "secure_boot/fixtures.rs"]
mod fixtures;
#[path = "secure_boot/machine.rs"]
mod machine;

use std::fs::{self, File};
use std::path::Path;

use fixtures::{INITRD, KERNEL, KEYS, Keys, NOBLE, SystemdBoot, TRIXIE, text, tool};
use kimage_builder::digest::Digest;
use kimage_builder::disk::{self, Content, Disk};
use kimage_builder::partitions::esp::{Esp, EspFile};
use kimage_builder::partitions::uki::{Section, SectionKind, Uki, assemble};
use kimage_builder::release::pcr::Pcr11;
use kimage_builder::sign::{Signer, authenticode, ovmf_vars};
use machine::Machine;

const COMMAND_LINE: &[u8] = b"console=ttyS0 panic=-1 kimage.test=secure-boot";
const OS_RELEASE: &[u8] = b"ID=ubuntu\nPRETTY_NAME=\"kimage test\"\nIMAGE_VERSION=1\n";
const REMOVABLE: &str = "EFI/BOOT/BOOTX64.EFI";

fn uki(systemd: &SystemdBoot) -> Vec<u8> {
    let sections = [
        Section {
            kind: SectionKind::OsRelease,
            data: OS_RELEASE,
        },
        Section {
            kind: SectionKind::CommandLine,
            data: COMMAND_LINE,
        },
        Section {
            kind: SectionKind::KernelRelease,
            data: b"6.8.0-test-generic",
        },
        Section {
            kind: SectionKind::Linux,
            data: &KERNEL,
        },
        Section {
            kind: SectionKind::Initrd,
            data: &INITRD,
        },
    ];
    assemble(&systemd.stub, &sections).unwrap()
}

fn signed(file: &[u8]) -> Vec<u8> {
    authenticode::sign(file, &KEYS.own).unwrap()
}

/// A disk with these files on its boot partition.
fn disk(folder: &Path, files: &[(&str, &[u8])]) -> Disk {
    let (root, verity) = (folder.join("root"), folder.join("verity"));
    fs::write(&root, b"no root here").unwrap();
    fs::write(&verity, b"nor a tree").unwrap();
    let esp: Vec<_> = files.iter().map(|(path, data)| EspFile { path, data }).collect();
    let content = Content {
        esp: &esp,
        epoch: 0x6000_0000,
        root: &root,
        verity: &verity,
        hash_tree_room: 0,
        root_hash: &Digest::of(b""),
    };
    disk::assemble(&content, &folder.join("disk.raw")).unwrap()
}

fn assert_started(console: &str, uki: &[u8]) {
    assert!(console.contains("kimage.test=secure-boot"), "{console}");
    assert!(
        console.to_lowercase().contains("secure boot enabled"),
        "{console}"
    );
    let expected = Pcr11::expected(&Uki::parse(uki).unwrap())
        .unwrap()
        .kernel
        .to_string();
    let line = console
        .lines()
        .find(|line| line.contains("INIT pcr11"))
        .unwrap_or_default();
    assert!(
        line.to_lowercase().contains(&expected),
        "expected {expected}: {line}"
    );
}

#[test]
fn the_boot_manager_starts_our_uki_counts_the_try_and_the_tpm_holds_what_we_foretold() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, uki) = (signed(&NOBLE.manager), signed(&uki(&NOBLE)));
    let files: [(&str, &[u8]); 5] = [
        (REMOVABLE, &manager),
        ("EFI/systemd/systemd-bootx64.efi", &manager),
        ("EFI/Linux/kimage_1+3.efi", &uki),
        ("loader/loader.conf", b"timeout 0\neditor no\n"),
        ("loader/entries.srel", b"type1\n"),
    ];
    let disk = disk(folder.path(), &files);
    let vars = ovmf_vars::enrolled(KEYS.own.identity()).unwrap();
    let console = Machine::start(&disk.path, &vars).wait_for_end();
    assert_started(&console, &uki);
    let file = File::open(&disk.path).unwrap();
    let esp = Esp::read(&file, disk.partitions[0].start, disk.partitions[0].size).unwrap();
    let names: Vec<_> = esp
        .files()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("EFI/Linux"))
        .collect();
    assert_eq!(names, ["EFI/Linux/kimage_1+2-1.efi"]);
}

#[test]
fn the_newer_stub_of_debian_13_starts_too() {
    let folder = tempfile::tempdir().unwrap();
    let uki = signed(&uki(&TRIXIE));
    let disk = disk(folder.path(), &[(REMOVABLE, &uki)]);
    let vars = ovmf_vars::enrolled(KEYS.own.identity()).unwrap();
    assert_started(&Machine::start(&disk.path, &vars).wait_for_end(), &uki);
}

#[test]
fn a_changed_unsigned_or_foreign_uki_is_refused_by_the_firmware() {
    let own = uki(&NOBLE);
    let mut changed = signed(&own);
    let place = changed
        .windows(COMMAND_LINE.len())
        .position(|window| window == COMMAND_LINE)
        .unwrap();
    changed[place] ^= 1;
    let foreign = authenticode::sign(&own, &KEYS.foreign).unwrap();
    let vars = ovmf_vars::enrolled(KEYS.own.identity()).unwrap();
    for (what, file) in [("changed", &changed), ("unsigned", &own), ("foreign", &foreign)] {
        authenticode::verify(file, &KEYS.own.identity().database).unwrap_err();
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path(), &[(REMOVABLE, file)]);
        let console =
            Machine::start(&disk.path, &vars).wait_for(&["Access Denied", "Linux version", "INIT "]);
        assert!(
            console.contains("Access Denied") && !console.contains("Linux version"),
            "{what}: {console}"
        );
    }
}

#[test]
fn firmware_in_setup_mode_takes_our_keys_from_the_boot_partition() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, uki) = (signed(&NOBLE.manager), signed(&uki(&NOBLE)));
    let enrolment = KEYS.own.identity().enrolment.clone().unwrap();
    let files: [(&str, &[u8]); 6] = [
        (REMOVABLE, &manager),
        ("EFI/Linux/kimage_1.efi", &uki),
        ("loader/keys/auto/PK.auth", &enrolment.platform_key),
        ("loader/keys/auto/KEK.auth", &enrolment.key_exchange_key),
        ("loader/keys/auto/db.auth", &enrolment.database),
        ("loader/loader.conf", b"timeout 0\nsecure-boot-enroll if-safe\n"),
    ];
    let disk = disk(folder.path(), &files);
    let blank = fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
    assert_started(&Machine::start(&disk.path, &blank).wait_for_end(), &uki);
}

#[test]
fn sbverify_and_objdump_agree_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("uki.efi");
    let Keys {
        folder: keys,
        own,
        foreign,
    } = &*KEYS;
    let sbverify = |file: &[u8], certificate: &Path| {
        fs::write(&path, file).unwrap();
        let output = tool("sbverify")
            .arg("--cert")
            .arg(certificate)
            .arg(&path)
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("gap in section table"), "{said}");
        output.status.success()
    };
    for systemd in [&*NOBLE, &*TRIXIE] {
        for plain in [uki(systemd), systemd.manager.clone()] {
            let signed = signed(&plain);
            assert!(sbverify(&signed, &keys.join("db.crt")));
            assert!(!sbverify(&signed, &keys.join("KEK.crt")));
            authenticode::verify(&signed, &own.identity().database).unwrap();
            assert!(authenticode::verify(&signed, &foreign.identity().database).is_err());
            let mut changed = signed.clone();
            changed[plain.len() / 2] ^= 1;
            assert!(!sbverify(&changed, &keys.join("db.crt")));
            assert!(authenticode::verify(&changed, &own.identity().database).is_err());
        }
    }
    fs::write(&path, uki(&NOBLE)).unwrap();
    let headers = text(tool("objdump").arg("-h").arg(&path));
    let names: Vec<_> = headers
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|name| name.starts_with('.'))
        .collect();
    let expected = [
        ".text", ".rodata", ".data", ".sbat", ".sdmagic", ".reloc", ".osrel", ".cmdline", ".uname", ".linux",
        ".initrd",
    ];
    assert_eq!(names, expected);
    // What sbsign signed, we accept too.
    let theirs = folder.path().join("theirs.efi");
    let sign = tool("sbsign")
        .arg("--key")
        .arg(keys.join("db.key"))
        .arg("--cert")
        .arg(keys.join("db.crt"));
    sign.arg("--output").arg(&theirs).arg(&path).run().unwrap();
    authenticode::verify(&fs::read(&theirs).unwrap(), &own.identity().database).unwrap();
}
