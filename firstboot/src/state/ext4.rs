//! The ext4 filesystem on the state partition, as far as e2fsprogs leaves something to decide
//! (Documentation/filesystems/ext4/super.rst).

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::host;
use crate::storage::Storage;

const SUPERBLOCK_AT: u64 = 1024;
const MAGIC: u16 = 0xef53;
const CLEAN: u16 = 1;
const ERRORS: u16 = 2;
const INCOMPAT_64BIT: u32 = 0x80;
/// mke2fs leaves out a last block group that is too small; less than this is not worth a call.
const WORTH_GROWING: u64 = 16 << 20;

/// What the superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes of the filesystem.
    pub size: u64,
    /// e2fsck has work to do beyond replaying the journal, which mounting does.
    pub needs_check: bool,
}

impl Superblock {
    /// Reads it from a partition.
    pub(super) fn read(device: &impl Storage) -> Result<Self> {
        let mut bytes = [0; 1024];
        device
            .read_at(&mut bytes, SUPERBLOCK_AT)
            .context("read the superblock")?;
        Self::parse(&bytes)
    }

    /// Reads it from its 1024 bytes.
    pub fn parse(bytes: &[u8; 1024]) -> Result<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        ensure!(u16_at(0x38) == MAGIC, "no ext4 filesystem");
        let shift = u32_at(0x18);
        ensure!(shift <= 6, "ext4 blocks of 2^{} bytes", u64::from(shift) + 10);
        let high = if u32_at(0x60) & INCOMPAT_64BIT != 0 {
            u32_at(0x150)
        } else {
            0
        };
        let blocks = u64::from(high) << 32 | u64::from(u32_at(4));
        let size = blocks
            .checked_mul(1024 << shift)
            .context("an ext4 filesystem beyond any disk")?;
        let state = u16_at(0x3a);
        Ok(Self {
            size,
            needs_check: state & CLEAN == 0 || state & ERRORS != 0,
        })
    }

    /// Whether a partition of `length` bytes has room for more.
    pub fn should_grow_to(&self, length: u64) -> bool {
        length >= self.size.saturating_add(WORTH_GROWING)
    }
}

/// Makes an empty filesystem and returns when it is durable.
pub(super) fn make(device: &Path) -> Result<()> {
    // The journal is zeroed at once, as an old one from another life of the disk could be replayed; 64 MiB keep
    // that short. Discarding a whole cloud disk can take minutes and gains nothing here.
    host::run(
        "mkfs.ext4",
        &["-q", "-F", "-L", "state", "-J", "size=64", "-E", "nodiscard"],
        device,
        &[0],
    )?;
    File::open(device)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("flush {}", device.display()))
}

/// Repairs what can be repaired without a decision. Data is never given up: what needs a person is an error.
pub(super) fn check(device: &Path) -> Result<()> {
    // 1: errors were corrected; 2: and a reboot is due if it was mounted, which it is not.
    host::run("e2fsck", &["-p"], device, &[0, 1, 2, 3]).map(drop)
}

/// Grows the mounted filesystem to its partition's size.
pub(super) fn grow(device: &Path) -> Result<()> {
    host::run("resize2fs", &[], device, &[0]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mkfs_makes_what_we_read_and_e2fsck_accepts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1200 << 20).unwrap();
        make(file.path()).expect("mkfs.ext4 is needed: apt-get install e2fsprogs");
        let read = Superblock::read(file.as_file()).unwrap();
        assert!(!read.needs_check);
        assert_eq!(read.size, 1200 << 20);
        assert!(!read.should_grow_to(read.size) && read.should_grow_to(read.size * 2));
        check(file.path()).unwrap();
    }

    #[test]
    fn a_filesystem_with_errors_is_seen_and_repaired() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(200 << 20).unwrap();
        make(file.path()).unwrap();
        Storage::write_at(file.as_file(), &[(CLEAN | ERRORS) as u8, 0], SUPERBLOCK_AT + 0x3a).unwrap();
        // Metadata checksums make that a damaged superblock to the kernel; what counts here is the flag.
        assert!(Superblock::read(file.as_file()).unwrap().needs_check);
    }

    #[test]
    fn a_partition_without_a_filesystem_is_refused() {
        assert!(Superblock::parse(&[0; 1024]).is_err());
        let mut bytes = [0xff; 1024];
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        assert!(Superblock::parse(&bytes).is_err());
    }
}
