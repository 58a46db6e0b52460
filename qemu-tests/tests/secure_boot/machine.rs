//! A QEMU machine with OVMF whose flash only firmware in system management mode can write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::fixtures::tool;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// Generous: emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running machine; dropped, it ends.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    qemu: Child,
    tpm: Child,
}

impl Machine {
    /// Starts a machine on `disk` (written to) with a copy of the variable store `vars` and a TPM.
    pub(crate) fn start(disk: &Path, vars: &[u8]) -> Self {
        assert!(
            Path::new(FIRMWARE).exists(),
            "{FIRMWARE} is missing; apt install ovmf"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(folder.path().join("vars.fd"), vars).unwrap();
        fs::create_dir(folder.path().join("tpm")).unwrap();
        let tpm = tool("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--terminate",
                "--tpmstate",
                &format!("dir={}", path("tpm")),
            ])
            .args(["--ctrl", &format!("type=unixio,path={}", path("tpm.sock"))])
            .dies_with_starter();
        let tpm = tpm
            .into_command()
            .spawn()
            .expect("swtpm starts; apt install swtpm");
        let started = Instant::now();
        while !folder.path().join("tpm.sock").exists() {
            assert!(started.elapsed() < PATIENCE, "swtpm does not listen");
            sleep(Duration::from_millis(10));
        }
        let qemu = tool("qemu-system-x86_64")
            .args([
                "-M",
                "q35,smm=on",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-m",
                "1024",
                "-nodefaults",
            ])
            .args([
                "-display",
                "none",
                "-global",
                "driver=cfi.pflash01,property=secure,value=on",
            ])
            .args(["-global", "ICH9-LPC.disable_s3=1"])
            .args([
                "-drive",
                &format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
            ])
            .args([
                "-drive",
                &format!("if=pflash,format=raw,file={}", path("vars.fd")),
            ])
            .args([
                "-drive",
                &format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()),
            ])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args(["-chardev", &format!("socket,id=tpm,path={}", path("tpm.sock"))])
            .args([
                "-tpmdev",
                "emulator,id=tpm,chardev=tpm",
                "-device",
                "tpm-tis,tpmdev=tpm",
            ])
            .args(["-serial", &format!("file:{}", path("serial"))])
            .dies_with_starter();
        let qemu = qemu
            .into_command()
            .spawn()
            .expect("qemu starts; apt install qemu-system-x86");
        Self { folder, qemu, tpm }
    }

    /// What the serial console said so far, without control sequences in the way.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.serial()).unwrap_or_default();
        let mut text = String::new();
        let mut rest = bytes.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match byte {
                0x1b => {
                    // ESC [ parameters letter
                    if rest.next_if_eq(&b'[').is_some() {
                        while rest.next_if(|byte| !byte.is_ascii_alphabetic()).is_some() {}
                    }
                    rest.next();
                }
                b'\r' => {}
                _ => text.push(byte as char),
            }
        }
        text
    }

    /// Waits until the console shows one of `texts`.
    pub(crate) fn wait_for(&mut self, texts: &[&str]) -> String {
        let started = Instant::now();
        loop {
            let console = self.console();
            if texts.iter().any(|text| console.contains(text)) {
                return console;
            }
            let ended = self.qemu.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "qemu ended ({ended:?}) before {texts:?}:\n{console}"
            );
            assert!(started.elapsed() < PATIENCE, "no {texts:?} in:\n{console}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the guest has powered off; returns the console.
    pub(crate) fn wait_for_end(&mut self) -> String {
        let started = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                started.elapsed() < PATIENCE,
                "machine runs on:\n{}",
                self.console()
            );
            sleep(Duration::from_millis(50));
        }
        self.console()
    }

    fn serial(&self) -> PathBuf {
        self.folder.path().join("serial")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.tpm] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
