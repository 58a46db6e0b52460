//! Root filesystems.

use std::io::{Cursor, Read};

use kimage_builder::partitions::squashfs::{Node, Options, Reader, write};
use kimage_builder::progress::Progress;
use kimage_builder::tree::{Entry, Tree, TreePath};

/// Entries and bytes that are looked at: an image of a few bytes can claim many.
const MOST_ENTRIES: usize = 500;
const MOST_BYTES: u64 = 1 << 20;

/// An image: each path that is listed is found again, and a file has no more bytes than it says.
pub(crate) fn squashfs(data: &[u8]) -> bool {
    let Ok(reader) = Reader::open(Cursor::new(data), 0..data.len() as u64) else {
        return false;
    };
    let mut left = MOST_BYTES;
    let mut last: Option<TreePath> = None;
    for entry in reader.entries().take(MOST_ENTRIES) {
        let Ok((path, metadata)) = entry else { break };
        assert!(last.is_none_or(|last| last < path), "the order of {path}");
        if let Node::File(content) = &metadata.kind
            && let Ok(file) = reader.file(content)
        {
            left -= std::io::copy(&mut file.take(left), &mut std::io::sink()).unwrap_or(0);
        }
        last = Some(path);
    }
    last.is_some()
}

/// A small tree in small blocks: files, a fragment, a sparse file, attributes, links.
pub(crate) fn squashfs_seeds() -> Vec<Vec<u8>> {
    let mut tree = Tree::new(1_700_000_000);
    let mut put = |path: &str, entry: Entry| {
        tree.insert(TreePath::parse(path.as_bytes()).unwrap(), entry)
            .unwrap()
    };
    put("bin", Entry::directory(0o755));
    let mut ping = Entry::bytes(
        0o755,
        (0..9000u32)
            .map(|place| (place * place / 7) as u8)
            .collect::<Vec<u8>>(),
    );
    ping.xattrs.insert(b"security.capability".to_vec(), vec![1; 20]);
    put("bin/ping", ping);
    put("hosts", Entry::bytes(0o644, *b"127.0.0.1 localhost\n"));
    put("link", Entry::symlink("bin/ping"));
    put("sparse", Entry::bytes(0o644, vec![0; 8192]));
    let mut images = Vec::new();
    for block_size in [4096, 131_072] {
        let options = Options {
            block_size,
            level: 3,
            threads: 1,
        };
        let mut out = Cursor::new(Vec::new());
        write(&tree, &options, None, &mut out, &Progress::silent()).unwrap();
        images.push(out.into_inner());
    }
    images
}
