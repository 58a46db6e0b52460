//! Numbers and records of squashfs 4.0 on disk: Linux, `fs/squashfs/squashfs_fs.h`. All little endian.

use anyhow::{Result, bail, ensure};

/// `hsqs`, the first four bytes (`include/uapi/linux/magic.h`).
pub(super) const MAGIC: u32 = 0x7371_7368;
/// Bytes of `struct squashfs_super_block`.
pub(super) const SUPERBLOCK_SIZE: usize = 96;
/// Bytes of a metadata block before compression.
pub(super) const METADATA_SIZE: usize = 8192;
/// Marks a metadata block stored as it is.
pub(super) const METADATA_STORED: u16 = 1 << 15;
/// Marks a data block stored as it is; a size of zero is a block of zeros.
pub(super) const DATA_STORED: u32 = 1 << 24;
/// Smallest block that every kernel mounts: one page.
pub(super) const BLOCK_SIZE_MIN: u32 = 4096;
/// Largest block (`SQUASHFS_FILE_MAX_SIZE`).
pub(super) const BLOCK_SIZE_MAX: u32 = 1 << 20;
/// Stands where there is no fragment or no xattr.
pub(super) const NONE_U32: u32 = u32::MAX;
/// Stands where there is no table.
pub(super) const NONE_U64: u64 = u64::MAX;
/// Longest name of a directory entry in bytes, as the VFS has it.
pub(super) const NAME_MAX: usize = 255;
/// Most entries below one directory header.
pub(super) const HEADER_ENTRIES_MAX: usize = 256;
/// What a directory's size counts beyond its listing: `.` and `..`, which are not stored.
pub(super) const DIRECTORY_EXTRA: u32 = 3;
/// `ZSTD_COMPRESSION`.
pub(super) const COMPRESSION_ZSTD: u16 = 6;
/// Superblock flag: files of equal content share their blocks.
pub(super) const FLAG_DUPLICATES: u16 = 1 << 6;
/// Superblock flag: there are no extended attributes.
pub(super) const FLAG_NO_XATTRS: u16 = 1 << 9;
/// Superblock flag: the compressor's options follow the superblock as a metadata block.
pub(super) const FLAG_COMPRESSOR_OPTIONS: u16 = 1 << 10;

/// Inode types; an extended type is the basic one plus 7. Directory entries always name the basic type.
pub(super) mod inode_type {
    pub(in super::super) const DIRECTORY: u16 = 1;
    pub(in super::super) const FILE: u16 = 2;
    pub(in super::super) const SYMLINK: u16 = 3;
    pub(in super::super) const BLOCK_DEVICE: u16 = 4;
    pub(in super::super) const CHARACTER_DEVICE: u16 = 5;
    pub(in super::super) const FIFO: u16 = 6;
    pub(in super::super) const SOCKET: u16 = 7;
    /// From a basic to its extended type.
    pub(in super::super) const EXTENDED: u16 = 7;
}

/// Prefixes of extended attributes; the index is the stored type.
pub(super) const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// The value stands elsewhere; eight bytes of reference are in its place (`SQUASHFS_XATTR_VALUE_OOL`).
pub(super) const XATTR_VALUE_ELSEWHERE: u16 = 256;

/// Where a record stands in a sequence of metadata blocks: byte offset of the compressed block from the start of
/// the table, and offset in the block after decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Reference {
    /// Of the compressed block, from the start of the table.
    pub(super) block: u32,
    /// In the decompressed block, less than [`METADATA_SIZE`].
    pub(super) offset: u16,
}

impl Reference {
    /// As stored: block ‖ 16 bits of offset.
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }

    /// From its stored form; the upper 16 bits must be zero.
    pub(super) fn from_u64(value: u64) -> Result<Self> {
        let reference = Self {
            block: (value >> 16) as u32,
            offset: value as u16,
        };
        ensure!(
            value >> 48 == 0 && usize::from(reference.offset) < METADATA_SIZE,
            "bad reference {value:#x}"
        );
        Ok(reference)
    }
}

/// `struct squashfs_super_block`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) inodes: u32,
    pub(super) mtime: u32,
    pub(super) block_size: u32,
    pub(super) fragments: u32,
    pub(super) compression: u16,
    pub(super) flags: u16,
    pub(super) ids: u16,
    pub(super) root: u64,
    pub(super) bytes_used: u64,
    pub(super) id_table: u64,
    pub(super) xattr_table: u64,
    pub(super) inode_table: u64,
    pub(super) directory_table: u64,
    pub(super) fragment_table: u64,
    pub(super) export_table: u64,
}

impl Superblock {
    /// The 96 bytes at the start of the filesystem.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_SIZE);
        for word in [MAGIC, self.inodes, self.mtime, self.block_size, self.fragments] {
            bytes.extend(word.to_le_bytes());
        }
        let block_log = self.block_size.trailing_zeros() as u16;
        for half in [self.compression, block_log, self.flags, self.ids, 4, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for long in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            bytes.extend(long.to_le_bytes());
        }
        bytes
    }

    /// Reads and checks what can be checked without the rest of the filesystem.
    pub(super) fn decode(bytes: &[u8; SUPERBLOCK_SIZE]) -> Result<Self> {
        let mut fields = Fields::new(bytes);
        ensure!(fields.u32()? == MAGIC, "no squashfs superblock");
        let (inodes, mtime, block_size, fragments) =
            (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let (compression, block_log, flags, ids) =
            (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
        let version = (fields.u16()?, fields.u16()?);
        ensure!(
            version == (4, 0),
            "squashfs version {}.{} is not 4.0",
            version.0,
            version.1
        );
        ensure!(
            block_size.is_power_of_two()
                && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size)
                && block_size.trailing_zeros() == u32::from(block_log),
            "squashfs block size {block_size} (2^{block_log}) is not a power of two from 4 KiB to 1 MiB"
        );
        check_compression(compression)?;
        Ok(Self {
            inodes,
            mtime,
            block_size,
            fragments,
            compression,
            flags,
            ids,
            root: fields.u64()?,
            bytes_used: fields.u64()?,
            id_table: fields.u64()?,
            xattr_table: fields.u64()?,
            inode_table: fields.u64()?,
            directory_table: fields.u64()?,
            fragment_table: fields.u64()?,
            export_table: fields.u64()?,
        })
    }
}

fn check_compression(compression: u16) -> Result<()> {
    let name = match compression {
        COMPRESSION_ZSTD => return Ok(()),
        1 => "gzip",
        2 => "lzma",
        3 => "lzo",
        4 => "xz",
        5 => "lz4",
        _ => bail!("squashfs compression number {compression} is unknown"),
    };
    bail!("squashfs is compressed with {name}, only zstd is supported")
}

/// Takes little-endian fields off a byte string; running out of bytes is an error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            bail!("record ends early")
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            bail!("record ends early")
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            inodes: 1,
            mtime: 2,
            block_size: 1 << 18,
            fragments: 3,
            compression: COMPRESSION_ZSTD,
            flags: FLAG_DUPLICATES,
            ids: 4,
            root: 5,
            bytes_used: 6,
            id_table: 7,
            xattr_table: 8,
            inode_table: 9,
            directory_table: 10,
            fragment_table: 11,
            export_table: NONE_U64,
        }
    }

    fn encoded(change: impl Fn(&mut [u8])) -> [u8; SUPERBLOCK_SIZE] {
        let mut bytes: [u8; SUPERBLOCK_SIZE] = sample().encode().try_into().unwrap();
        change(&mut bytes);
        bytes
    }

    #[test]
    fn a_superblock_comes_back_as_written() {
        assert_eq!(Superblock::decode(&encoded(|_| ())).unwrap(), sample());
    }

    #[test]
    fn foreign_superblocks_are_refused_by_name() {
        let error =
            |change: &dyn Fn(&mut [u8])| Superblock::decode(&encoded(change)).unwrap_err().to_string();
        assert!(error(&|b| b[0] = 0).contains("no squashfs"));
        assert!(error(&|b| b[20] = 4).contains("compressed with xz"));
        assert!(error(&|b| b[28] = 3).contains("3.0"));
        assert!(error(&|b| b[22] = 17).contains("block size"));
        assert!(error(&|b| b[15] = 1).contains("block size"));
    }
}
