//! The disk as tools that others wrote see it: `sgdisk`, `fsck.vfat`, `mtools`, `qemu-img` (Debian packages `gdisk`,
//! `dosfstools`, `mtools`, `qemu-utils`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "oracle/tool.rs"]
mod oracle;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use kimage_builder::digest::Digest;
use kimage_builder::disk::gpt::Gpt;
use kimage_builder::disk::{self, Content, Disk, qcow2};
use kimage_builder::partitions::esp::{Esp, EspFile};
use oracle::tool;

/// Bytes that do not compress, the same each time.
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

struct Sample {
    folder: tempfile::TempDir,
    disk: Disk,
    files: Vec<(&'static str, Vec<u8>)>,
    root: Vec<u8>,
}

impl Sample {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A disk with a root filesystem of `root` bytes.
fn sample(root: usize) -> Sample {
    let folder = tempfile::tempdir().unwrap();
    let files = vec![
        ("EFI/BOOT/BOOTX64.EFI", noise(95_232, 1)),
        (
            "EFI/Linux/kimage_2026.11.1-control-plane+3.efi",
            noise(9_000_001, 2),
        ),
        (
            "EFI/Linux/kimage_2026.11.2-control-plane+3.efi",
            b"another".to_vec(),
        ),
        ("EFI/systemd/systemd-bootx64.efi", noise(95_232, 1)),
        ("loader/entries.srel", b"type1\n".to_vec()),
        ("loader/keys/auto/PK.auth", noise(2047, 3)),
        ("loader/keys/auto/db.auth", noise(2048, 4)),
        ("loader/loader.conf", Vec::new()),
    ];
    let mut root = noise(root, 5);
    // Something that compresses and something that is nothing.
    root[200_000..400_000].fill(b'k');
    root[500_000..900_000].fill(0);
    let (root_path, verity_path) = (folder.path().join("root"), folder.path().join("verity"));
    fs::write(&root_path, &root).unwrap();
    fs::write(&verity_path, noise(100_000, 6)).unwrap();
    let esp: Vec<_> = files.iter().map(|(path, data)| EspFile { path, data }).collect();
    let content = Content {
        esp: &esp,
        epoch: 1_700_000_000,
        root: &root_path,
        verity: &verity_path,
        hash_tree_room: 0,
        root_hash: &Digest::of(b"root"),
    };
    let disk = disk::assemble(&content, &folder.path().join("disk.raw")).unwrap();
    let again = disk::assemble(&content, &folder.path().join("again.raw")).unwrap();
    assert_eq!(
        Digest::of_file(&disk.path).unwrap(),
        Digest::of_file(&again.path).unwrap()
    );
    fs::remove_file(again.path).unwrap();
    Sample {
        folder,
        disk,
        files,
        root,
    }
}

#[test]
fn sgdisk_finds_the_partitions_and_no_problems() {
    let sample = sample(5_000_000);
    let text = |arguments: &[&str]| {
        let output = tool("sgdisk")
            .args(arguments)
            .arg(&sample.disk.path)
            .run()
            .unwrap();
        String::from_utf8(output).unwrap()
    };
    let verified = text(&["--verify"]);
    assert!(verified.contains("No problems found"), "{verified}");
    let root = text(&["--info=3"]).to_lowercase();
    let hash = Digest::of(b"root").to_string();
    let uuid = format!(
        "{}-{}-{}-{}-{}",
        &hash[..8],
        &hash[8..12],
        &hash[12..16],
        &hash[16..20],
        &hash[20..32]
    );
    for part in [
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        &uuid,
        "'root-a'",
        "1000000000000000",
        "partition size: 10240 ",
    ] {
        assert!(root.contains(part), "{part}: {root}");
    }
    let partition = &sample.disk.partitions[2];
    let mut bytes = vec![0; sample.root.len()];
    let file = File::open(&sample.disk.path).unwrap();
    file.read_exact_at(&mut bytes, partition.start).unwrap();
    assert!(bytes == sample.root);
    assert_eq!(Gpt::read(&file).unwrap().partitions, sample.disk.partitions);
    assert!(
        file.metadata().unwrap().blocks() * 512 < 40 << 20,
        "holes were filled"
    );
}

#[test]
fn fsck_and_mtools_read_the_boot_partition() {
    let sample = sample(2_000_000);
    let partition = &sample.disk.partitions[0];
    let image = sample.path("esp.img");
    let mut bytes = vec![0; partition.size as usize];
    File::open(&sample.disk.path)
        .unwrap()
        .read_exact_at(&mut bytes, partition.start)
        .unwrap();
    fs::write(&image, bytes).unwrap();
    let checked = tool("fsck.vfat").args(["-n", "-v"]).arg(&image).run().unwrap();
    let checked = String::from_utf8(checked).unwrap();
    assert!(
        checked.contains("32 bits") || checked.contains("FAT32") || checked.contains("FATs, 32"),
        "{checked}"
    );
    for (path, data) in &sample.files {
        let copy = sample.path("copy");
        tool("mcopy")
            .args(["-n", "-o", "-i"])
            .arg(&image)
            .arg(format!("::/{path}"))
            .arg(&copy)
            .run()
            .unwrap();
        assert!(&fs::read(&copy).unwrap() == data, "{path}");
    }
    let listing = tool("mdir")
        .args(["-i"])
        .arg(&image)
        .arg("::/EFI/Linux")
        .env("TZ", "UTC")
        .run()
        .unwrap();
    let listing = String::from_utf8(listing).unwrap();
    assert!(
        listing.contains("kimage_2026.11.1-control-plane+3.efi") && listing.contains("2023-11-14"),
        "{listing}"
    );

    let file = File::open(&sample.disk.path).unwrap();
    let esp = Esp::read(&file, partition.start, partition.size).unwrap();
    assert_eq!(esp.files().count(), sample.files.len());
    for (path, data) in &sample.files {
        assert!(&esp.file(path).unwrap() == data, "{path}");
    }
}

#[test]
fn our_reader_reads_what_another_wrote_into_the_filesystem() {
    let sample = sample(2_000_000);
    let offset = format!(
        "{}@@{}",
        sample.disk.path.display(),
        sample.disk.partitions[0].start
    );
    let local = sample.path("local");
    fs::write(&local, noise(300_000, 9)).unwrap();
    tool("mcopy")
        .args(["-i", &offset])
        .arg(&local)
        .arg("::/EFI/Linux/A Name of Another Kind.efi")
        .run()
        .unwrap();
    tool("mren")
        .args(["-i", &offset, "::/loader/loader.conf", "moved-loader.conf"])
        .run()
        .unwrap();
    let file = File::open(&sample.disk.path).unwrap();
    let esp = Esp::read(
        &file,
        sample.disk.partitions[0].start,
        sample.disk.partitions[0].size,
    )
    .unwrap();
    assert!(esp.file("EFI/Linux/A Name of Another Kind.efi").unwrap() == noise(300_000, 9));
    assert!(esp.file("loader/moved-loader.conf").unwrap().is_empty());
}

/// Our own reader finds in `out` what is in `raw`.
fn compare_by_ourselves(raw: &Path, out: &Path) {
    let image = qcow2::Image::open(File::open(out).unwrap()).unwrap();
    let raw = File::open(raw).unwrap();
    assert_eq!(image.size(), raw.metadata().unwrap().len());
    image.compare(&raw, 0..image.clusters()).unwrap();
}

fn check_qcow2(raw: &Path, out: &Path) {
    compare_by_ourselves(raw, out);
    let checked = tool("qemu-img").arg("check").arg(out).run().unwrap();
    let checked = String::from_utf8(checked).unwrap();
    assert!(checked.contains("No errors were found"), "{checked}");
    let compared = tool("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .arg(raw)
        .arg(out)
        .run()
        .unwrap();
    assert!(
        String::from_utf8(compared)
            .unwrap()
            .contains("Images are identical")
    );
}

#[test]
fn qemu_img_finds_the_qcow2_sound_and_equal_to_the_raw_disk() {
    let sample = sample(30_000_000);
    let (one, two) = (sample.path("one.qcow2"), sample.path("two.qcow2"));
    let length = qcow2::write(&sample.disk.path, &one).unwrap();
    assert_eq!(length, one.metadata().unwrap().len());
    assert!(length < 45_000_000, "{length}");
    check_qcow2(&sample.disk.path, &one);
    qcow2::write(&sample.disk.path, &two).unwrap();
    assert_eq!(Digest::of_file(&one).unwrap(), Digest::of_file(&two).unwrap());
}

#[test]
fn our_reader_agrees_with_qemu_img_about_what_qemu_img_wrote() {
    let sample = sample(5_000_000);
    let raw = &sample.disk.path;
    let out = sample.path("theirs.qcow2");
    // Not "512": there qemu-img outgrows its first table of refcounts and leaves the bytes where they were, and bytes that
    // nobody owns are refused.
    for (compress, cluster) in [
        (false, "64k"),
        (true, "64k"),
        (false, "4k"),
        (true, "4k"),
        (true, "2M"),
    ] {
        let mut convert = tool("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", "-o"]);
        convert = convert.args([format!("cluster_size={cluster}")]);
        if compress {
            convert = convert.args(["-c"]);
        }
        convert.arg(raw).arg(&out).run().unwrap();
        compare_by_ourselves(raw, &out);
        // One changed byte of the raw disk shows in both.
        let file = File::options().read(true).write(true).open(raw).unwrap();
        let place = sample.disk.partitions[2].start + 1_000_000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
        let image = qcow2::Image::open(File::open(&out).unwrap()).unwrap();
        assert!(image.compare(&file, 0..image.clusters()).is_err());
        let differ = tool("qemu-img").args(["compare", "-q", "-f", "raw", "-F", "qcow2"]);
        assert!(differ.arg(raw).arg(&out).run().is_err());
        file.write_all_at(&byte, place).unwrap();
    }
}

#[test]
fn qcow2_of_odd_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (folder.path().join("raw"), folder.path().join("qcow2"));
    let text: Vec<u8> = (0..3_000_000u32)
        .flat_map(|number| format!("{number} ").into_bytes())
        .collect();
    for (size, pieces) in [
        (512, vec![(0, b"x".to_vec())]),
        (65536 + 512, vec![(65536, noise(512, 7))]),
        (1 << 20, vec![]),
        // Two level-1 entries, and text next to noise.
        (
            (512 << 20) + 4096,
            vec![
                (1000, text),
                (300 << 20, noise(5_000_000, 8)),
                (512 << 20, noise(4096, 9)),
            ],
        ),
    ] {
        let file = File::create(&raw).unwrap();
        file.set_len(size).unwrap();
        for (place, bytes) in pieces {
            file.write_all_at(&bytes, place).unwrap();
        }
        qcow2::write(&raw, &out).unwrap();
        check_qcow2(&raw, &out);
    }
}
