//! QEMU as the machine that boots images: where it and its firmware are, how fast it can run here, and the hardware
//! that an image meets. `kimage run` and the bench of `qemu-tests` describe their machines with it.

mod accelerator;
mod disk;
mod firmware;

use std::path::{Path, PathBuf};

use crate::failure::{ExitCode, Failure};
use crate::tool::Tool;

pub use accelerator::Accelerator;
pub use disk::{Bus, Cache, Disk, Format};
pub use firmware::Firmware;

const PROGRAM: &str = "qemu-system-x86_64";

/// The QEMU of `PATH`.
///
/// # Errors
/// There is none; the hint names the packages that have it.
pub fn program() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file());
    found.ok_or_else(|| {
        Failure::new(ExitCode::Failed, format!("`{PROGRAM}` is not on the PATH")).hint(
            "install QEMU: apt-get install qemu-system-x86 (Debian, Ubuntu), dnf install qemu-system-x86 (Fedora), \
             pacman -S qemu-system-x86 (Arch)",
        )
    })
}

/// A child that runs the QEMU of `PATH`. It does not outlive the thread that starts it.
///
/// # Errors
/// As of [`program`].
pub fn tool() -> Result<Tool, Failure> {
    // TMPDIR: where QEMU puts what a `snapshot` writes.
    Ok(Tool::new(program()?)
        .inherit(&["PATH", "TMPDIR"])
        .dies_with_starter())
}

/// What a machine is made of. It has no other devices than these and those that more arguments add.
#[derive(Debug, Clone, Copy)]
pub struct Hardware<'a> {
    /// What executes its code.
    pub accelerator: Accelerator,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
    /// UEFI firmware and the machine's own variable store, which it writes to.
    pub firmware: Option<(&'a Firmware, &'a Path)>,
    /// Disks; the first one that is not [`Disk::only_data`] is booted from.
    pub disks: &'a [Disk],
}

impl Hardware<'_> {
    /// QEMU's arguments for it.
    pub fn arguments(&self) -> Vec<String> {
        let secure = self.firmware.is_some_and(|(firmware, _)| firmware.secure);
        let mut words: Vec<String> = Vec::new();
        let mut pair = |option: &str, value: String| words.extend([option.to_owned(), value]);
        // The firmware keeps its keys from the system in system management mode.
        pair("-machine", if secure { "q35,smm=on" } else { "q35" }.into());
        for word in self.accelerator.arguments().chunks_exact(2) {
            pair(word[0], word[1].into());
        }
        pair("-m", self.memory_mb.to_string());
        pair("-smp", self.cpus.to_string());
        if secure {
            pair("-global", "driver=cfi.pflash01,property=secure,value=on".into());
            pair("-global", "ICH9-LPC.disable_s3=1".into());
        }
        if let Some((firmware, vars)) = self.firmware {
            let (code, format) = (option_value(&firmware.code), firmware.code_format().name());
            let flash = "if=pflash";
            pair(
                "-drive",
                format!("{flash},format={format},unit=0,readonly=on,file={code}"),
            );
            pair(
                "-drive",
                format!("{flash},format=raw,unit=1,file={}", option_value(vars)),
            );
        }
        for (number, disk) in self.disks.iter().enumerate() {
            words.extend(disk.arguments(number));
        }
        let fixed = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-device",
            "virtio-rng-pci",
        ];
        words.extend(fixed.map(str::to_owned));
        words
    }
}

/// QEMU's arguments that add `more` to the command line of a kernel started by systemd's stub, and what the accelerator
/// wants there. Empty if there is nothing to add: with an empty string systemd-boot 255 halts. Only the first string
/// of its kind counts, so a machine gets these arguments once. Source: systemd-stub(7), SMBIOS Type 11 Strings.
pub fn kernel_arguments(accelerator: Accelerator, more: &str) -> Vec<String> {
    let words: Vec<&str> = [accelerator.kernel_arguments(), more]
        .into_iter()
        .filter(|words| !words.is_empty())
        .collect();
    if words.is_empty() {
        return Vec::new();
    }
    let value = words.join(" ").replace(',', ",,");
    let string = format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={value}");
    vec!["-smbios".to_owned(), string]
}

/// A path inside an option that commas divide.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_divides_nothing() {
        let disk = Disk::of(Path::new("/a,readonly=on/d"), Format::Raw);
        let words = disk.arguments(0);
        assert!(
            words[1].contains("file=/a,,readonly=on/d,format=raw"),
            "{words:?}"
        );
    }

    #[test]
    fn a_kernel_gets_one_string_or_none() {
        assert!(kernel_arguments(Accelerator::Kvm, "").is_empty());
        let words = kernel_arguments(Accelerator::Tcg, "console=ttyS0,115200");
        let easier = Accelerator::Tcg.kernel_arguments();
        assert_eq!(
            words[1],
            format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={easier} console=ttyS0,,115200")
        );
    }

    #[test]
    fn secure_boot_needs_system_management_mode() {
        let firmware = Firmware {
            code: "/code.fd".into(),
            vars: "/vars.fd".into(),
            secure: true,
        };
        let mut hardware = Hardware {
            accelerator: Accelerator::Tcg,
            memory_mb: 512,
            cpus: 1,
            firmware: Some((&firmware, Path::new("/own.fd"))),
            disks: &[],
        };
        let line = hardware.arguments().join(" ");
        assert!(
            line.contains("q35,smm=on") && line.contains("property=secure,value=on"),
            "{line}"
        );
        assert!(
            line.contains("readonly=on,file=/code.fd") && line.contains("unit=1,file=/own.fd"),
            "{line}"
        );
        hardware.firmware = None;
        assert!(!hardware.arguments().join(" ").contains("pflash"));
    }
}
