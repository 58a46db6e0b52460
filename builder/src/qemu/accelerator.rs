//! How fast machines can run here.

use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::tool;

/// Exit status of QEMU when the probe's program ran: the value it writes, doubled, plus one (docs of isa-debug-exit).
const RAN: i32 = 0x10 * 2 + 1;
/// KVM that works takes half a second.
const PROBE: Duration = Duration::from_secs(5);
/// Between two looks at a child that is about to end; the standard library has no wait with a deadline.
const POLL: Duration = Duration::from_millis(5);
const DEVICE: &str = "/dev/kvm";

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator, about 20 times slower.
    Tcg,
}

impl Accelerator {
    /// The fastest one that works here: a machine is booted to know.
    ///
    /// # Errors
    /// There is no QEMU, or no temporary file can be written.
    pub fn fastest() -> Result<Self> {
        let works = Path::new(DEVICE).exists() && Self::Kvm.boots().context("try KVM")?;
        Ok(if works { Self::Kvm } else { Self::Tcg })
    }

    /// Whether a machine really runs: a boot sector is to end QEMU with a status of its own. That a KVM device can be
    /// opened, or even a machine be created, proves nothing on nested hosts.
    pub fn boots(self) -> Result<bool> {
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let disk = folder.path().join("boot-sector");
        // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
        let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
        sector.resize(510, 0);
        sector.extend_from_slice(&[0x55, 0xaa]);
        sector.resize(1 << 20, 0);
        std::fs::write(&disk, sector).context("write a boot sector")?;
        let fixed = "-machine pc -m 64 -nodefaults -no-user-config -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
        let drive = format!("if=ide,format=raw,file={}", super::option_value(&disk));
        let tool = tool()?
            .args(self.arguments())
            .args(fixed.split(' '))
            .args(["-drive", &drive]);
        let line = tool.line();
        let mut command = tool.into_command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("start `{line}`"))?;
        Ok(Probe(child).wait(PROBE)? == Some(RAN))
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
    fn the_probe_sees_a_machine_that_runs() {
        assert!(Accelerator::Tcg.boots().unwrap());
    }
}
