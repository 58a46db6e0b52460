//! Device mapper's ioctls (include/uapi/linux/dm-ioctl.h), as far as one read-only device with one target needs them.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`.
const HEADER: usize = 312;
/// `struct dm_target_spec`.
const TARGET: usize = 40;
const READ_ONLY: u32 = 1 << 0;

/// `DM_*_CMD`.
#[derive(Debug, Clone, Copy)]
enum Command {
    DeviceCreate = 3,
    /// Without the suspend flag it resumes, which brings a loaded table to life.
    DeviceSuspend = 6,
    TableLoad = 9,
}

/// Makes a live read-only device of `sectors` 512-byte sectors and returns its major and minor number.
pub(super) fn create(name: &str, sectors: u64, target: &str, arguments: &str) -> Result<(u32, u32)> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL);
    let control = control.with_context(|| format!("open {CONTROL}: is device mapper in the kernel?"))?;
    let call = |command, payload: &[u8]| {
        call(&control, command, name, payload)
            .with_context(|| format!("device mapper, {command:?} of {name}"))
    };
    call(Command::DeviceCreate, &[])?;
    call(Command::TableLoad, &spec(sectors, target, arguments)?)
        .with_context(|| format!("table `0 {sectors} {target} {arguments}`"))?;
    call(Command::DeviceSuspend, &[])
}

/// One `dm_target_spec` and its arguments.
fn spec(sectors: u64, target: &str, arguments: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; TARGET];
    ensure!(target.len() < 16, "target type `{target}` is too long");
    bytes[8..16].copy_from_slice(&sectors.to_ne_bytes());
    bytes[24..24 + target.len()].copy_from_slice(target.as_bytes());
    bytes.extend_from_slice(arguments.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(bytes)
}

fn call(control: &File, command: Command, name: &str, payload: &[u8]) -> Result<(u32, u32)> {
    let mut bytes = vec![0; HEADER];
    let total = u32::try_from(HEADER + payload.len()).context("table too long")?;
    ensure!(name.len() < 128, "name `{name}` is too long");
    let targets = u32::from(!payload.is_empty());
    // Version 4.0.0, then the sizes; a kernel with a later minor version takes it.
    for (at, value) in [
        (0, 4),
        (12, total),
        (16, HEADER as u32),
        (20, targets),
        (28, READ_ONLY),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes[48..48 + name.len()].copy_from_slice(name.as_bytes());
    bytes.extend_from_slice(payload);
    // _IOWR(0xfd, command, struct dm_ioctl)
    let request = (3 << 30) | ((HEADER as libc::c_ulong) << 16) | (0xfd << 8) | command as libc::c_ulong;
    #[expect(unsafe_code, reason = "no crate in use wraps device mapper")]
    // SAFETY: the kernel reads and writes at most `data_size` bytes, which is the buffer's length.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request as _, bytes.as_mut_ptr()) };
    if result == -1 {
        return Err(std::io::Error::last_os_error().into());
    }
    let mut device = [0; 8];
    device.copy_from_slice(&bytes[40..48]);
    let device = u64::from_ne_bytes(device);
    // `huge_encode_dev`: minor in bits 0-7 and 20-31, major in bits 8-19.
    let field = |value: u64| u32::try_from(value).context("device number");
    Ok((
        field((device >> 8) & 0xfff)?,
        field((device & 0xff) | ((device >> 12) & 0xfff00))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_laid_out_as_the_kernel_reads_it() {
        let bytes = spec(8, "verity", "1 a").unwrap();
        assert_eq!(bytes.len(), TARGET + 8);
        assert_eq!(bytes[8], 8);
        assert_eq!(&bytes[24..31], b"verity\0");
        assert_eq!(&bytes[40..], b"1 a\0\0\0\0\0");
        assert!(spec(8, "a-type-of-16-char", "").is_err());
    }
}
