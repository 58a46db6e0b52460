//! Our hash trees against those of `veritysetup` (Debian and Ubuntu: cryptsetup-bin).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "oracle/tool.rs"]
mod oracle;

use std::fs::{self, File};
use std::path::Path;

use kimage_builder::digest::hex;
use kimage_builder::partitions::verity::{self, BLOCK_SIZE};
use oracle::tool;

const SALT: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";
const UUID: [u8; 16] = [
    0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x41, 0x11, 0x81, 0x11, 1, 2, 3, 4, 5, 6,
];
const UUID_TEXT: &str = "11111111-1111-4111-8111-010203040506";

fn veritysetup(arguments: &[&str]) -> Result<String, String> {
    let output = tool("veritysetup")
        .args(arguments)
        .output()
        .expect("install cryptsetup-bin");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        Err(said(&output.stderr))
    }
}

/// Bytes that do not repeat from block to block.
fn write_sample(path: &Path, blocks: u64) {
    let mut state = 1u64;
    let bytes: Vec<u8> = (0..blocks * BLOCK_SIZE / 8)
        .flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        })
        .collect();
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_hash_device_is_the_one_veritysetup_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, ours, theirs) = (path("data"), path("ours"), path("theirs"));
    // 1 block has no tree, 128 digests fill a hash block, 16384 fill two levels, 38400 blocks are 150 MiB.
    for blocks in [1, 2, 127, 128, 129, 16_383, 16_384, 16_385, 38_400] {
        write_sample(Path::new(&data), blocks);
        let (mut input, mut out) = (File::open(&data).unwrap(), File::create(&ours).unwrap());
        let made = verity::format(&mut input, SALT, UUID, &mut out, 2).unwrap();
        let root = hex(&made.root_hash);
        let _ = fs::remove_file(&theirs);
        let said = veritysetup(&[
            "format",
            "--salt",
            &hex(&SALT),
            "--uuid",
            UUID_TEXT,
            &data,
            &theirs,
        ])
        .unwrap();
        assert!(
            said.contains(&root),
            "{blocks} blocks: root hash {root}, veritysetup said\n{said}"
        );
        let (our_bytes, their_bytes) = (fs::read(&ours).unwrap(), fs::read(&theirs).unwrap());
        assert_eq!(our_bytes.len() as u64, made.hash_bytes, "{blocks} blocks");
        // veritysetup leaves the rest of the superblock's block out where nothing follows it.
        assert_eq!(&our_bytes[..their_bytes.len()], their_bytes, "{blocks} blocks");
        assert!(
            our_bytes[their_bytes.len()..].iter().all(|byte| *byte == 0),
            "{blocks} blocks"
        );
        assert!(
            their_bytes.len() == our_bytes.len() || blocks == 1,
            "{blocks} blocks"
        );
        veritysetup(&["verify", &data, &ours, &root])
            .unwrap_or_else(|error| panic!("{blocks} blocks: {error}"));
        let mut hash_device = File::open(&theirs).unwrap();
        if blocks > 1 {
            verity::check(&mut input, &mut hash_device, &made.root_hash, 2).unwrap();
        }
    }
}

#[test]
fn both_find_the_same_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, hashes) = (path("data"), path("hashes"));
    write_sample(Path::new(&data), 200);
    let mut out = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&hashes)
        .unwrap();
    let made = verity::format(&mut File::open(&data).unwrap(), SALT, UUID, &mut out, 2).unwrap();
    let mut bytes = fs::read(&data).unwrap();
    bytes[137 * 4096 + 11] ^= 0x40;
    fs::write(&data, bytes).unwrap();
    assert!(veritysetup(&["verify", &data, &hashes, &hex(&made.root_hash)]).is_err());
    let error = verity::check(&mut File::open(&data).unwrap(), &mut out, &made.root_hash, 2).unwrap_err();
    assert!(error.to_string().contains("data block 137 "), "{error}");
}
