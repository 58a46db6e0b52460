//! The bench itself: firmware starts, the control socket answers, a machine ends with its value.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kimage_qemu_tests::clock::Clock;
use kimage_qemu_tests::images::command;
use kimage_qemu_tests::machine::{Blueprint, Disk, Firmware, Format, Machine};
use kimage_qemu_tests::processes::Watched;
use serde_json::json;

#[path = "bench/delay.rs"]
mod delay;

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

/// Set in the process that the test below kills.
const VICTIM: &str = "KIMAGE_TEST_VICTIM";

#[test]
fn a_machine_ends_with_the_process_that_started_it_even_when_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    if std::env::var_os(VICTIM).is_some() {
        // From another thread, which ends: a machine belongs to the process.
        let machine = std::thread::spawn(move || paused(folder.path())).join().unwrap();
        println!("\nmachine {}", machine.process_id());
        loop {
            std::thread::park();
        }
    }
    let name = "a_machine_ends_with_the_process_that_started_it_even_when_that_is_killed";
    let mut victim = command(std::env::current_exe().unwrap());
    victim.args(["--exact", name, "--nocapture"]).env(VICTIM, "1");
    let mut victim = victim.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let id = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("machine ")?.parse().ok());
    let machine = Watched::new(id.expect("the machine starts")).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    machine.wait_for_end(DEADLINE).unwrap();
}

#[test]
fn a_machine_ends_with_a_test_that_panics() {
    let folder = tempfile::tempdir().unwrap();
    let machine = paused(folder.path());
    let watched = Watched::new(machine.process_id()).unwrap();
    let panicked = std::thread::spawn(move || {
        let _machine = machine;
        panic!("on purpose");
    });
    panicked.join().unwrap_err();
    watched.wait_for_end(DEADLINE).unwrap();
}

#[test]
fn the_clock_of_a_machine_goes_as_slowly_as_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::slowed_for_emulation(10).unwrap();
    let mut machine = waiting(folder.path()).clock(clock).start().unwrap();
    let (began, first) = (Instant::now(), second(&mut machine));
    let mut shown = 0;
    while began.elapsed() < Duration::from_secs(4) {
        shown = (second(&mut machine) + 60 - first) % 60;
    }
    // It counts whole seconds.
    let passed = clock.own(began.elapsed()).as_secs();
    assert!(shown.abs_diff(passed) <= 1, "{shown} s instead of {passed} s");
}

/// The second that a machine's real-time clock shows, which goes on while the machine waits.
fn second(machine: &mut Machine) -> u64 {
    let question = json!({"path": "/machine", "property": "rtc-time"});
    let time = machine.control().unwrap().execute("qom-get", question).unwrap();
    time["tm_sec"].as_u64().unwrap()
}

/// A machine that waits before its first instruction.
fn paused(folder: &Path) -> Machine {
    waiting(folder).start().unwrap()
}

fn waiting(folder: &Path) -> Blueprint {
    let firmware = Firmware::find(true).unwrap();
    let vars = folder.join("vars.fd");
    std::fs::copy(&firmware.vars, &vars).unwrap();
    Blueprint::firmware(firmware, &vars)
        .memory_mb(256)
        .arguments(["-S"])
}

#[test]
fn a_machine_that_can_not_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let error = Blueprint::direct(&absent, &absent, "").start().err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains("-kernel") && text.contains("absent"), "{text}");
}
