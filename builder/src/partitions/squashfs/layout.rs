//! Which bytes stand where: every distinct content once, big files in blocks of their own, small files packed
//! together. A pure function of the tree.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use crate::digest::{Digest, Hasher};
use crate::tree::{Content, Entry, Kind, Tree, TreePath};

/// A part of a file that is stored as one.
pub(super) struct Piece<'a> {
    /// A path that has this content, for errors.
    pub(super) path: &'a TreePath,
    pub(super) content: &'a Content,
    /// Of the whole file, in bytes.
    pub(super) file_size: u64,
    /// Digest of the whole file.
    pub(super) digest: Digest,
    /// Where the part begins in the file.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// A run of bytes that is cut into blocks, the last one may be short. Either one piece (a big file) or at most one
/// block of many pieces (a fragment block).
#[derive(Default)]
pub(super) struct Extent<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    /// Sum of the pieces, in bytes.
    pub(super) size: u64,
    /// Whether its blocks of zeros become holes: in files they do, a fragment block can't be a hole.
    pub(super) sparse: bool,
}

/// Where a content is to be found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The extent with its blocks; `None` when all of it is in a fragment.
    pub(super) extent: Option<usize>,
    /// The fragment block with its end and where in that block, in bytes.
    pub(super) fragment: Option<(usize, u32)>,
}

/// What is stored, in the order on disk, and where each content is in it.
pub(super) struct Layout<'a> {
    /// Files first, fragment blocks after them.
    pub(super) extents: Vec<Extent<'a>>,
    /// The number of the first fragment block's extent.
    pub(super) first_fragment: usize,
    places: BTreeMap<Digest, Place>,
}

impl Layout<'_> {
    /// Where the content with `digest` is; an empty file is nowhere.
    pub(super) fn place(&self, digest: &Digest) -> Place {
        self.places.get(digest).copied().unwrap_or_default()
    }
}

/// Plans the content of all files of `tree` for blocks of `block_size` bytes.
pub(super) fn plan(tree: &Tree, block_size: u32) -> Result<Layout<'_>> {
    let mut layout = Layout {
        extents: Vec::new(),
        first_fragment: 0,
        places: BTreeMap::new(),
    };
    let mut small = Vec::new();
    for (path, entry) in tree.entries() {
        let Some(piece) = Piece::whole(path, entry) else {
            continue;
        };
        let digest = piece.digest;
        if piece.size == 0 || layout.places.contains_key(&digest) {
            continue;
        }
        let mut place = Place::default();
        if piece.size < u64::from(block_size) {
            small.push(piece);
        } else {
            place.extent = Some(layout.extents.len());
            layout.extents.push(Extent::file(piece));
        }
        layout.places.insert(digest, place);
    }
    layout.first_fragment = layout.extents.len();
    small.sort_by(|a, b| likeness(a.path).cmp(&likeness(b.path)));
    pack(&mut layout, small, block_size)?;
    Ok(layout)
}

/// The extents that the big ones among `files` have in any tree.
pub(super) fn big_files<'a>(
    files: impl IntoIterator<Item = (&'a TreePath, &'a Entry)>,
    block_size: u32,
) -> Vec<Extent<'a>> {
    let mut known = BTreeSet::new();
    let pieces = files
        .into_iter()
        .filter_map(|(path, entry)| Piece::whole(path, entry))
        .filter(|piece| piece.size >= u64::from(block_size) && known.insert(piece.digest));
    pieces.map(Extent::file).collect()
}

/// Files that compress well together get keys next to each other: same ending first, then same folder.
fn likeness(path: &TreePath) -> (&[u8], &TreePath) {
    let name = path.name().unwrap_or_default();
    // `libc.so.6` and `libz.so.1` are of one kind; a leading dot begins a name, no ending.
    let stem = name
        .strip_suffix(b".zst")
        .or(name.strip_suffix(b".gz"))
        .unwrap_or(name);
    if stem.len() < name.len() {
        return (&name[stem.len()..], path);
    }
    let shared_object = name.windows(4).position(|part| part == b".so.");
    let ending = match shared_object {
        Some(_) => &b".so"[..],
        None => name
            .iter()
            .rposition(|byte| *byte == b'.')
            .filter(|at| *at > 0)
            .map_or(&b""[..], |at| &name[at..]),
    };
    (ending, path)
}

/// Fills fragment blocks in order. A block also ends, once it is three quarters full, after a file whose digest says
/// so: when one file changes, the blocks some files later are again the same as before, and come from the cache.
fn pack<'a>(layout: &mut Layout<'a>, pieces: Vec<Piece<'a>>, block_size: u32) -> Result<()> {
    let block_size = u64::from(block_size);
    let mut open = Extent::default();
    for piece in pieces {
        if open.size + piece.size > block_size {
            layout.extents.push(std::mem::take(&mut open));
        }
        let offset = u32::try_from(open.size)?;
        let place = layout
            .places
            .get_mut(&piece.digest)
            .context("a piece without a place")?;
        place.fragment = Some((layout.extents.len(), offset));
        open.size += piece.size;
        let ends = open.size >= block_size / 4 * 3 && piece.digest.as_bytes()[0] < 0x20;
        open.pieces.push(piece);
        if ends {
            layout.extents.push(std::mem::take(&mut open));
        }
    }
    if !open.pieces.is_empty() {
        layout.extents.push(open);
    }
    Ok(())
}

impl<'a> Piece<'a> {
    /// All of a file; `None` when the entry is something else.
    fn whole(path: &'a TreePath, entry: &'a Entry) -> Option<Self> {
        let Kind::File {
            content,
            size,
            digest,
        } = &entry.kind
        else {
            return None;
        };
        Some(Self {
            path,
            content,
            file_size: *size,
            digest: *digest,
            offset: 0,
            size: *size,
        })
    }
}

impl<'a> Extent<'a> {
    /// A big file.
    fn file(piece: Piece<'a>) -> Self {
        Self {
            size: piece.size,
            pieces: vec![piece],
            sparse: true,
        }
    }

    /// The number of blocks of `block_size` bytes.
    pub(super) fn blocks(&self, block_size: u32) -> u64 {
        self.size.div_ceil(u64::from(block_size))
    }

    /// Names the bytes without reading them.
    pub(super) fn key(&self) -> Digest {
        let mut hasher = Hasher::new();
        for piece in &self.pieces {
            hasher.update(piece.digest.as_bytes());
            hasher.update(&piece.offset.to_le_bytes());
            hasher.update(&piece.size.to_le_bytes());
        }
        hasher.finish()
    }
}
