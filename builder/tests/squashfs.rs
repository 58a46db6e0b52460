//! Our squashfs images against squashfs-tools and the kernel (Debian and Ubuntu: squashfs-tools; run as root for the
//! claims about owners and mounting).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "oracle/tool.rs"]
mod oracle;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kimage_builder::digest::Digest;
use kimage_builder::partitions::squashfs::{Ahead, BlockCache, Node, Options, Reader, write};
use kimage_builder::progress::Progress;
use kimage_builder::tree::{Content, Entry, Kind, Tree, TreePath};
use oracle::tool;
use tempfile::TempDir;

const MTIME: u32 = 1_700_000_000;
const OPTIONS: Options = Options {
    block_size: 128 << 10,
    level: 3,
    threads: 2,
};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Bytes that do not compress; every seed gives others.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// A tree with one of everything that a root filesystem may hold.
fn rich_tree(folder: &Path) -> Tree {
    let mut tree = Tree::new(MTIME);
    let mut put = |name: &str, entry: Entry| tree.insert(path(name), entry).unwrap();
    put("bin", Entry::directory(0o755));
    put("bin/ping", {
        let mut entry = Entry::bytes(0o755, noise(1, 300_000));
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        entry.xattrs.insert(b"security.capability".to_vec(), capability);
        entry.xattrs.insert(b"user.note".to_vec(), vec![b'x'; 3_000]);
        entry
    });
    put(
        "bin/su",
        Entry {
            mode: 0o4755,
            uid: 0,
            gid: 70_000,
            ..Entry::bytes(0o755, &b"su"[..])
        },
    );
    put("copy-of-ping", Entry::bytes(0o600, noise(1, 300_000)));
    put("dev", Entry::directory(0o755));
    let console = Kind::CharacterDevice { major: 5, minor: 1 };
    put(
        "dev/console",
        Entry {
            kind: console,
            ..Entry::directory(0o600)
        },
    );
    let high = Kind::CharacterDevice {
        major: 4095,
        minor: 0xf_fedc,
    };
    put(
        "dev/high",
        Entry {
            kind: high,
            ..Entry::directory(0o622)
        },
    );
    put(
        "dev/initctl",
        Entry {
            kind: Kind::Fifo,
            ..Entry::directory(0o600)
        },
    );
    put("empty", Entry::directory(0o1777));
    put("empty-file", Entry::bytes(0o644, &b""[..]));
    put("exactly-one-block", Entry::bytes(0o644, noise(2, 128 << 10)));
    put("link", Entry::symlink(&b"bin/ping"[..]));
    put("long-link", Entry::symlink(vec![b'a'; 4000]));
    put("many", Entry::directory(0o755));
    for number in 0..3000 {
        let text = format!("file number {number}\n");
        put(
            &format!("many/a-rather-long-name-of-a-file-{number:05}"),
            Entry::bytes(0o644, text.into_bytes()),
        );
    }
    put(
        "many/sub",
        Entry {
            uid: 1000,
            gid: 1001,
            ..Entry::directory(0o750)
        },
    );
    put("sparse", {
        let mut bytes = vec![0; 700_000];
        bytes[200_000] = 1;
        Entry::bytes(0o644, bytes)
    });
    put("zeros", Entry::bytes(0o644, vec![0; 50_000]));
    let on_disk = folder.join("content");
    let bytes: Vec<u8> = (0..200_000u32)
        .flat_map(|number| format!("{number} ").into_bytes())
        .collect();
    fs::write(&on_disk, &bytes).unwrap();
    let kind = Kind::File {
        size: bytes.len() as u64,
        digest: Digest::of(&bytes),
        content: Content::File(on_disk),
    };
    put(
        "text",
        Entry {
            kind,
            ..Entry::directory(0o640)
        },
    );
    put(
        "\u{fc}mlaut",
        Entry::bytes(0o644, &b"name of more than ASCII"[..]),
    );
    tree
}

fn image(tree: &Tree, options: &Options, cache: Option<&BlockCache>) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let written = write(tree, options, cache, &mut out, &Progress::silent()).unwrap();
    assert_eq!(written.bytes, out.get_ref().len() as u64);
    assert_eq!(written.bytes % 4096, 0);
    out.into_inner()
}

fn image_file(tree: &Tree, folder: &Path) -> PathBuf {
    let file = folder.join("image");
    fs::write(&file, image(tree, &OPTIONS, None)).unwrap();
    file
}

fn open(bytes: &[u8]) -> Reader<Cursor<&[u8]>> {
    Reader::open(Cursor::new(bytes), 0..bytes.len() as u64).unwrap()
}

/// Fails unless the files below `folder` are those of `tree`.
fn assert_folder_is(tree: &Tree, folder: &Path) {
    for (path, entry) in tree.entries() {
        let host = path.under(folder);
        let found = fs::symlink_metadata(&host).unwrap_or_else(|error| panic!("{path}: {error}"));
        let kind = found.file_type();
        if !kind.is_symlink() {
            assert_eq!(found.mode() & 0o7777, u32::from(entry.mode), "{path}");
        }
        assert_eq!(
            (found.uid(), found.gid()),
            (entry.uid, entry.gid),
            "{path}: run as root"
        );
        assert_eq!(found.mtime(), i64::from(MTIME), "{path}");
        match &entry.kind {
            Kind::Directory => {
                let children = fs::read_dir(&host).unwrap().count();
                let wanted = tree
                    .entries()
                    .filter(|(other, _)| other.parent().as_ref() == Some(path))
                    .count();
                assert_eq!(children, wanted, "{path}");
            }
            Kind::File { .. } => assert!(
                fs::read(&host).unwrap() == entry.read().unwrap(),
                "{path}: other content"
            ),
            Kind::Symlink(target) => {
                assert_eq!(
                    fs::read_link(&host).unwrap().as_os_str().as_bytes(),
                    target,
                    "{path}"
                );
            }
            Kind::CharacterDevice { major, minor } => {
                let wanted = rustix::fs::makedev(*major, *minor);
                assert!(
                    kind.is_char_device() && found.rdev() == wanted,
                    "{path}: run as root"
                );
            }
            Kind::Fifo => assert!(kind.is_fifo(), "{path}"),
        }
        for (name, value) in &entry.xattrs {
            let mut buffer = vec![0; 65_536];
            let name = std::ffi::OsStr::from_bytes(name);
            let length = rustix::fs::lgetxattr(&host, name, &mut buffer[..]).unwrap();
            assert_eq!(&buffer[..length], value, "{path}: {name:?}");
        }
    }
}

#[test]
fn unsquashfs_finds_the_tree() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let image = image_file(&tree, folder.path());
    let out = folder.path().join("out");
    let child = tool("unsquashfs").args(["-q", "-n", "-strict-errors", "-xattrs", "-d"]);
    child
        .arg(&out)
        .arg(&image)
        .run()
        .expect("install squashfs-tools, run as root");
    assert_folder_is(&tree, &out);
}

#[test]
fn the_kernel_mounts_the_image_and_finds_the_tree() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let image = image_file(&tree, folder.path());
    let mount = folder.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let child = tool("mount").args(["-t", "squashfs", "-o", "loop,ro"]);
    child
        .arg(&image)
        .arg(&mount)
        .run()
        .expect("run as root on a kernel with loop devices and squashfs-zstd");
    let result = std::panic::catch_unwind(|| {
        assert_folder_is(&tree, &mount);
        // Looked up by name, through the index of the directory.
        assert!(!mount.join("many/a-rather-long-name-of-a-file-99999").exists());
    });
    tool("umount").arg(&mount).run().unwrap();
    result.unwrap();
}

#[test]
fn our_reader_finds_the_tree() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let bytes = image(&tree, &OPTIONS, None);
    let reader = open(&bytes);
    let entries: Vec<_> = reader.entries().collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.len(), tree.entries().len());
    for ((found_path, found), (path, entry)) in entries.iter().zip(tree.entries()) {
        assert_eq!(found_path, path);
        assert_eq!(
            (found.mode, found.uid, found.gid),
            (entry.mode, entry.uid, entry.gid),
            "{path}"
        );
        assert_eq!((found.mtime, &found.xattrs), (MTIME, &entry.xattrs), "{path}");
        match (&entry.kind, &found.kind) {
            (Kind::Directory, Node::Directory) | (Kind::Fifo, Node::Fifo) => {}
            (Kind::Symlink(target), Node::Symlink(found)) => assert_eq!(target, found),
            (Kind::CharacterDevice { major, minor }, found) => {
                assert_eq!(
                    *found,
                    Node::CharacterDevice {
                        major: *major,
                        minor: *minor
                    }
                );
            }
            (Kind::File { size, digest, .. }, Node::File(found)) => {
                assert_eq!(found.size(), *size, "{path}");
                assert_eq!(
                    Digest::of_reader(reader.file(found).unwrap()).unwrap(),
                    (*digest, *size),
                    "{path}"
                );
            }
            (wanted, found) => panic!("{path}: {found:?} instead of {wanted:?}"),
        }
        assert_eq!(reader.get(path).unwrap().as_ref(), Some(found), "{path}");
    }
    assert_eq!(reader.get(&path("many/absent")).unwrap(), None);
    let mut text = Vec::new();
    reader
        .read_file(&path("many/a-rather-long-name-of-a-file-00042"))
        .unwrap()
        .read_to_end(&mut text)
        .unwrap();
    assert_eq!(text, b"file number 42\n");
}

#[test]
fn our_reader_reads_what_mksquashfs_writes() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let (ours, unpacked, theirs) = (image_file(&tree, folder.path()), "unpacked", "theirs");
    let (unpacked, theirs) = (folder.path().join(unpacked), folder.path().join(theirs));
    let child = tool("unsquashfs")
        .args(["-q", "-n", "-xattrs", "-d"])
        .arg(&unpacked)
        .arg(&ours);
    child.run().expect("install squashfs-tools, run as root");
    let make = |compression: &str| {
        let child = tool("mksquashfs").arg(&unpacked).arg(&theirs);
        child
            .args(["-comp", compression, "-noappend", "-quiet", "-no-progress"])
            .run()
            .unwrap();
    };
    make("zstd");
    let length = fs::metadata(&theirs).unwrap().len();
    let reader = Reader::open(File::open(&theirs).unwrap(), 0..length).unwrap();
    let entries: BTreeMap<_, _> = reader.entries().collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.len(), tree.entries().len());
    for (path, entry) in tree.entries() {
        let found = &entries[path];
        assert_eq!(
            (found.uid, found.gid, &found.xattrs),
            (entry.uid, entry.gid, &entry.xattrs),
            "{path}"
        );
        if let (Kind::File { size, digest, .. }, Node::File(found)) = (&entry.kind, &found.kind) {
            assert_eq!(
                Digest::of_reader(reader.file(found).unwrap()).unwrap(),
                (*digest, *size),
                "{path}"
            );
        }
    }
    make("xz");
    let error = Reader::open(File::open(&theirs).unwrap(), 0..1 << 30)
        .err()
        .unwrap();
    assert!(error.to_string().contains("compressed with xz"), "{error}");
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_cache() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let plain = image(&tree, &OPTIONS, None);
    for threads in [1, 3, 8, 1000] {
        assert!(
            image(&tree, &Options { threads, ..OPTIONS }, None) == plain,
            "{threads} threads"
        );
    }
    let cache = BlockCache::open(&folder.path().join("cache"), 1 << 30).unwrap();
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain, "cold cache");
    let entries = || {
        fs::read_dir(folder.path().join("cache"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    assert!(entries().count() > 4);
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain, "warm cache");
    // The source is no longer read: its content is known by digest.
    fs::remove_file(folder.path().join("content")).unwrap();
    assert!(
        image(&tree, &OPTIONS, Some(&cache)) == plain,
        "warm cache without the source"
    );
    assert_ne!(image_with_level(&tree, folder.path(), 1, &cache), plain);
}

fn image_with_level(tree: &Tree, folder: &Path, level: i32, cache: &BlockCache) -> Vec<u8> {
    rich_tree(folder);
    image(tree, &Options { level, ..OPTIONS }, Some(cache))
}

#[test]
fn a_damaged_cache_changes_nothing_and_is_mended() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let plain = image(&tree, &OPTIONS, None);
    let place = folder.path().join("cache");
    let cache = BlockCache::open(&place, 1 << 30).unwrap();
    image(&tree, &OPTIONS, Some(&cache));
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&place)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
            .into_iter()
            .map(|file| (file.clone(), fs::read(file).unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    let whole = files();
    for (at, (file, bytes)) in whole.iter().enumerate() {
        let mut damaged = bytes.clone();
        match at % 3 {
            0 => damaged[0] ^= 1,
            1 => damaged.truncate(bytes.len() / 2),
            _ => *damaged.last_mut().unwrap() ^= 1,
        }
        fs::write(file, damaged).unwrap();
    }
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain);
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain);
    assert!(files() == whole, "the cache is whole again");
}

#[test]
fn the_cache_keeps_to_its_limit() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let sizes = |place: &Path| -> Vec<u64> {
        let entries = fs::read_dir(place).unwrap();
        entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect()
    };
    let roomy = folder.path().join("roomy");
    image(&tree, &OPTIONS, Some(&BlockCache::open(&roomy, 1 << 30).unwrap()));
    // Whichever entry is the newest one, it may stay.
    let limit = sizes(&roomy).into_iter().max().unwrap();
    assert!(limit < sizes(&roomy).iter().sum());
    let place = folder.path().join("cache");
    let cache = BlockCache::open(&place, limit).unwrap();
    let plain = image(&tree, &OPTIONS, Some(&cache));
    let total: u64 = sizes(&place).iter().sum();
    assert!((1..=limit).contains(&total), "{total}");
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain);
}

#[test]
fn equal_files_are_stored_once() {
    let mut tree = Tree::new(MTIME);
    tree.insert(path("a"), Entry::bytes(0o644, noise(5, 1_000_000)))
        .unwrap();
    tree.insert(path("small-a"), Entry::bytes(0o644, noise(6, 100_000)))
        .unwrap();
    let once = image(&tree, &OPTIONS, None).len();
    tree.insert(path("b"), Entry::bytes(0o600, noise(5, 1_000_000)))
        .unwrap();
    tree.insert(path("small-b"), Entry::bytes(0o600, noise(6, 100_000)))
        .unwrap();
    assert!(image(&tree, &OPTIONS, None).len() <= once + 4096);
}

#[test]
fn what_squashfs_cannot_hold_is_refused_with_its_path() {
    let refused = |entry: Entry| {
        let mut tree = Tree::new(MTIME);
        tree.insert(path("odd"), entry).unwrap();
        let mut out = Cursor::new(Vec::new());
        format!(
            "{:#}",
            write(&tree, &OPTIONS, None, &mut out, &Progress::silent()).unwrap_err()
        )
    };
    let mut acl = Entry::directory(0o755);
    acl.xattrs.insert(b"system.posix_acl_access".to_vec(), vec![1]);
    let text = refused(acl);
    assert!(
        text.contains("/odd") && text.contains("system.posix_acl_access"),
        "{text}"
    );
    let device = Kind::CharacterDevice {
        major: 5000,
        minor: 0,
    };
    let text = refused(Entry {
        kind: device,
        ..Entry::directory(0o600)
    });
    assert!(text.contains("/odd") && text.contains("5000:0"), "{text}");
    let text = refused(Entry::symlink(vec![b'x'; 5000]));
    assert!(text.contains("/odd") && text.contains("5000 bytes"), "{text}");
    let gone = Kind::File {
        content: Content::File("/nonexistent/kimage".into()),
        size: 3,
        digest: Digest::of(b"abc"),
    };
    let text = refused(Entry {
        kind: gone,
        ..Entry::directory(0o600)
    });
    assert!(
        text.contains("/odd") && text.contains("/nonexistent/kimage"),
        "{text}"
    );
}

mod hostile {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::{Cursor, Entry, MTIME, OPTIONS, Read, Reader, Tree, image, noise, path};
    use kimage_builder::partitions::squashfs::Node;

    fn small_image() -> Vec<u8> {
        let mut tree = Tree::new(MTIME);
        tree.insert(path("folder"), Entry::directory(0o755)).unwrap();
        for number in 0..40 {
            let mut entry = Entry::bytes(0o644, format!("{number}").into_bytes());
            entry.xattrs.insert(b"user.number".to_vec(), vec![number]);
            tree.insert(path(&format!("folder/{number:02}")), entry).unwrap();
        }
        tree.insert(path("big"), Entry::bytes(0o644, noise(3, 300_000)))
            .unwrap();
        tree.insert(path("link"), Entry::symlink(&b"big"[..])).unwrap();
        image(&tree, &OPTIONS, None)
    }

    /// Reads everything that can be read; says how many entries there were.
    fn read_all(bytes: &[u8]) -> usize {
        let Ok(reader) = Reader::open(Cursor::new(bytes), 0..bytes.len() as u64) else {
            return 0;
        };
        let mut count = 0;
        for (_, metadata) in reader.entries().map_while(Result::ok) {
            count += 1;
            if let Node::File(content) = metadata.kind
                && let Ok(file) = reader.file(&content)
            {
                // A hostile image may claim a file of any size.
                let _ = file.take(1 << 20).read_to_end(&mut Vec::new());
            }
        }
        count
    }

    #[test]
    fn the_undamaged_image_is_read_whole() {
        assert_eq!(read_all(&small_image()), 44);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_changed_image_never_panics(
            changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
            in_tables in any::<bool>(),
        ) {
            let mut bytes = small_image();
            let tables = bytes.len() - 4096;
            for (at, value) in changes {
                let at = if in_tables { tables + usize::from(at) % 4096 } else { usize::from(at) % 110 };
                bytes[at] = value;
            }
            read_all(&bytes);
        }

        #[test]
        fn a_cut_image_never_panics(length in 0usize..320_000) {
            let bytes = small_image();
            read_all(&bytes[..length.min(bytes.len())]);
        }
    }
}

fn compress_ahead(tree: &Tree, cache: &BlockCache) {
    let ahead = Ahead::start(&OPTIONS, &Progress::silent());
    ahead.add(tree.entries(), cache);
    ahead.finish();
}

fn count(place: &Path) -> usize {
    fs::read_dir(place).unwrap().count()
}

#[test]
fn files_compressed_ahead_are_not_compressed_again_and_change_no_byte() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let plain = image(&tree, &OPTIONS, None);
    let places = ["ahead", "rest", "all"].map(|name| folder.path().join(name));
    let [ahead, rest, all] = places
        .each_ref()
        .map(|place| BlockCache::open(place, 1 << 30).unwrap());
    compress_ahead(&tree, &ahead);
    let big = count(&places[0]);
    assert!(big > 0);
    // The content is no longer there to be compressed again.
    fs::remove_file(folder.path().join("content")).unwrap();
    compress_ahead(&tree, &ahead);
    assert!(image(&tree, &OPTIONS, Some(&rest.reading(&ahead))) == plain);
    rich_tree(folder.path());
    assert!(image(&tree, &OPTIONS, Some(&all)) == plain);
    assert_eq!(
        count(&places[2]),
        big + count(&places[1]),
        "each block is in one of them"
    );
}

#[test]
fn a_file_that_changed_before_it_was_compressed_leaves_nothing_in_the_cache() {
    let folder = TempDir::new().unwrap();
    let tree = rich_tree(folder.path());
    let plain = image(&tree, &OPTIONS, None);
    let place = folder.path().join("cache");
    let cache = BlockCache::open(&place, 1 << 30).unwrap();
    let content = folder.path().join("content");
    let bytes = fs::read(&content).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    for other in [&changed[..], &bytes[..bytes.len() - 1], b""] {
        fs::write(&content, other).unwrap();
        compress_ahead(&tree, &cache);
        assert_eq!(count(&place), 0, "a file of {} bytes", other.len());
    }
    fs::write(&content, &bytes).unwrap();
    compress_ahead(&tree, &cache);
    assert!(count(&place) > 0);
    assert!(image(&tree, &OPTIONS, Some(&cache)) == plain);
}
