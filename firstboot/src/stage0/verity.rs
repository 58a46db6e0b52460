//! dm-verity's superblock and target line (format 1; cryptsetup's `verity.h`,
//! Documentation/admin-guide/device-mapper/verity.rst).
//!
//! Nothing here has to be trusted: with a false salt or a false number of blocks no block's hash leads to the root
//! hash. The checks turn nonsense into a clear message.

use anyhow::{Context, Result, ensure};

use super::command_line::RootHash;
use super::disks::{Found, Slice};
use crate::storage::Storage;

/// Bytes of the superblock.
pub const SUPERBLOCK: usize = 512;
/// The one block size of kimage's images, for data and hashes.
const BLOCK: u64 = 4096;
const DIGESTS_PER_BLOCK: u64 = BLOCK / 32;
const MAX_SALT: usize = 256;

/// The part of the superblock that is not the same in every image.
#[derive(Debug, PartialEq, Eq)]
pub struct Superblock {
    data_blocks: u64,
    salt: Vec<u8>,
}

/// Reads the superblock from the hash partition and checks it against the partitions' sizes.
pub(super) fn read(found: &Found) -> Result<Superblock> {
    let mut bytes = [0; SUPERBLOCK];
    let Slice { number, start, .. } = found.hashes;
    found
        .file
        .read_at(&mut bytes, start)
        .with_context(|| format!("read partition {number}"))?;
    let superblock =
        Superblock::parse(&bytes).with_context(|| format!("verity superblock in partition {number}"))?;
    let Superblock { data_blocks, .. } = superblock;
    let room = found.root.length / BLOCK;
    ensure!(
        data_blocks <= room,
        "verity covers {data_blocks} blocks, the root partition has {room}"
    );
    let (needed, room) = (1 + hash_blocks(data_blocks), found.hashes.length / BLOCK);
    ensure!(
        needed <= room,
        "the hash tree takes {needed} blocks, its partition has {room}"
    );
    Ok(superblock)
}

impl Superblock {
    /// Reads the superblock; refuses what kimage would not write.
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self> {
        let u32_at = |at: usize| {
            bytes[at..at + 4]
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(*byte))
        };
        let data_blocks = bytes[72..80]
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        ensure!(bytes.starts_with(b"verity\0\0"), "no signature");
        ensure!(
            u32_at(8) == 1 && u32_at(12) == 1,
            "version {} with hash type {}",
            u32_at(8),
            u32_at(12)
        );
        ensure!(
            bytes[32..64] == *b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "hash is not sha256"
        );
        let sizes = (u64::from(u32_at(64)), u64::from(u32_at(68)));
        ensure!(
            sizes == (BLOCK, BLOCK),
            "blocks of {} and {} bytes, {BLOCK} expected",
            sizes.0,
            sizes.1
        );
        // The number of 512-byte sectors must stay a number.
        ensure!(
            (1..=u64::MAX >> 13).contains(&data_blocks),
            "{data_blocks} data blocks"
        );
        let salt_size = usize::from(bytes[80]) | usize::from(bytes[81]) << 8;
        ensure!(salt_size <= MAX_SALT, "salt of {salt_size} bytes");
        Ok(Self {
            data_blocks,
            salt: bytes[88..88 + salt_size].to_vec(),
        })
    }

    /// Size of the verified device in 512-byte sectors.
    pub fn sectors(&self) -> u64 {
        self.data_blocks * (BLOCK / 512)
    }

    /// The arguments of the `verity` target.
    pub(super) fn target(&self, found: &Found, root_hash: &RootHash) -> String {
        let device = |slice: Slice| format!("{}:{}", slice.device.0, slice.device.1);
        let (data, hashes, blocks) = (device(found.root), device(found.hashes), self.data_blocks);
        let salt: String = self.salt.iter().map(|byte| format!("{byte:02x}")).collect();
        let salt = if salt.is_empty() { "-" } else { &salt };
        // Hashes start in block 1, after the superblock. A block that does not match stops the machine: to go on
        // with an error, a process could be led into doing something else.
        format!(
            "1 {data} {hashes} {BLOCK} {BLOCK} {blocks} 1 sha256 {root_hash} {salt} 1 panic_on_corruption"
        )
    }
}

/// Blocks of the hash tree over `blocks` data blocks.
fn hash_blocks(mut blocks: u64) -> u64 {
    let mut sum = 0;
    while blocks > 1 {
        blocks = blocks.div_ceil(DIGESTS_PER_BLOCK);
        sum += blocks;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK] {
        let mut bytes = [0; SUPERBLOCK];
        bytes[..8].copy_from_slice(b"verity\0\0");
        (bytes[8], bytes[12]) = (1, 1);
        bytes[32..38].copy_from_slice(b"sha256");
        (bytes[65], bytes[69]) = (16, 16);
        (bytes[72], bytes[73]) = (0x62, 0x8c);
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xab, 0xcd]);
        bytes
    }

    #[test]
    fn a_superblock_is_read() {
        let read = Superblock::parse(&superblock()).unwrap();
        assert_eq!(
            read,
            Superblock {
                data_blocks: 35_938,
                salt: vec![0xab, 0xcd]
            }
        );
        assert_eq!(read.sectors(), 35_938 * 8);
    }

    #[test]
    fn a_superblock_with_any_wrong_field_is_refused() {
        for at in [0, 8, 12, 32, 38, 64, 68, 79, 81] {
            let mut bytes = superblock();
            bytes[at] ^= 0xff;
            assert!(Superblock::parse(&bytes).is_err(), "byte {at}");
        }
        let mut empty = superblock();
        empty[72..80].fill(0);
        assert!(Superblock::parse(&empty).is_err());
    }

    #[test]
    fn the_tree_has_the_size_that_veritysetup_gives_it() {
        // Measured with veritysetup: a tree of 285 blocks over a root of 147 MB.
        assert_eq!(hash_blocks(35_938), 281 + 3 + 1);
        assert_eq!([hash_blocks(1), hash_blocks(128), hash_blocks(129)], [0, 1, 3]);
    }
}
