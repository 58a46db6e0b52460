//! The bench itself: firmware starts, the control socket answers, a machine ends with its value.

use std::time::Duration;

use kimage_qemu_tests::machine::{Blueprint, Disk, Firmware, Format};

const DEADLINE: Duration = Duration::from_secs(180);

#[test]
fn firmware_with_secure_boot_starts_and_resets() {
    let folder = tempfile::tempdir().unwrap();
    let firmware = Firmware::find(true).unwrap();
    let vars = folder.path().join("vars.fd");
    std::fs::copy(&firmware.vars, &vars).unwrap();
    let empty = folder.path().join("empty.raw");
    std::fs::File::create(&empty).unwrap().set_len(64 << 20).unwrap();
    let disk = Disk::of(&empty, Format::Raw);
    let mut machine = Blueprint::firmware(firmware, &vars)
        .memory_mb(512)
        .disk(disk)
        .reboots()
        .start()
        .unwrap();
    machine
        .console()
        .wait_for("BdsDxe: failed to load", DEADLINE)
        .unwrap();
    assert_eq!(machine.status().unwrap(), "running");
    machine.reset().unwrap();
    machine
        .control()
        .unwrap()
        .wait_for_event("RESET", DEADLINE)
        .unwrap();
    machine
        .console()
        .wait_for("BdsDxe: failed to load", DEADLINE)
        .unwrap();
    machine.quit().unwrap();
}

#[test]
fn a_machine_that_can_not_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let error = Blueprint::direct(&absent, &absent, "").start().err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains("-kernel") && text.contains("absent"), "{text}");
}
