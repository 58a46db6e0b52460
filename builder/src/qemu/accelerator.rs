//! How fast machines can run here.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Firmware, Hardware, tool};

/// Exit status of QEMU when the probe's program ran: the value it writes, doubled, plus one (docs of isa-debug-exit).
const RAN: i32 = 0x10 * 2 + 1;
/// KVM that works takes half a second.
const SECTOR: Duration = Duration::from_secs(5);
/// KVM that works takes two seconds on an idle host.
const FIRMWARE: Duration = Duration::from_secs(20);
/// Between two looks at a child that is about to end; the standard library has no wait with a deadline.
const POLL: Duration = Duration::from_millis(5);
const DEVICE: &str = "/dev/kvm";
/// For a translator. Before version 8 QEMU translates code anew for each address that it is mapped at, so libraries had
/// better lie at the same place in all processes: half as much to translate, a quarter of the time until
/// `multi-user.target`. A timer of the processor costs it a walk through its own main loop; without high resolution there
/// are fewer of them. What guards a real processor's secrets only costs time here. That its first timer ticks a kernel
/// takes for granted: it counts ticks against the time stamp counter, which goes on while a busy host keeps the translator
/// waiting, and would panic. Nor is that counter to be trusted: a kernel that changes its mind about it rewrites code that
/// all processors run whenever they wake, and the translator has been seen to run what stood there for a moment.
const EASIER: &str = "norandmaps highres=off tsc=unstable no_timer_check mitigations=off randomize_kstack_offset=off init_on_alloc=0 nowatchdog";

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator, about 20 times slower.
    Tcg,
}

impl Accelerator {
    /// What makes a kernel easier to run (Documentation/admin-guide/kernel-parameters.txt).
    pub(super) fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => EASIER,
        }
    }

    /// The fastest one that works here: a machine is booted to know.
    ///
    /// # Errors
    /// There is no QEMU, or no temporary file can be written.
    pub fn fastest() -> Result<Self> {
        let works = Path::new(DEVICE).exists() && Self::Kvm.boots().context("try KVM")?;
        Ok(if works { Self::Kvm } else { Self::Tcg })
    }

    /// Whether a machine really runs: one with the hardware that images meet is started, and its firmware must come to
    /// where it talks. That a KVM device can be opened, or even a boot sector runs, proves nothing on nested hosts: some
    /// have no system management mode, some stop at an instruction of the firmware. Where no firmware is installed, a
    /// boot sector must do.
    pub fn boots(self) -> Result<bool> {
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        match Firmware::find(true) {
            Ok(firmware) => self.runs_firmware(&firmware, folder.path(), FIRMWARE),
            Err(_) => self.runs_boot_sector(folder.path()),
        }
    }

    fn runs_firmware(self, firmware: &Firmware, folder: &Path, deadline: Duration) -> Result<bool> {
        let vars = folder.join("vars");
        std::fs::copy(&firmware.vars, &vars).with_context(|| format!("copy {}", firmware.vars.display()))?;
        let hardware = Hardware {
            accelerator: self,
            memory_mb: 128,
            cpus: 1,
            firmware: Some((firmware, &vars)),
            disks: &[],
        };
        let mut arguments = hardware.arguments();
        arguments.extend(["-no-reboot", "-serial", "stdio"].map(str::to_owned));
        let mut probe = Probe::start(&arguments)?;
        let mut serial = probe.0.stdout.take().context("no serial port")?;
        let (said, heard) = mpsc::channel();
        // Ends with QEMU at the latest.
        thread::spawn(move || {
            let byte = serial.read_exact(&mut [0]);
            let _ = said.send(byte.is_ok());
        });
        Ok(heard.recv_timeout(deadline).unwrap_or(false))
    }

    /// The sector is to end QEMU with a status of its own.
    fn runs_boot_sector(self, folder: &Path) -> Result<bool> {
        let disk = folder.join("boot-sector");
        // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
        let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
        sector.resize(510, 0);
        sector.extend_from_slice(&[0x55, 0xaa]);
        sector.resize(1 << 20, 0);
        std::fs::write(&disk, sector).context("write a boot sector")?;
        let fixed = "-machine pc -m 64 -nodefaults -no-user-config -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
        let drive = format!("if=ide,format=raw,file={}", super::option_value(&disk));
        let words = self.arguments().into_iter().chain(fixed.split(' '));
        let mut arguments: Vec<String> = words.map(str::to_owned).collect();
        arguments.extend(["-drive".to_owned(), drive]);
        Ok(Probe::start(&arguments)?.wait(SECTOR)? == Some(RAN))
    }

    /// QEMU's arguments for it: two options, each with its value.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// A QEMU that ends with the value.
struct Probe(Child);

impl Probe {
    fn start(arguments: &[String]) -> Result<Self> {
        let tool = tool()?.args(arguments);
        let line = tool.line();
        let mut command = tool.into_command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("start `{line}`"))?;
        Ok(Self(child))
    }

    /// The exit status, or `None` when it still runs after `deadline`.
    fn wait(mut self, deadline: Duration) -> Result<Option<i32>> {
        let end = Instant::now() + deadline;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().context("wait for QEMU")? {
                return Ok(status.code());
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_sees_a_boot_sector_that_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Accelerator::Tcg.runs_boot_sector(folder.path()).unwrap());
    }

    #[test]
    fn the_probe_sees_firmware_that_talks_and_a_machine_that_does_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let mut firmware = Firmware::find(true).unwrap();
        let patience = Duration::from_secs(180);
        assert!(
            Accelerator::Tcg
                .runs_firmware(&firmware, folder.path(), patience)
                .unwrap()
        );
        firmware.code = folder.path().join("missing");
        assert!(
            !Accelerator::Tcg
                .runs_firmware(&firmware, folder.path(), patience)
                .unwrap()
        );
    }
}
