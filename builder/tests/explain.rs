//! `kimage explain` on consoles as real machines write them: shortened, with the bytes that firmware, kernel and
//! systemd put between.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::process::Output;

use kimage_builder::explain::{Console, Verdict};
use kimage_builder::tool::Tool;
use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase, SCHEMA, Status};
use proptest::prelude::{ProptestConfig, any, proptest};

const FIRMWARE: &str = "\u{1b}[2J\u{1b}[01;01H\u{1b}[=3h\u{1b}[2J\u{1b}[01;01HBdsDxe: loading Boot0001 \"UEFI Misc Device\" from \
    PciRoot(0x0)/Pci(0x2,0x0)\r\nBdsDxe: starting Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0)\r\n";
const KERNEL: &str = "EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path\r\n\
    EFI stub: UEFI Secure Boot is enabled.\r\n\
    [    0.000000] Linux version 6.8.0-151-generic (buildd@lcy02-amd64-009) #151-Ubuntu SMP PREEMPT_DYNAMIC\r\n\
    [    7.969767] Run /init as init process\r\n\
    [    8.677613] device-mapper: verity: sha256 using implementation \"sha256-generic\"\r\n";
const ROOT: &str = "kimage-init: root found 255 ms, modules 115 ms, verity 115 ms, mounts 51 ms, total 538 ms (after 8220 ms \
    of kernel), disk vda\r\n[\u{1b}[0;32m  OK  \u{1b}[0m] Finished \u{1b}[0;1;39mkimage-state.service\u{1b}[0m - Pr\u{2026}e disk and \
    mount its state on /var.\r\r\n";
const ETCD: &str = r#"kimage-status: {"schema":1,"role":"control-plane","node":"cp-1","phase":"etcd","outcome":"running","attempt":1,"durationMilliseconds":0,"totalMilliseconds":18268}
kimage-status: {"schema":1,"role":"control-plane","node":"cp-1","phase":"etcd","outcome":"retrying","attempt":8,"durationMilliseconds":22708,"totalMilliseconds":40977,"cause":"etcd-forming","message":"the local etcd isn't a member yet","hint":"check that all etcd machines run and reach each other on port 2380, and that the record's store answers"}
kimage: etcd failed, trying again (etcd-forming): the local etcd isn't a member yet; hint: check that all etcd machines run
kimage-status: {"schema":1,"role":"control-plane","node":"cp-1","phase":"etcd","outcome":"done","attempt":9,"durationMilliseconds":28196,"totalMilliseconds":46464}
"#;
const SERVING: &str = r#"kimage-status: {"schema":1,"role":"control-plane","node":"cp-1","phase":"in-service","outcome":"done","attempt":1,"durationMilliseconds":0,"totalMilliseconds":95100}
"#;

fn read(text: &str) -> Console {
    Console::read(text.as_bytes()).unwrap()
}

fn explained(text: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    fs::write(&path, text).unwrap();
    Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .arg("explain")
        .arg(path)
        .args(more)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn certificates_that_a_control_plane_does_not_approve_are_told_with_what_a_person_can_do() {
    let remedy = "kubectl --namespace kube-system delete configmap --selector kimage.dev/node=w1";
    let refusal = format!(
        "kimage-agent: approver: not approved csr-x: Node w1 has addresses [10.0.0.7] and asks for a certificate for \
         [10.0.0.8]; if its machine has moved, let it through: {remedy}\r\n"
    );
    let console = read(&[KERNEL, ROOT, ETCD, SERVING, &refusal].concat());
    let said = kimage_builder::explain::report(&console);
    let note = said
        .lines()
        .find(|line| line.starts_with("note: it did not approve csr-x"));
    assert!(note.is_some_and(|note| note.ends_with(remedy)), "{said}");
    assert_eq!(console.verdict(), Verdict::InService);
    let many = refusal.repeat(500);
    let console = read(&[KERNEL, ROOT, ETCD, SERVING, &many].concat());
    assert_eq!(console.boots.last().unwrap().refused.len(), 16);
}

#[test]
fn a_machine_in_service_is_told_with_its_phases() {
    let output = explained(&[FIRMWARE, KERNEL, ROOT, ETCD, SERVING].concat(), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert!(
        said.starts_with("cp-1 (control-plane): in service after 1 min 35 s\n"),
        "{said}"
    );
    assert!(
        said.contains("28.2 s  done, 9 attempts (etcd-forming)\n"),
        "{said}"
    );
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_machine_that_stands_still_is_told_with_cause_and_hint() {
    let cut = ETCD.find("kimage-status: {\"schema\":1,\"role\":\"control-plane\",\"node\":\"cp-1\",\"phase\":\"etcd\",\"outcome\":\"done\"");
    let output = explained(&[FIRMWARE, KERNEL, ROOT, &ETCD[..cut.unwrap()]].concat(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    for line in [
        "stopped at: etcd\n",
        "cause: etcd-forming\n",
        "message: the local etcd isn't a member yet\n",
        "hint: check that all etcd machines run",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(text(&output.stderr).contains("cp-1 is not in service: etcd failed (etcd-forming)"));
}

#[test]
fn json_says_the_same() {
    let output = explained(&[KERNEL, ETCD].concat(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        said["verdict"],
        serde_json::json!({ "state": "underway", "phase": "etcd" })
    );
    assert_eq!(said["boots"][0]["phases"][0]["causes"][0], "etcd-forming");
    assert_eq!(said["boots"][0]["node"], "cp-1");
}

#[test]
fn the_newest_boot_counts() {
    let once = [FIRMWARE, KERNEL, ROOT, ETCD, SERVING].concat();
    let console = read(&[&once, FIRMWARE, KERNEL].concat());
    assert_eq!(console.boots_seen, 2);
    assert!(matches!(console.verdict(), Verdict::NoReport { .. }));
    assert_eq!(console.boots[0].verdict(), Verdict::InService);
    assert_eq!(
        read(&[once.as_str(), &once].concat()).verdict(),
        Verdict::InService
    );
}

#[test]
fn a_report_that_a_kernel_message_fell_into_is_put_together() {
    let line = SERVING.trim_end();
    for at in [30, 60, line.len() - 2] {
        let (head, rest) = line.split_at(at);
        let torn = format!("{head}[   31.204411] usb 1-1: new high-speed USB device\r\n{rest}\r\n");
        let console = read(&torn);
        assert_eq!(
            (console.verdict(), console.damaged_reports),
            (Verdict::InService, 0),
            "{torn}"
        );
    }
    let lost = read(&format!("{}\nLinux\n", &line[..60]));
    assert_eq!((lost.boots_seen, lost.damaged_reports), (0, 1));
}

/// What QEMU's OVMF, Linux 6.8 and stage 0 print.
#[test]
fn a_machine_that_never_comes_to_first_boot_is_told_from_what_stopped_it() {
    for (words, hint) in [
        (
            "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0): Access Denied\r\n",
            "kimage verify DIR",
        ),
        (
            "../src/boot/efi/boot.c:2654@image_start: Error loading \\EFI\\Linux\\kimage_1.efi: Security Policy Violation\r\n",
            "ovmf-vars.fd",
        ),
        (
            "BdsDxe: No bootable option or device was found.\r\n",
            "write disk.raw to it",
        ),
        (
            "[    0.000000] Linux version 6.8.0-151-generic\r\n\
             [    9.381207] device-mapper: verity: 254:1: data block 10 is corrupted\r\n\
             [    9.382410] Kernel panic - not syncing: dm-verity device corrupted\r\n",
            "distrust its disk",
        ),
        (
            "[    0.000000] Linux version 6.8.0-151-generic\r\n\
             [    4.101822] kimage-init: no partition 82db856f after 2 s; looked at: vda (no GUID partition table); can't boot\r\n\
             [    4.103377] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
            "disk is not attached",
        ),
        (
            "[    0.000000] Linux version 6.8.0-151-generic\r\n\
             [    1.204410] kimage-init: disk-ambiguous: vda (pci0000:00/0000:00:02.0/virtio0) and vdb \
             (pci0000:00/0000:00:03.0/virtio1) both have the root; can't boot\r\n\
             [    1.205100] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
            "cause: disk-ambiguous",
        ),
        (
            "[    0.000000] Linux version 6.8.0-151-generic\r\n\
             [    2.100000] Kernel panic - not syncing: Out of memory and no killable processes...\r\n",
            "more memory",
        ),
    ] {
        let output = explained(&format!("{FIRMWARE}{words}"), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stdout).contains(hint), "{output:?}");
        assert!(text(&output.stderr).contains("is not in service: "), "{output:?}");
    }
}

#[test]
fn an_entry_that_was_refused_before_another_one_started_is_past() {
    let refused = "BdsDxe: failed to load Boot0000 \"UEFI PXE\": Access Denied\r\n";
    let console = read(&[FIRMWARE, refused, FIRMWARE, KERNEL, ROOT, ETCD, SERVING].concat());
    assert_eq!((console.boots_seen, console.verdict()), (1, Verdict::InService));
}

#[test]
fn a_file_that_is_not_there_is_wrong_usage() {
    let output = Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(["explain", "/nonexistent/console.log"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(explained("", &[]).status.code(), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_console_makes_it_panic(noise in any::<Vec<u8>>(), cut in 0_usize..2000, more in any::<Vec<u8>>()) {
        let real = [FIRMWARE, KERNEL, ROOT, ETCD, SERVING].concat().into_bytes();
        let bytes = [&noise[..], &real[..cut.min(real.len())], &more, &real].concat();
        let console = Console::read(&bytes[..]).unwrap();
        drop(kimage_builder::explain::report(&console));
    }

    #[test]
    fn every_report_is_found_again(message in any::<String>(), attempt in any::<u32>()) {
        let status = Status {
            schema: SCHEMA,
            role: "worker".to_owned(),
            node: None,
            phase: Phase::Join,
            outcome: Outcome::Failed,
            attempt,
            duration_milliseconds: 1,
            total_milliseconds: 2,
            cause: Some(Cause::CaHashMismatch),
            message: Some(message),
            hint: None,
        };
        let line = format!("{}\r\n", status.console_line().unwrap());
        let verdict = Console::read(line.as_bytes()).unwrap().verdict();
        let Verdict::Failed { phase: Phase::Join, tries_again: false, cause, .. } = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(cause, Some(Cause::CaHashMismatch));
    }
}
