//! The dm-verity hash tree of a partition, as `veritysetup format` writes it: format 1, SHA-256, blocks of 4096 bytes.
//!
//! The hash device starts with one block that holds the superblock (cryptsetup, `lib/verity/verity.c`, `struct
//! verity_sb`); the tree follows, the root's level first, the leaves last (Linux,
//! `Documentation/admin-guide/device-mapper/verity.rst`). Every digest is SHA-256(salt ‖ block); a hash block holds
//! 128 digests and is padded with zeros. Data of a single block has no hash block: its digest is the root hash.

use std::io::{Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail, ensure};
use ring::{digest, hmac};

use crate::digest::{Digest, hex};
use crate::failure::{ExitCode, Failure};

/// Bytes of a data block and of a hash block.
pub const BLOCK_SIZE: u64 = 4096;

/// Bytes of SHA-256.
const DIGEST_SIZE: usize = 32;

/// Digests in one hash block.
const FANOUT: u64 = BLOCK_SIZE / DIGEST_SIZE as u64;

/// Data that one thread hashes at a time, in bytes.
const CHUNK_SIZE: u64 = 1 << 20;

/// More threads than this wait for the one that reads; it also bounds the memory in use to this many chunks.
const THREADS_MAX: usize = 32;

/// Data of more blocks than this (16 TiB) is taken for a damaged superblock.
const DATA_BLOCKS_MAX: u64 = 1 << 32;

/// What [`format`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verity {
    /// SHA-256(salt ‖ top hash block): vouches for every data block.
    pub root_hash: [u8; 32],
    /// Length of the hash device in bytes, superblock included, a multiple of [`BLOCK_SIZE`].
    pub hash_bytes: u64,
    /// Length of the data in blocks of [`BLOCK_SIZE`].
    pub data_blocks: u64,
}

/// What the superblock of a hash device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The volume's UUID, raw.
    pub uuid: [u8; 16],
    /// The salt that goes before every block, 256 bytes at most.
    pub salt: Vec<u8>,
    /// Length of the data in blocks of [`BLOCK_SIZE`].
    pub data_blocks: u64,
}

/// The salt for a `seed`: HMAC-SHA-256 with the seed as key over `verity-salt`, the label of systemd-repart
/// (whose seed is a UUID of 16 bytes, so the values differ).
pub fn derive_salt(seed: &Digest) -> [u8; 32] {
    derive(seed, b"verity-salt")
}

/// The UUID of the hash device for a `seed`: the first half of HMAC-SHA-256 with the seed as key over
/// `verity-uuid`, marked as a UUID of version 4 (RFC 9562, 5.4), as systemd-repart does.
pub fn derive_uuid(seed: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&derive(seed, b"verity-uuid")[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn derive(seed: &Digest, label: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, seed.as_bytes()), label);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// Writes superblock and hash tree of `data` to `out`, both from their beginning. The length of `data` must be a
/// multiple of [`BLOCK_SIZE`] and not zero. Holds the digests in memory: 0.8 % of the data.
pub fn format(
    data: &mut (impl Read + Seek),
    salt: [u8; 32],
    uuid: [u8; 16],
    out: &mut (impl Write + Seek),
    threads: usize,
) -> Result<Verity> {
    let length = data.seek(SeekFrom::End(0)).context("measure verity data")?;
    ensure!(
        length > 0 && length.is_multiple_of(BLOCK_SIZE),
        "verity data of {length} bytes is not a positive multiple of {BLOCK_SIZE}"
    );
    let data_blocks = length / BLOCK_SIZE;
    data.seek(SeekFrom::Start(0)).context("rewind verity data")?;
    let mut digests = hash_blocks(data, data_blocks, &salt, threads).context("hash verity data")?;
    let mut levels = Vec::new();
    while digests.len() > DIGEST_SIZE {
        digests.resize(digests.len().next_multiple_of(BLOCK_SIZE as usize), 0);
        let blocks = (digests.len() as u64) / BLOCK_SIZE;
        let above = hash_blocks(&mut &digests[..], blocks, &salt, threads)?;
        levels.push(std::mem::replace(&mut digests, above));
    }
    let superblock = Superblock {
        uuid,
        salt: salt.to_vec(),
        data_blocks,
    };
    out.seek(SeekFrom::Start(0)).context("rewind hash device")?;
    out.write_all(&superblock.encode())
        .context("write verity superblock")?;
    let mut hash_bytes = BLOCK_SIZE;
    for level in levels.iter().rev() {
        out.write_all(level).context("write verity tree")?;
        hash_bytes += level.len() as u64;
    }
    let mut root_hash = [0; DIGEST_SIZE];
    root_hash.copy_from_slice(&digests);
    Ok(Verity {
        root_hash,
        hash_bytes,
        data_blocks,
    })
}

/// Checks every block of `hash_device` against `root_hash`, from the top down, then every block of `data`. The error
/// names the first block that does not match, with exit code "mismatch". Data beyond what the superblock counts is
/// not looked at, as the kernel never shows it.
pub fn check(
    data: &mut (impl Read + Seek),
    hash_device: &mut (impl Read + Seek),
    root_hash: &[u8; 32],
    threads: usize,
) -> Result<Superblock> {
    hash_device
        .seek(SeekFrom::Start(0))
        .context("rewind hash device")?;
    let superblock = Superblock::read(hash_device)?;
    let length = data.seek(SeekFrom::End(0)).context("measure verity data")?;
    ensure!(
        length / BLOCK_SIZE >= superblock.data_blocks,
        "verity data has {length} bytes, its superblock counts {} blocks of {BLOCK_SIZE}",
        superblock.data_blocks
    );
    let mut expected = root_hash.to_vec();
    let mut first_block = 1;
    for blocks in level_sizes(superblock.data_blocks) {
        let mut level = vec![0; usize::try_from(blocks * BLOCK_SIZE)?];
        hash_device
            .read_exact(&mut level)
            .with_context(|| format!("read hash block {first_block} and following"))?;
        let digests = hash_blocks(&mut &level[..], blocks, &superblock.salt, threads)?;
        compare(&digests, &expected, first_block, "hash block")?;
        expected = level;
        first_block += blocks;
    }
    data.seek(SeekFrom::Start(0)).context("rewind verity data")?;
    let digests =
        hash_blocks(data, superblock.data_blocks, &superblock.salt, threads).context("hash verity data")?;
    compare(&digests, &expected, 0, "data block")?;
    Ok(superblock)
}

/// Bytes of superblock and hash tree over `data_blocks` blocks of data.
pub fn hash_bytes(data_blocks: u64) -> u64 {
    (1 + level_sizes(data_blocks).iter().sum::<u64>()) * BLOCK_SIZE
}

/// Hash blocks per level for `data_blocks`, the root's level first.
fn level_sizes(data_blocks: u64) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(FANOUT);
        sizes.push(below);
    }
    sizes.reverse();
    sizes
}

/// Fails with the number of the first of `digests` that is not as `expected`, counted from `first`. What `expected`
/// holds beyond them is padding and must be zero.
fn compare(digests: &[u8], expected: &[u8], first: u64, what: &str) -> Result<()> {
    let pairs = digests.chunks(DIGEST_SIZE).zip(expected.chunks(DIGEST_SIZE));
    if let Some(index) = pairs.into_iter().position(|(found, wanted)| found != wanted) {
        let place = first + index as u64;
        let message = format!("verity {what} {place} does not match its digest");
        bail!(Failure::new(ExitCode::Mismatch, message));
    }
    if expected[digests.len()..].iter().any(|byte| *byte != 0) {
        let message = format!("padding after the digests of the verity {what}s is not zero");
        bail!(Failure::new(ExitCode::Mismatch, message));
    }
    Ok(())
}

/// The digests of the next `count` blocks that `data` yields, one after the other.
fn hash_blocks(data: &mut impl Read, count: u64, salt: &[u8], threads: usize) -> Result<Vec<u8>> {
    let threads = threads.clamp(1, THREADS_MAX);
    let mut digests = vec![0; usize::try_from(count)? * DIGEST_SIZE];
    let batch_size = (threads as u64 * CHUNK_SIZE).min(count * BLOCK_SIZE) as usize;
    let mut batch = vec![0; batch_size];
    for digests in digests.chunks_mut(batch_size / BLOCK_SIZE as usize * DIGEST_SIZE) {
        let batch = &mut batch[..digests.len() / DIGEST_SIZE * BLOCK_SIZE as usize];
        data.read_exact(batch).context("read block")?;
        // Equal shares in whole blocks, so that no thread is left with the rest of a short batch.
        let share = (batch.len() / BLOCK_SIZE as usize).div_ceil(threads);
        let blocks = batch.chunks(share * BLOCK_SIZE as usize);
        let shares = blocks.zip(digests.chunks_mut(share * DIGEST_SIZE));
        if share * threads < 64 {
            shares.for_each(|(blocks, digests)| hash_share(blocks, salt, digests));
            continue;
        }
        std::thread::scope(|scope| {
            for (blocks, digests) in shares {
                scope.spawn(move || hash_share(blocks, salt, digests));
            }
        });
    }
    Ok(digests)
}

fn hash_share(blocks: &[u8], salt: &[u8], digests: &mut [u8]) {
    for (block, digest) in blocks
        .chunks(BLOCK_SIZE as usize)
        .zip(digests.chunks_mut(DIGEST_SIZE))
    {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(salt);
        context.update(block);
        digest.copy_from_slice(context.finish().as_ref());
    }
}

impl Superblock {
    /// One block: the superblock's 512 bytes and zeros.
    fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE as usize];
        block[0..8].copy_from_slice(b"verity\0\0");
        block[8..12].copy_from_slice(&1u32.to_le_bytes());
        block[12..16].copy_from_slice(&1u32.to_le_bytes());
        block[16..32].copy_from_slice(&self.uuid);
        block[32..38].copy_from_slice(b"sha256");
        block[64..68].copy_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
        block[68..72].copy_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
        block[72..80].copy_from_slice(&self.data_blocks.to_le_bytes());
        block[80..82].copy_from_slice(&(self.salt.len() as u16).to_le_bytes());
        block[88..88 + self.salt.len()].copy_from_slice(&self.salt);
        block
    }

    /// Reads the first block of a hash device; refuses what [`format`] would not write.
    pub fn read(hash_device: &mut impl Read) -> Result<Self> {
        let mut block = vec![0; BLOCK_SIZE as usize];
        hash_device
            .read_exact(&mut block)
            .context("read verity superblock")?;
        ensure!(
            &block[0..8] == b"verity\0\0",
            "the hash device holds no verity superblock"
        );
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        for (at, wanted, field) in [
            (8, 1, "version"),
            (12, 1, "hash type"),
            (64, 4096, "data block size"),
            (68, 4096, "hash block size"),
        ] {
            ensure!(
                word(at) == wanted,
                "verity superblock: {field} is {}, only {wanted} is supported",
                word(at)
            );
        }
        let algorithm = &block[32..64];
        ensure!(
            algorithm.starts_with(b"sha256\0"),
            "verity superblock: hash algorithm `{}` is not sha256",
            algorithm.escape_ascii()
        );
        let data_blocks = u64::from(word(72)) | u64::from(word(76)) << 32;
        ensure!(
            (1..=DATA_BLOCKS_MAX).contains(&data_blocks),
            "verity superblock: {data_blocks} data blocks are out of range"
        );
        let salt_size = usize::from(u16::from_le_bytes([block[80], block[81]]));
        ensure!(
            salt_size <= 256,
            "verity superblock: salt of {salt_size} bytes is longer than 256"
        );
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[16..32]);
        let superblock = Self {
            uuid,
            salt: block[88..88 + salt_size].to_vec(),
            data_blocks,
        };
        ensure!(
            superblock.encode() == block,
            "bytes hide in or behind the verity superblock"
        );
        Ok(superblock)
    }
}

impl Verity {
    /// The root hash as it stands on a kernel command line.
    pub fn root_hash_hex(&self) -> String {
        hex(&self.root_hash)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::{any, proptest};

    use super::*;

    fn sample(blocks: u64) -> Vec<u8> {
        (0..blocks * BLOCK_SIZE)
            .map(|at| ((at / 7) ^ (at / 4096)) as u8)
            .collect()
    }

    fn formatted(data: &[u8], threads: usize) -> (Verity, Vec<u8>) {
        let mut out = Cursor::new(Vec::new());
        let verity = format(&mut Cursor::new(data), [7; 32], [9; 16], &mut out, threads).unwrap();
        (verity, out.into_inner())
    }

    #[test]
    fn the_tree_does_not_depend_on_the_number_of_threads() {
        let data = sample(16_385);
        let one = formatted(&data, 1);
        assert_eq!(one.0.hash_bytes, one.1.len() as u64);
        assert_eq!(hash_bytes(one.0.data_blocks), one.0.hash_bytes);
        for threads in [2, 3, 8, 1000] {
            assert_eq!(formatted(&data, threads), one, "{threads}");
        }
    }

    #[test]
    fn data_that_is_no_whole_number_of_blocks_is_refused() {
        for length in [0, 1, 4095, 4097] {
            let mut data = Cursor::new(vec![0; length]);
            assert!(
                format(&mut data, [0; 32], [0; 16], &mut Cursor::new(Vec::new()), 1).is_err(),
                "{length}"
            );
        }
    }

    #[test]
    fn the_first_bad_block_is_named() {
        let mut data = sample(300);
        let (verity, mut hashes) = formatted(&data, 2);
        let try_check = |data: &[u8], hashes: &[u8]| {
            check(
                &mut Cursor::new(data),
                &mut Cursor::new(hashes),
                &verity.root_hash,
                2,
            )
            .map_err(|e| e.to_string())
        };
        assert_eq!(try_check(&data, &hashes).unwrap().data_blocks, 300);
        data[299 * 4096] ^= 1;
        data[250 * 4096 + 4095] ^= 1;
        assert!(try_check(&data, &hashes).unwrap_err().contains("data block 250 "));
        // Blocks: 0 superblock, 1 root, 2 to 4 leaves.
        hashes[3 * 4096 + 5] ^= 1;
        assert!(try_check(&data, &hashes).unwrap_err().contains("hash block 3 "));
        hashes[4096] ^= 1;
        assert!(try_check(&data, &hashes).unwrap_err().contains("hash block 1 "));
    }

    #[test]
    fn derived_values_are_fixed_and_differ() {
        let seed = Digest::of(b"seed");
        // Computed with: printf verity-salt | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(printf seed | sha256sum)
        assert_eq!(
            hex(&derive_salt(&seed)),
            "282966384140c68aaabb4e2eb465d0debed47dee25032002b6ea9728e79bfc51"
        );
        assert_eq!(hex(&derive_uuid(&seed)), "3de758175f0b4109a34e02aff82c52cb");
    }

    proptest! {
        #[test]
        fn a_hostile_superblock_never_panics(at in 0usize..344, value in any::<u8>(), cut in 0usize..8192) {
            let data = sample(3);
            let (verity, mut hashes) = formatted(&data, 1);
            hashes[at] ^= value;
            hashes.truncate(cut.max(at));
            let _ = check(&mut Cursor::new(data), &mut Cursor::new(hashes), &verity.root_hash, 1);
        }
    }
}
