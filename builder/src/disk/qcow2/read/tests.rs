use std::ops::Range;
use std::sync::LazyLock;

use proptest::prelude::{ProptestConfig, any, prop, prop_assert, proptest};

use super::*;
use crate::disk::qcow2;

const CLUSTER: usize = 1 << 16;
/// Holes, text that compresses, noise that doesn't, and a cluster that ends early.
const SIZE: u64 = 9 * CLUSTER as u64 + 512;

fn noise(length: usize, mut state: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

fn raw_bytes() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let text: Vec<u8> = b"kimage builds images "
        .iter()
        .copied()
        .cycle()
        .take(3 * CLUSTER)
        .collect();
    bytes[CLUSTER / 2..][..text.len()].copy_from_slice(&text);
    bytes[5 * CLUSTER..7 * CLUSTER].copy_from_slice(&noise(2 * CLUSTER, 7));
    bytes[SIZE as usize - 512..].fill(b'e');
    bytes
}

/// Raw disk and qcow2 file, for the many.
static FILES: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| (raw_bytes(), Sample::new().bytes()));

struct Sample {
    folder: tempfile::TempDir,
    raw: File,
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        std::fs::write(&path, raw_bytes()).unwrap();
        qcow2::write(&path, &folder.path().join("qcow2")).unwrap();
        let raw = File::options().read(true).write(true).open(&path).unwrap();
        Self { folder, raw }
    }

    fn qcow2(&self) -> File {
        let path = self.folder.path().join("qcow2");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("qcow2")).unwrap()
    }
}

fn all(image: &Image) -> Range<u64> {
    0..image.clusters()
}

/// A number of 64 bits in a file.
fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Opens a file of these bytes and compares all of it with the raw disk.
fn judge(bytes: &[u8], raw: &File) -> Result<()> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let image = Image::open(file)?;
    ensure!(image.size() == SIZE, "another length");
    image.compare(raw, all(&image))
}

#[test]
fn what_is_written_reads_back_cluster_by_cluster() {
    let sample = Sample::new();
    let image = Image::open(sample.qcow2()).unwrap();
    assert_eq!((image.size(), image.clusters()), (SIZE, 10));
    assert!(image.is_hole(4).unwrap() && image.is_hole(8).unwrap());
    let mut expected = raw_bytes();
    expected.resize(10 * CLUSTER, 0);
    let mut buffer = vec![0; CLUSTER];
    for (number, expected) in (0..).zip(expected.chunks(CLUSTER)) {
        image.read(number, &mut buffer).unwrap();
        assert!(buffer == expected, "{number}");
    }
    image.compare(&sample.raw, all(&image)).unwrap();
    assert!(image.read(10, &mut buffer).is_err() && image.read(0, &mut buffer[1..]).is_err());
}

#[test]
fn every_byte_of_the_raw_disk_counts() {
    for place in [
        0,
        CLUSTER as u64,
        4 * CLUSTER as u64,
        6 * CLUSTER as u64 + 9,
        SIZE - 1,
    ] {
        let sample = Sample::new();
        let mut byte = [0];
        sample.raw.read_exact_at(&mut byte, place).unwrap();
        sample.raw.write_all_at(&[byte[0] ^ 1], place).unwrap();
        let image = Image::open(sample.qcow2()).unwrap();
        let error = image.compare(&sample.raw, all(&image)).unwrap_err();
        let cluster = place / CLUSTER as u64;
        assert!(
            error.to_string().contains(&format!("cluster {cluster}, ")),
            "{error:#}"
        );
    }
}

#[test]
fn a_header_that_asks_for_more_than_the_file_is_refused() {
    let sample = Sample::new();
    let good = sample.bytes();
    judge(&good, &sample.raw).unwrap();
    for (place, value, why) in [
        (7, 2, "version"),
        (15, 200, "backing file"),
        (35, 1, "encryption"),
        (63, 1, "snapshots"),
        (79, 4, "incompatible"),
        (87, 1, "compatible"),
        (95, 1, "clear themselves"),
        (99, 5, "refcounts"),
        (23, 60, "clusters"),
        (24, 0x40, "disk of"),
        (39, 9, "first-level table"),
        (103, 200, "header of"),
        (107, 3, "unknown extension"),
        (200, 1, "bytes hide"),
    ] {
        let mut bytes = good.clone();
        bytes[place] = value;
        let error = judge(&bytes, &sample.raw).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{place}: {error:#}");
    }
}

#[test]
fn a_cluster_with_two_owners_or_a_wrong_refcount_is_refused() {
    let sample = Sample::new();
    let good = sample.bytes();
    let l1 = number(&good, 40) as usize;
    let l2 = (number(&good, l1) & OFFSET) as usize;
    let refcounts = number(&good, number(&good, 48) as usize) as usize;
    let entry = |bytes: &mut [u8], cluster: usize, value: u64| {
        bytes[l2 + cluster * 8..][..8].copy_from_slice(&value.to_be_bytes());
    };
    let plain = number(&good, l2 + 5 * 8);
    type Change<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;
    let changes: [(&str, Change<'_>); 9] = [
        ("belongs to another", Box::new(|bytes| entry(bytes, 6, plain))),
        (
            "belongs to another",
            Box::new(|bytes| entry(bytes, 6, COPIED | l2 as u64)),
        ),
        (
            "belongs to another",
            Box::new(|bytes| entry(bytes, 6, COMPRESSED | (plain & OFFSET))),
        ),
        ("is no entry", Box::new(|bytes| entry(bytes, 6, plain | 1))),
        ("is no entry", Box::new(|bytes| entry(bytes, 6, plain & !COPIED))),
        (
            "behind the file's end",
            Box::new(|bytes| entry(bytes, 6, COPIED | 1 << 40)),
        ),
        ("goes on behind", Box::new(|bytes| entry(bytes, 11, plain))),
        ("refcount is 2", Box::new(|bytes| bytes[refcounts + 1] = 2)),
        (
            "belong to nobody",
            Box::new(|bytes| {
                bytes.resize(bytes.len() + CLUSTER, 0);
                bytes.push(1);
            }),
        ),
    ];
    for (why, change) in changes {
        let mut bytes = good.clone();
        change(&mut bytes);
        let error = judge(&bytes, &sample.raw).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{why}: {error:#}");
    }
}

#[test]
fn a_stream_that_inflates_to_more_or_less_than_a_cluster_is_refused() {
    for length in [0, 100, 65_535, 65_537, 10_000_000] {
        let mut deflate =
            flate2::Compress::new_with_window_bits(flate2::Compression::new(6), false, WINDOW_BITS);
        let mut stream = vec![0; 100_000];
        let text = vec![b'k'; length];
        let status = deflate
            .compress(&text, &mut stream, flate2::FlushCompress::Finish)
            .unwrap();
        assert_eq!(status, Status::StreamEnd);
        assert!(inflate(&stream, &mut vec![0; CLUSTER]).is_err(), "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is changed, what is accepted is the raw disk and nothing else.
    #[test]
    fn damage_is_found_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (raw, good) = &*FILES;
        // Header and tables more often than the data between them.
        let l1 = number(good, 40) as usize;
        let l2 = (number(good, l1) & OFFSET) as usize;
        let refcounts = number(good, 48) as usize;
        let block = number(good, refcounts) as usize;
        let places: Vec<usize> = [0..112, l1..l1 + 8, l2..l2 + 88, refcounts..refcounts + 8, block..block + 30, 0..good.len()]
            .into_iter()
            .flatten()
            .take(400)
            .collect();
        let mut bytes = good.clone();
        for (place, value) in changes {
            let place = places[place.index(places.len())];
            bytes[place] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(raw, 0).unwrap();
        if judge(&bytes, &disk).is_ok() {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let image = Image::open(file).unwrap();
            let mut buffer = vec![0; image.cluster() as usize];
            let mut found = Vec::new();
            for cluster in 0..image.clusters() {
                image.read(cluster, &mut buffer).unwrap();
                found.extend_from_slice(&buffer);
            }
            found.truncate(SIZE as usize);
            prop_assert!(found == *raw);
        }
    }
}
