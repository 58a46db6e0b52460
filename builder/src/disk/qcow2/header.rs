//! The header, as far as the disks that kimage writes need it: whatever makes the file lean on another file, on a key
//! or on a feature that readers may ignore is refused.
//!
//! Source: QEMU, `docs/interop/qcow2.txt`.

use anyhow::{Result, bail, ensure};

/// Bytes that [`Header::parse`] wants to see at the most: the largest cluster.
pub(super) const MAX_CLUSTER: usize = 1 << *CLUSTER_BITS.end();
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The header of version 3, and that with a compression type and its padding.
const LENGTHS: [usize; 2] = [104, 112];
/// Ends the header extensions.
const END: u32 = 0;
/// Names of feature bits for messages: QEMU writes it, nothing follows from it.
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Clusters of a disk at the most: 1 TiB of 64 KiB each.
const MAX_CLUSTERS: u64 = 1 << 24;
/// Counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;

/// Where everything lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the disk in bytes.
    pub(super) size: u64,
    pub(super) cluster_bits: u32,
    /// Offset and number of entries of the first-level table.
    pub(super) l1: (u64, u32),
    /// Offset and clusters of the table of refcount blocks.
    pub(super) refcounts: (u64, u32),
}

impl Header {
    /// Reads the header from the file's first bytes, `start`: a whole cluster, or all of a shorter file.
    pub(super) fn parse(start: &[u8]) -> Result<Self> {
        ensure!(
            start.len() >= LENGTHS[0] && start.starts_with(b"QFI\xfb"),
            "this is no qcow2 file"
        );
        let word = |at: usize| {
            let [a, b, c, d] = [start[at], start[at + 1], start[at + 2], start[at + 3]];
            u32::from_be_bytes([a, b, c, d])
        };
        let double = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        ensure!(
            word(4) == 3,
            "qcow2 version {} is not read, only version 3",
            word(4)
        );
        for (value, what) in [
            (double(8) | u64::from(word(16)), "a backing file"),
            (u64::from(word(32)), "encryption"),
            (u64::from(word(60)) | double(64), "snapshots"),
            (double(72), "incompatible features"),
            (double(80), "compatible features"),
            (double(88), "features that clear themselves"),
        ] {
            ensure!(value == 0, "the qcow2 file has {what}, which no release has");
        }
        let header = Self {
            size: double(24),
            cluster_bits: word(20),
            l1: (double(40), word(36)),
            refcounts: (double(48), word(56)),
        };
        ensure!(
            CLUSTER_BITS.contains(&header.cluster_bits),
            "clusters of 2^{} bytes",
            header.cluster_bits
        );
        ensure!(
            word(96) == REFCOUNT_ORDER,
            "refcounts of 2^{} bits, only 16 bits are read",
            word(96)
        );
        ensure!(
            header.size > 0 && header.size.is_multiple_of(512) && header.clusters() <= MAX_CLUSTERS,
            "a disk of {} bytes in clusters of {}",
            header.size,
            header.cluster()
        );
        let tables = header.clusters().div_ceil(header.l2_entries());
        ensure!(
            u64::from(header.l1.1) == tables,
            "the first-level table has {} entries, the disk needs {tables}",
            header.l1.1
        );
        let length = word(100) as usize;
        ensure!(LENGTHS.contains(&length), "a header of {length} bytes");
        let cluster = start.len().min(header.cluster() as usize);
        extensions(&start[..cluster], length)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters of the disk.
    pub(super) fn clusters(&self) -> u64 {
        self.size.div_ceil(self.cluster())
    }

    /// Entries of a second-level table: it fills one cluster.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Counts in a refcount block: it fills one cluster.
    pub(super) fn block_refcounts(&self) -> u64 {
        self.cluster() / 2
    }
}

/// What follows the header in its cluster: the compression type (deflate is 0), extensions, and nothing.
fn extensions(cluster: &[u8], length: usize) -> Result<()> {
    let mut rest = cluster.get(LENGTHS[0]..).unwrap_or_default();
    let Some((more, behind)) = rest.split_at_checked(length - LENGTHS[0]) else {
        bail!("the header ends too early");
    };
    ensure!(
        is_zero(more),
        "clusters are compressed in another way than deflate"
    );
    rest = behind;
    while let Some((kind, behind)) = rest.split_first_chunk::<4>() {
        let Some((size, content)) = behind.split_first_chunk::<4>() else {
            break;
        };
        match u32::from_be_bytes(*kind) {
            END => break,
            FEATURE_NAMES => {
                let size = (u32::from_be_bytes(*size) as usize).next_multiple_of(8);
                let Some(behind) = content.get(size..) else {
                    bail!("an extension of the header ends too late");
                };
                rest = behind;
            }
            kind => bail!("the header has an unknown extension, {kind:#x}"),
        }
    }
    ensure!(is_zero(rest), "bytes hide behind the header");
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
