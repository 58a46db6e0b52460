//! How fast machines can run here.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::machine::run_for;

/// Exit status of QEMU when the probe's program ran: the value it writes, doubled, plus one (docs of isa-debug-exit).
const RAN: i32 = 0x10 * 2 + 1;
/// KVM that works takes half a second.
const PROBE: Duration = Duration::from_secs(5);
/// Overrides the probe: `kvm` or `tcg`.
const VARIABLE: &str = "KIMAGE_ACCELERATOR";

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator, about 20 times slower.
    Tcg,
}

impl Accelerator {
    /// The fastest one that works here. Looked for once per process.
    pub fn probe() -> Result<Self> {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        let found = match std::env::var(VARIABLE).as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            Ok(other) => bail!("{VARIABLE}={other}: `kvm` or `tcg` expected"),
            Err(_) if boots(Self::Kvm).context("try KVM")? => Self::Kvm,
            Err(_) => Self::Tcg,
        };
        Ok(*FOUND.get_or_init(|| found))
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// Whether a machine really runs: a boot sector is to end QEMU with a status of its own. That a KVM device can be
/// opened, or even a machine be created, proves nothing on nested hosts.
fn boots(accelerator: Accelerator) -> Result<bool> {
    if accelerator == Accelerator::Kvm && !PathBuf::from("/dev/kvm").exists() {
        return Ok(false);
    }
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let disk = folder.path().join("boot-sector");
    // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt
    let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    std::fs::write(&disk, sector).context("write a boot sector")?;
    let mut arguments: Vec<String> = accelerator.arguments().map(str::to_owned).to_vec();
    let fixed = "-machine pc -m 64 -nodefaults -no-user-config -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
    arguments.extend(fixed.split(' ').map(str::to_owned));
    arguments.extend([
        "-drive".to_owned(),
        format!("if=ide,format=raw,file={}", disk.display()),
    ]);
    Ok(run_for(&arguments, PROBE)? == Some(RAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_sees_a_machine_that_runs() {
        assert!(boots(Accelerator::Tcg).unwrap());
    }
}
