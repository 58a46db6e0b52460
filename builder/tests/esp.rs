//! The EFI system partition against dosfstools and mtools.

use std::ffi::OsStr;
use std::fs::File;
use std::process::Command;

use kimage_builder::partitions::esp::{Options, write};

#[expect(clippy::disallowed_methods, reason = "oracles are other people's programs")]
fn succeeds(program: &str, arguments: &[&OsStr]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: run `qemu-tests/run-all fast` once"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}");
    output.stdout
}

#[test]
fn fsck_finds_nothing_to_mend_and_mtools_reads_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("esp");
    let kernel: Vec<u8> = (0..20_000_001u32).map(|n| (n * 31 >> 3) as u8).collect();
    let many: Vec<(String, Vec<u8>)> = (0..150).map(|n| (format!("/many/a file with a long name {n}.txt"), vec![n as u8; n])).collect();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("/EFI/BOOT/BOOTX64.EFI", b"loader"),
        ("/EFI/systemd/systemd-bootx64.efi", b"loader"),
        ("/EFI/Linux/kimage_20261120-0123abcd+3.efi", &kernel),
        ("/loader/loader.conf", b"timeout 0\n"),
        ("/loader/entries.srel", b"type1\n"),
    ];
    files.extend(many.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())));
    let size = 256 << 20;
    let mut out = File::create(&path).unwrap();
    out.set_len(size).unwrap();
    write(&mut out, &Options { size, volume_id: 0x1234_5678, epoch: 1_795_161_600 }, &files).unwrap();

    let image = path.as_os_str();
    let report = String::from_utf8(succeeds("fsck.vfat", &["-n".as_ref(), "-v".as_ref(), image])).unwrap();
    assert!(report.contains("32 bit") && !report.contains("differ"), "{report}");
    for (path, bytes) in &files {
        let read = succeeds("mtype", &["-i".as_ref(), image, format!("::{path}").as_ref()]);
        assert!(read == *bytes, "{path}");
    }
}
