//! The images boot: the disk that ships, under enforced Secure Boot, to `multi-user.target`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what these tests need and do not find ends them; what a boot took is worth a line"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kimage_builder::release::manifest::Manifest;
use kimage_qemu_tests::images::{command, copy_workspace, finish, keys, kimage, release};
use kimage_qemu_tests::machine::{Blueprint, Bus, Cache, Disk, Firmware, Format, Machine};
use kimage_qemu_tests::processes::Watched;
use kimage_roles::slot::Slot;

/// Generous: emulated, on two cores that also compile, a boot takes a minute or two.
const DEADLINE: Duration = Duration::from_secs(420);
/// Disk of a machine: larger than the image, so that the state partition has room.
const DISK: u64 = 6 << 30;
const SELF_TEST: &str = "systemd.wants=kimage-selftest.service";
const PANIC: &str = "Kernel panic";
/// What systemd-boot and the EFI stub say when they stop the machine.
const HALT: &str = ", halting.";
/// What the firmware says when it finds nothing to start.
const NO_DISK: &str = "No bootable option or device was found";
/// What a shell answers with 42, so that the answer is not in the echo of the question.
const QUESTION: &str = "\necho shell-says-$((40+2))\n";
const ANSWER: &str = "shell-says-42";
/// More than this in stage 0 is worth a word; a busy host makes it so, too.
const STAGE_0: u128 = 500;

/// A machine with Secure Boot on that boots `disk` with the variable store of `release`; `more` goes to the kernel's
/// command line the way a hypervisor may add to it.
fn boot(release: &Path, disk: Disk, folder: &Path, more: &str) -> Machine {
    blueprint(release, disk, folder, more).start().unwrap()
}

fn blueprint(release: &Path, disk: Disk, folder: &Path, more: &str) -> Blueprint {
    let vars = folder.join("vars.fd");
    fs::copy(release.join("ovmf-vars.fd"), &vars).unwrap();
    Blueprint::firmware(Firmware::find(true).unwrap(), &vars)
        .memory_mb(2048)
        .disk(disk)
        .arguments(["-nic", "user,model=virtio-net-pci"])
        .kernel_arguments(more)
}

/// A copy-on-write disk over the shipped qcow2.
fn overlay(release: &Path, folder: &Path) -> Disk {
    Disk::overlay(
        &release.join("disk.qcow2"),
        Format::Qcow2,
        &folder.join("disk.qcow2"),
        Some(DISK),
    )
    .unwrap()
}

fn self_test_passes(machine: &mut Machine) -> String {
    let (which, line) = machine
        .console()
        .wait_for_any(
            &["passed, 0 failed", "kimage-selftest: FAILED", PANIC, HALT],
            DEADLINE,
        )
        .unwrap();
    let transcript = machine.console().transcript();
    assert_eq!(which, 0, "{line}\n{transcript}");
    transcript
}

fn boots_and_keeps_its_promises(image: &str, role: &str) {
    let release = release(image, role).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut machine = boot(
        &release,
        overlay(&release, folder.path()),
        folder.path(),
        SELF_TEST,
    );
    machine.console().wait_for("Multi-User System", DEADLINE).unwrap();
    // The self-test that follows takes seconds: a shell would answer before its end.
    machine.console().type_text(QUESTION).unwrap();
    let transcript = self_test_passes(&mut machine);
    println!("{image} {role}: {}", phases(&mut machine));
    for line in transcript.lines().filter(|line| line.contains("kimage-")) {
        println!("    {}", line.trim());
    }
    machine.quit().unwrap();
    let manifest = Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap();
    assert!(transcript.contains("Secure boot enabled"), "{transcript}");
    assert!(
        transcript.contains(&format!("roothash={}", manifest.root.hash)),
        "{transcript}"
    );
    for name in [
        "etcd",
        "kubernetes-control-plane",
        "kubernetes-worker",
        "crictl",
        "flannel",
        "containerd",
    ] {
        let Some(component) = manifest
            .components
            .iter()
            .find(|component| component.name == name)
        else {
            continue;
        };
        let version = component.version.trim_start_matches('v');
        let shown = transcript
            .lines()
            .any(|line| line.contains("kimage-selftest: ok") && line.contains(version));
        assert!(shown, "{name} {version}\n{transcript}");
    }
    assert!(
        !transcript.contains("login:") && !transcript.contains(ANSWER),
        "a login on a console of a release image\n{transcript}"
    );
    assert!(manifest.debug.is_empty());
}

/// How long each phase of the boot took, by the time at which its words came.
fn phases(machine: &mut Machine) -> String {
    let start = machine.switched_on();
    let console = machine.console();
    let stage0 = console.transcript();
    let stage0 = stage0
        .lines()
        .find(|line| line.contains("kimage-init: root found"))
        .unwrap();
    let number = |before: &str, after: &str| -> u128 {
        let rest = stage0.split(before).nth(1).unwrap();
        rest.split(after).next().unwrap().parse().unwrap()
    };
    // What the guest's own clock says: the console has no line when stage 0 begins.
    let (kernel, took) = (number("(after ", " ms of kernel"), number("total ", " ms"));
    let at = |pattern: &str| (console.time_of(pattern).unwrap() - start).as_millis();
    let (handed_over, up) = (at("kimage-init: root found"), at("Multi-User System"));
    let firmware = handed_over.saturating_sub(kernel + took);
    let remark = if took > STAGE_0 {
        " (slow: is the host busy?)"
    } else {
        ""
    };
    format!(
        "firmware and boot loader {firmware} ms, kernel {kernel} ms, stage 0 {took} ms{remark}, systemd to \
         multi-user {} ms, in all {up} ms; {}",
        up - handed_over,
        stage0.trim()
    )
}

#[test]
fn a_control_plane_reaches_multi_user_with_no_failed_unit_and_runs_what_is_locked() {
    boots_and_keeps_its_promises("ubuntu-24.04", "control-plane");
}

#[test]
fn an_etcd_machine_reaches_multi_user_with_no_failed_unit_and_runs_what_is_locked() {
    boots_and_keeps_its_promises("ubuntu-24.04", "etcd");
}

#[test]
fn a_worker_reaches_multi_user_with_no_failed_unit_and_runs_what_is_locked() {
    boots_and_keeps_its_promises("ubuntu-24.04", "worker");
}

#[test]
fn a_worker_on_debian_reaches_multi_user_with_no_failed_unit_and_runs_what_is_locked() {
    boots_and_keeps_its_promises("debian-13", "worker");
}

#[test]
fn state_is_made_on_a_larger_disk_and_survives_a_power_cut_and_a_reboot() {
    let release = release("ubuntu-24.04", "etcd").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = || overlay_of(folder.path());
    Disk::overlay(
        &release.join("disk.qcow2"),
        Format::Qcow2,
        &folder.path().join("disk.qcow2"),
        Some(DISK),
    )
    .unwrap();
    let mut machine = boot(&release, disk(), folder.path(), SELF_TEST);
    let first = self_test_passes(&mut machine);
    assert!(
        first.contains("is made for state") && first.contains("self-test 1 on this state"),
        "{first}"
    );
    let manifest = Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap();
    let slot = Slot::new(manifest.root.size, None);
    for (name, size) in [("root-b", slot.root), ("root-b-verity", slot.hashes)] {
        let said = format!("is made for {name}, {} MiB", size >> 20);
        assert!(first.contains(&said), "{said}\n{first}");
    }
    let grown = format!("partition 3 grows to {} MiB", slot.root >> 20);
    assert!(first.contains(&grown), "{grown}\n{first}");
    machine.cut_power();
    let mut machine = boot(&release, disk(), folder.path(), SELF_TEST);
    let second = self_test_passes(&mut machine);
    machine.quit().unwrap();
    assert!(
        !second.contains("is made for state") && second.contains("self-test 2 on this state"),
        "{second}"
    );
}

/// The disk of an earlier machine; flushes reach the file, because the power will be cut.
fn overlay_of(folder: &Path) -> Disk {
    Disk::of(&folder.join("disk.qcow2"), Format::Qcow2).cache(Cache::Writeback)
}

#[test]
fn one_image_boots_on_the_disks_of_every_hypervisor() {
    let release = release("ubuntu-24.04", "etcd").unwrap();
    let uki = release.join("kernel.efi").display().to_string();
    // No common build of OVMF drives VMware's controller, as VMware's firmware does: there the firmware gets the UKI
    // that ships from QEMU, checks its signature all the same, and the rest comes from the disk.
    let from_disk: &[&str] = &[];
    let buses = [
        (Bus::Nvme, from_disk),
        (Bus::VirtioScsi, from_disk),
        (Bus::Ahci, from_disk),
        (Bus::Pvscsi, &["-kernel", &uki]),
    ];
    for (bus, arguments) in buses {
        let folder = tempfile::tempdir().unwrap();
        let disk = overlay(&release, folder.path()).bus(bus);
        let machine = blueprint(&release, disk, folder.path(), "");
        let mut machine = machine.arguments(arguments.iter().copied()).start().unwrap();
        let (which, line) = machine
            .console()
            .wait_for_any(&["kimage-init: root found", PANIC, HALT, NO_DISK], DEADLINE)
            .unwrap();
        assert_eq!(which, 0, "{bus:?}: {line}");
        println!("{bus:?}: {}", line.trim());
        machine.quit().unwrap();
    }
}

/// A private raw copy of the disk with `change` made to it.
fn changed_disk(release: &Path, folder: &Path, change: impl FnOnce(&File, &Manifest)) -> Disk {
    let path = folder.join("disk.raw");
    let manifest = Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap();
    let tool = command("cp")
        .arg("--sparse=always")
        .arg(release.join("disk.raw"))
        .arg(&path)
        .status();
    assert!(tool.unwrap().success());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len(DISK).unwrap();
    change(&file, &manifest);
    Disk::of(&path, Format::Raw)
}

fn flip(file: &File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn offset(manifest: &Manifest, name: &str) -> u64 {
    manifest
        .partitions
        .iter()
        .find(|partition| partition.name == name)
        .unwrap()
        .offset
}

#[test]
fn one_flipped_bit_in_the_root_that_is_read_stops_the_machine() {
    let release = release("ubuntu-24.04", "etcd").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = changed_disk(&release, folder.path(), |file, manifest| {
        flip(file, offset(manifest, "root-a") + 40);
    });
    let mut machine = boot(&release, disk, folder.path(), "");
    let patterns = ["dm-verity device corrupted", "multi-user.target", HALT];
    let (which, line) = machine.console().wait_for_any(&patterns, DEADLINE).unwrap();
    assert_eq!(which, 0, "{line}");
    assert!(line.contains(PANIC), "{line}");
    // Nobody has to press a button: `panic=` restarts the machine, which here is its end. systemd-boot counts the try.
    let control = machine.control().unwrap();
    let event = control.wait_for_event("SHUTDOWN", DEADLINE).unwrap();
    assert_eq!(event["data"]["reason"], "guest-reset", "{event}");
    machine.wait_for_end(DEADLINE).unwrap();
}

/// Where the UKI's bytes are on the disk: the ESP writer lays files out in one piece.
fn uki_on_disk(file: &File, manifest: &Manifest, uki: &[u8]) -> u64 {
    let start = offset(manifest, "esp");
    let mut esp = vec![0; 96 << 20];
    file.read_exact_at(&mut esp, start).unwrap();
    let head = &uki[..4096];
    let at = (0..esp.len() - head.len())
        .step_by(512)
        .find(|at| esp[*at..].starts_with(head));
    start + at.expect("the UKI lies in the ESP") as u64
}

fn does_not_start(release: &Path, what: &str, change: impl FnOnce(&File, u64)) {
    let folder = tempfile::tempdir().unwrap();
    let uki = fs::read(release.join("kernel.efi")).unwrap();
    let disk = changed_disk(release, folder.path(), |file, manifest| {
        change(file, uki_on_disk(file, manifest, &uki))
    });
    let mut machine = boot(release, disk, folder.path(), "");
    let refused = ["Access Denied", "Security Policy Violation", "Security Violation"];
    let patterns = [&refused[..], &["EFI stub", "Linux version", HALT]].concat();
    let (which, line) = machine.console().wait_for_any(&patterns, DEADLINE).unwrap();
    assert!(which < refused.len(), "{what}: the kernel started: {line}");
}

#[test]
fn a_changed_unsigned_or_foreign_signed_uki_does_not_start() {
    let release = release("ubuntu-24.04", "etcd").unwrap();
    let uki = fs::read(release.join("kernel.efi")).unwrap();
    let place = uki.windows(9).position(|window| window == b"roothash=").unwrap() as u64;
    does_not_start(&release, "changed command line", |file, at| {
        flip(file, at + place + 20)
    });

    // The pointer to the signature is 8 bytes in the PE header: without it the file is as if nobody had signed it.
    let header = u64::from(u32::from_le_bytes(uki[0x3c..0x40].try_into().unwrap()));
    does_not_start(&release, "unsigned", |file, at| {
        file.write_all_at(&[0; 8], at + header + 24 + 144).unwrap()
    });

    let keys = tempfile::tempdir().unwrap();
    let folder = keys.path().join("foreign");
    kimage_builder::sign::keys::create(&folder).unwrap();
    let foreign = kimage_builder::sign::keys::FileSigner::load(&folder).unwrap();
    let stripped = kimage_builder::sign::authenticode::strip(&uki).unwrap();
    let signed = kimage_builder::sign::authenticode::sign(&stripped, &foreign).unwrap();
    // Certificates differ in length by some bytes at most; the ESP's cluster has room or the tail is padding.
    assert!(
        signed.len().div_ceil(2048) == uki.len().div_ceil(2048),
        "{} {}",
        signed.len(),
        uki.len()
    );
    does_not_start(&release, "signed by somebody else", |file, at| {
        file.write_all_at(&signed, at).unwrap()
    });
}

/// The release of an image whose definition asks for a login on the serial port.
fn debug_release(folder: &Path) -> PathBuf {
    copy_workspace(folder).unwrap();
    let path = folder.join("images/ubuntu-24.04/image.toml");
    let definition = fs::read_to_string(&path).unwrap() + "\n[debug]\nserial-login = true\n";
    fs::write(&path, definition).unwrap();
    let mut build = command(kimage().unwrap());
    build
        .args(["build", "--role", "etcd", "--output", "out"])
        .arg("--keys");
    finish(build.arg(keys().unwrap()).current_dir(folder)).unwrap();
    folder.join("out/etcd")
}

#[test]
fn an_image_that_asks_for_a_serial_login_has_a_shell_there_and_its_manifest_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let release = debug_release(folder.path());
    let manifest = Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest.debug, ["serial-login"]);
    let mut machine = boot(&release, overlay(&release, folder.path()), folder.path(), "");
    machine
        .console()
        .wait_for_prompt("# ", &[PANIC, HALT], DEADLINE)
        .unwrap();
    machine.console().type_text(QUESTION).unwrap();
    machine.console().wait_for(ANSWER, DEADLINE).unwrap();
    machine.quit().unwrap();
}

#[test]
fn a_killed_kimage_run_leaves_no_machine_behind() {
    let release = release("ubuntu-24.04", "etcd").unwrap();
    let mut run = command(kimage().unwrap());
    run.arg("run").arg(&release).stdout(Stdio::piped());
    let mut run = run.spawn().unwrap();
    // The firmware's first words: QEMU runs.
    let mut first = [0];
    run.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let machines = Watched::children_of(run.id()).unwrap();
    assert_eq!(machines.len(), 1);
    run.kill().unwrap();
    run.wait().unwrap();
    for machine in machines {
        machine.wait_for_end(DEADLINE).unwrap();
    }
}
