//! Disks and partitions as bytes at places, and the few things that only the kernel can do with them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// A disk, a partition or, in tests, something that fails on purpose.
pub trait Storage {
    /// Bytes in all.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buffer` with the bytes from `offset` on.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes `bytes` at `offset`. They may be lost in a power cut, wholly or in part, until [`Storage::sync`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written is durable.
    fn sync(&self) -> io::Result<()>;
}

impl Storage for File {
    fn size(&self) -> io::Result<u64> {
        // A block device's metadata says 0; its end says the size. The position is not used by anything else here.
        rustix::fs::seek(self, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// A change to the kernel's list of a disk's partitions. It works while other partitions of the disk are in use,
/// which re-reading the table does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionChange {
    /// A partition appears.
    Add,
    /// A partition has a new length.
    Resize,
}

/// Tells the kernel about partition `number` of `disk`, in bytes (`BLKPG`, include/uapi/linux/blkpg.h).
pub fn tell_kernel(
    disk: &File,
    change: PartitionChange,
    number: u32,
    start: u64,
    length: u64,
) -> io::Result<()> {
    const BLKPG: libc::c_ulong = 0x1269;

    #[repr(C)]
    struct Argument {
        operation: i32,
        flags: i32,
        length: i32,
        data: *mut Data,
    }
    #[repr(C)]
    struct Data {
        start: i64,
        length: i64,
        number: i32,
        device_name: [u8; 64],
        volume_name: [u8; 64],
    }
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut data = Data {
        start: i64::try_from(start).map_err(too_large)?,
        length: i64::try_from(length).map_err(too_large)?,
        number: i32::try_from(number).map_err(too_large)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let operation = match change {
        PartitionChange::Add => 1,
        PartitionChange::Resize => 3,
    };
    let argument = Argument {
        operation,
        flags: 0,
        length: size_of::<Data>() as i32,
        data: &raw mut data,
    };
    #[expect(unsafe_code, reason = "no crate wraps BLKPG")]
    // SAFETY: both structures have the kernel's layout and live through the call, which keeps no pointer.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const argument) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
