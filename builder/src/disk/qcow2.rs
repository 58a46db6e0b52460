//! QEMU's disk format, version 3, written in one pass, and read back ([`Image`]).
//!
//! Source: QEMU, `docs/interop/qcow2.txt`. Clusters that compress are stored with deflate, the compression that every
//! reader of the format knows: zstd needs an incompatible feature bit, which older libvirt, OpenStack and converters
//! refuse. Almost all of an image is compressed already (a squashfs, a kernel), so most clusters stay as they are, and a
//! look at how evenly their bytes are spread saves the attempt.

mod header;
mod owners;
mod read;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress, Status};

use super::sparse::next_data;
use super::write_beside;
pub use read::Image;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Clusters that are read, compressed and written together.
const BATCH: usize = 512;
/// A compressed cluster must save a quarter to be worth its decompression.
const MAX_COMPRESSED: usize = CLUSTER / 4 * 3;
/// QEMU inflates with a window of 4 KiB.
const WINDOW_BITS: u8 = 12;
const LEVEL: u32 = 6;
const HEADER_LENGTH: u32 = 104;
/// Table entries of 8 bytes in one cluster.
const L2_ENTRIES: usize = CLUSTER / 8;
/// Counts of 2 bytes in one cluster.
const REFCOUNTS: usize = CLUSTER / 2;
/// The cluster belongs to this table alone.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In a compressed entry the offset takes the bits below, the number of further sectors those above.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);

/// Writes the raw disk `raw` as qcow2 to `out`, which appears finished or not at all; whoever needs it to outlive a power
/// cut syncs it. The bytes depend on those of `raw` alone. Returns the length of `out` in bytes.
pub fn write(raw: &Path, out: &Path) -> Result<u64> {
    let source = File::open(raw).with_context(|| format!("open {}", raw.display()))?;
    let size = source
        .metadata()
        .with_context(|| format!("open {}", raw.display()))?
        .len();
    ensure!(
        size > 0 && size.is_multiple_of(512),
        "{} is no disk: {size} bytes",
        raw.display()
    );
    let mut length = 0;
    write_beside(out, |file| {
        let mut writer = Writer::new(file, size);
        let mut position = 0;
        while let Some((start, end)) = next_data(&source, position)? {
            let start = start / CLUSTER as u64 * CLUSTER as u64;
            let end = end
                .min(start + (BATCH * CLUSTER) as u64)
                .next_multiple_of(CLUSTER as u64);
            writer.batch(&source, start, end.min(size))?;
            position = end;
        }
        length = writer.finish()?;
        Ok(())
    })?;
    Ok(length)
}

/// What becomes of a cluster.
enum Encoded {
    /// All zeros: it has no place in the file.
    Zero,
    /// Stored as it is.
    Plain,
    /// Stored as these deflated bytes.
    Deflated(Vec<u8>),
}

struct Writer<'a> {
    file: &'a File,
    size: u64,
    /// Host offset of the next free cluster.
    next: u64,
    /// Where deflated clusters go on: a host offset within the last cluster that holds some.
    packed: u64,
    /// Entry per guest cluster.
    entries: Vec<u64>,
    /// Count per host cluster.
    refcounts: Vec<u16>,
    /// The batch at hand: memory that is used again need not be cleared by the kernel again.
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, size: u64) -> Self {
        let clusters = size.div_ceil(CLUSTER as u64) as usize;
        // The header has the first cluster to itself.
        Self {
            file,
            size,
            next: CLUSTER as u64,
            packed: 0,
            entries: vec![0; clusters],
            refcounts: vec![1],
            bytes: Vec::new(),
        }
    }

    /// Takes over the guest's bytes from `start` to `end`.
    fn batch(&mut self, source: &File, start: u64, end: u64) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize((end - start) as usize, 0);
        source.read_exact_at(&mut bytes, start).context("read raw disk")?;
        // Only the last cluster of the disk can be short.
        bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
        let encoded = encode(&bytes);
        let first = (start / CLUSTER as u64) as usize;
        let mut index = 0;
        while index < encoded.len() {
            match &encoded[index] {
                Encoded::Zero => index += 1,
                Encoded::Deflated(data) => {
                    self.entries[first + index] = self.pack(data)?;
                    index += 1;
                }
                Encoded::Plain => {
                    let run = encoded[index..]
                        .iter()
                        .take_while(|next| matches!(next, Encoded::Plain))
                        .count();
                    let data = &bytes[index * CLUSTER..(index + run) * CLUSTER];
                    let place = self.store(data)?;
                    for (entry, cluster) in self.entries[first + index..][..run].iter_mut().zip(0u64..) {
                        *entry = COPIED | (place + cluster * CLUSTER as u64);
                    }
                    index += run;
                }
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Stores bytes in clusters of their own, filled up with zeros; returns the host offset.
    fn store(&mut self, data: &[u8]) -> Result<u64> {
        let place = self.next;
        self.file.write_all_at(data, place)?;
        let clusters = data.len().div_ceil(CLUSTER);
        self.refcounts.resize(self.refcounts.len() + clusters, 1);
        self.next += (clusters * CLUSTER) as u64;
        Ok(place)
    }

    /// Stores a deflated cluster behind the one before, in a new host cluster if it does not fit; returns its entry.
    fn pack(&mut self, data: &[u8]) -> Result<u64> {
        let free = self.packed.next_multiple_of(CLUSTER as u64) - self.packed;
        if (free as usize) < data.len() {
            self.packed = self.next;
            self.next += CLUSTER as u64;
            self.refcounts.push(0);
        }
        let place = self.packed;
        self.file.write_all_at(data, place)?;
        self.refcounts[(place >> CLUSTER_BITS) as usize] += 1;
        self.packed += data.len() as u64;
        let more_sectors = ((place + data.len() as u64 - 1) >> 9) - (place >> 9);
        Ok(COMPRESSED | more_sectors << SECTORS_SHIFT | place)
    }

    /// Writes tables and header; returns the file's length.
    fn finish(mut self) -> Result<u64> {
        let mut l1 = Vec::new();
        for table in std::mem::take(&mut self.entries).chunks(L2_ENTRIES) {
            if table.iter().all(|entry| *entry == 0) {
                l1.push(0);
                continue;
            }
            let place = self.store(&big_endian(table))?;
            l1.push(COPIED | place);
        }
        let l1_place = self.store(&big_endian(&l1))?;
        // The refcount tables count themselves too, so their number is searched for.
        let others = self.refcounts.len();
        let (mut blocks, mut tables) = (1, 1);
        loop {
            let needed = (others + blocks + tables).div_ceil(REFCOUNTS);
            let needed_tables = (needed * 8).div_ceil(CLUSTER);
            if needed <= blocks && needed_tables <= tables {
                break;
            }
            (blocks, tables) = (needed, needed_tables);
        }
        let first_block = self.next;
        let places: Vec<u64> = (0..blocks as u64)
            .map(|block| first_block + block * CLUSTER as u64)
            .collect();
        let mut counts = self.refcounts.clone();
        counts.resize(others + blocks + tables, 1);
        counts.resize(blocks * REFCOUNTS, 0);
        self.store(
            &counts
                .iter()
                .flat_map(|count| count.to_be_bytes())
                .collect::<Vec<u8>>(),
        )?;
        let mut table = big_endian(&places);
        table.resize(tables * CLUSTER, 0);
        let table_place = self.store(&table)?;
        self.file
            .write_all_at(&self.header(&l1, l1_place, table_place, tables), 0)?;
        self.file.set_len(self.next)?;
        Ok(self.next)
    }

    fn header(&self, l1: &[u64], l1_place: u64, refcount_place: u64, refcount_clusters: usize) -> Vec<u8> {
        let halves = |value: u64| [(value >> 32) as u32, value as u32];
        let mut words = vec![3];
        // No backing file; cluster size; length of the disk.
        words.extend([0, 0, 0, CLUSTER_BITS]);
        words.extend(halves(self.size));
        // No encryption; L1 table.
        words.extend([0, l1.len() as u32]);
        words.extend(halves(l1_place));
        words.extend(halves(refcount_place));
        words.push(refcount_clusters as u32);
        // No snapshots, no feature bits; 16-bit refcounts.
        words.extend([0; 9]);
        words.extend([4, HEADER_LENGTH]);
        let mut header = b"QFI\xfb".to_vec();
        header.extend(words.into_iter().flat_map(u32::to_be_bytes));
        debug_assert_eq!(header.len(), HEADER_LENGTH as usize);
        // An end-of-extensions marker follows: eight zeros.
        header.resize(CLUSTER, 0);
        header
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Decides for each cluster of `bytes`, on all processors. The outcome does not depend on how many there are.
fn encode(bytes: &[u8]) -> Vec<Encoded> {
    let clusters: Vec<&[u8]> = bytes.chunks(CLUSTER).collect();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let share = clusters.len().div_ceil(workers).max(1);
    thread::scope(|scope| {
        let encode_share = |part: &[&[u8]]| {
            part.iter()
                .map(|cluster| encode_cluster(cluster))
                .collect::<Vec<_>>()
        };
        let handles: Vec<_> = clusters
            .chunks(share)
            .map(|part| scope.spawn(move || encode_share(part)))
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Vec<Encoded>>| {
            handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        handles.into_iter().flat_map(join).collect()
    })
}

fn encode_cluster(cluster: &[u8]) -> Encoded {
    if cluster
        .chunks(4096)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
    {
        return Encoded::Zero;
    }
    if !looks_compressible(cluster) {
        return Encoded::Plain;
    }
    let mut data = vec![0; MAX_COMPRESSED];
    let mut deflate = Compress::new_with_window_bits(Compression::new(LEVEL), false, WINDOW_BITS);
    match deflate.compress(cluster, &mut data, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => {
            data.truncate(deflate.total_out() as usize);
            Encoded::Deflated(data)
        }
        _ => Encoded::Plain,
    }
}

/// Whether the bytes of a cluster, one in eight looked at, are spread less evenly than those of compressed data. The sum
/// of squares stands for the entropy: for even spread it is (samples²)/256, and 9/8 of that is far beyond chance.
fn looks_compressible(cluster: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    for byte in cluster.iter().step_by(8) {
        counts[usize::from(*byte)] += 1;
    }
    let samples = (cluster.len() / 8) as u64;
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    squares * 256 * 8 > samples * samples * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_left_alone_and_text_is_not() {
        let mut noise = vec![0; CLUSTER];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut noise).unwrap();
        assert!(matches!(encode_cluster(&noise), Encoded::Plain));
        assert!(matches!(encode_cluster(&[0; CLUSTER]), Encoded::Zero));
        let text: Vec<u8> = (0..CLUSTER)
            .map(|place| b"kimage builds images "[place % 21])
            .collect();
        assert!(matches!(encode_cluster(&text), Encoded::Deflated(data) if data.len() < 1000));
    }

    #[test]
    fn the_number_of_processors_does_not_show() {
        let bytes: Vec<u8> = (0..CLUSTER * 7).map(|place| (place / 1000) as u8).collect();
        let together: Vec<_> = encode(&bytes)
            .into_iter()
            .map(|cluster| matches!(cluster, Encoded::Deflated(_)))
            .collect();
        let alone: Vec<_> = bytes
            .chunks(CLUSTER)
            .map(|cluster| matches!(encode_cluster(cluster), Encoded::Deflated(_)))
            .collect();
        assert_eq!(together, alone);
    }
}
