//! The index of a cached layer: every entry with mode, owner and digest, so that a layer is loaded without looking at
//! its files. Integers are little-endian:
//!
//! ```text
//! magic "kimage tree index 1\n" | mtime u32 | count u32 | count x entry | SHA-256 of all before
//! entry: path len u16, bytes | kind u8 | mode u16 | uid u32 | gid u32 | xattrs u8 x (len u8, name, len u16, value)
//!        | file: size u64, digest 32 | link: len u16, target | character device: major u32, minor u32
//! ```
//! Kind [`REMOVED`] stands alone behind its path: a path of the layer below that is gone.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::value::{Content, Entry, Kind, TreePath};
use crate::digest::Digest;

const MAGIC: &[u8] = b"kimage tree index 1\n";
const MOST_ENTRIES: u32 = 2_000_000;
const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;
const CHARACTER: u8 = 3;
const FIFO: u8 = 4;
const REMOVED: u8 = 255;

/// The entries of a layer; `None` removes a path of the layer below with all that it holds.
pub type Entries = BTreeMap<TreePath, Option<Entry>>;

/// The index's bytes.
pub fn encode(entries: &Entries, mtime: u32) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(mtime.to_le_bytes());
    out.extend(u32::try_from(entries.len())?.to_le_bytes());
    for (path, entry) in entries {
        text(&mut out, &path.to_bytes()).with_context(|| path.to_string())?;
        match entry {
            None => out.push(REMOVED),
            Some(entry) => encode_entry(&mut out, entry).with_context(|| path.to_string())?,
        }
    }
    let digest = Digest::of(&out);
    out.extend(digest.as_bytes());
    Ok(out)
}

/// Reads an index whose files lie below `root`.
pub fn decode(bytes: &[u8], root: &Path) -> Result<(Entries, u32)> {
    let Some((body, sum)) = bytes.split_last_chunk::<32>() else {
        bail!("index: truncated")
    };
    if Digest::of(body).as_bytes() != sum {
        bail!("index: damaged");
    }
    let mut reader = Reader { rest: body };
    if reader.take(MAGIC.len())? != MAGIC {
        bail!("index: of another version");
    }
    let mtime = reader.u32()?;
    let count = reader.u32()?;
    if count > MOST_ENTRIES {
        bail!("index: {count} entries");
    }
    let mut entries = Entries::new();
    for _ in 0..count {
        let path = TreePath::parse(reader.text()?)?;
        let entry = decode_entry(&mut reader, &path, root).with_context(|| format!("index: {path}"))?;
        if entries.last_key_value().is_some_and(|(last, _)| *last >= path) {
            bail!("index: {path} is out of order");
        }
        entries.insert(path, entry);
    }
    if !reader.rest.is_empty() {
        bail!("index: bytes behind the end");
    }
    Ok((entries, mtime))
}

fn encode_entry(out: &mut Vec<u8>, entry: &Entry) -> Result<()> {
    out.push(match entry.kind {
        Kind::Directory => DIRECTORY,
        Kind::File { .. } => FILE,
        Kind::Symlink(_) => SYMLINK,
        Kind::CharacterDevice { .. } => CHARACTER,
        Kind::Fifo => FIFO,
    });
    out.extend(entry.mode.to_le_bytes());
    out.extend(entry.uid.to_le_bytes());
    out.extend(entry.gid.to_le_bytes());
    out.push(u8::try_from(entry.xattrs.len())?);
    for (name, value) in &entry.xattrs {
        out.push(u8::try_from(name.len())?);
        out.extend(name);
        text(out, value)?;
    }
    match &entry.kind {
        Kind::Directory | Kind::Fifo => {}
        Kind::File { size, digest, .. } => {
            out.extend(size.to_le_bytes());
            out.extend(digest.as_bytes());
        }
        Kind::Symlink(target) => text(out, target)?,
        Kind::CharacterDevice { major, minor } => {
            out.extend(major.to_le_bytes());
            out.extend(minor.to_le_bytes());
        }
    }
    Ok(())
}

fn decode_entry(reader: &mut Reader<'_>, path: &TreePath, root: &Path) -> Result<Option<Entry>> {
    let kind = reader.array::<1>()?[0];
    if kind == REMOVED {
        return Ok(None);
    }
    let mode = u16::from_le_bytes(reader.array()?);
    if mode > 0o7777 {
        bail!("bad mode {mode:o}");
    }
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let mut xattrs = BTreeMap::new();
    for _ in 0..reader.array::<1>()?[0] {
        let length = usize::from(reader.array::<1>()?[0]);
        let name = reader.take(length)?.to_vec();
        xattrs.insert(name, reader.text()?.to_vec());
    }
    let kind = match kind {
        DIRECTORY => Kind::Directory,
        FIFO => Kind::Fifo,
        SYMLINK => Kind::Symlink(reader.text()?.to_vec()),
        CHARACTER => Kind::CharacterDevice {
            major: reader.u32()?,
            minor: reader.u32()?,
        },
        FILE => {
            let size = u64::from_le_bytes(reader.array()?);
            let digest = Digest::from_bytes(reader.array()?);
            Kind::File {
                content: Content::File(path.under(root)),
                size,
                digest,
            }
        }
        other => bail!("unknown kind {other}"),
    };
    Ok(Some(Entry {
        mode,
        uid,
        gid,
        xattrs,
        kind,
    }))
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    out.extend(
        u16::try_from(bytes.len())
            .context("longer than 65535 bytes")?
            .to_le_bytes(),
    );
    out.extend(bytes);
    Ok(())
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).context("index: truncated")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Entries {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let mut file = Entry::bytes(0o4755, *b"content");
        file.xattrs.insert(b"security.capability".to_vec(), vec![1; 20]);
        let device = Entry {
            kind: Kind::CharacterDevice { major: 1, minor: 3 },
            ..Entry::directory(0o666)
        };
        BTreeMap::from([
            (TreePath::root(), Some(Entry::directory(0o755))),
            (path("a"), Some(file)),
            (
                path("b"),
                Some(Entry {
                    uid: 7,
                    gid: 42,
                    ..Entry::symlink("a")
                }),
            ),
            (path("c"), None),
            (path("null"), Some(device)),
        ])
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = encode(&sample(), 9).unwrap();
        let (entries, mtime) = decode(&bytes, Path::new("/root")).unwrap();
        assert_eq!(mtime, 9);
        assert_eq!(encode(&entries, 9).unwrap(), bytes);
        let file = entries[&TreePath::parse(b"a").unwrap()].as_ref().unwrap();
        assert!(
            matches!(&file.kind, Kind::File { content: Content::File(path), size: 7, .. } if path == Path::new("/root/a"))
        );
        assert!(entries[&TreePath::parse(b"c").unwrap()].is_none());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_never_a_panic(at in 0usize..400, value: u8, resum: bool) {
            let mut bytes = encode(&sample(), 9).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != value);
            bytes[at] = value;
            if resum && at < bytes.len() - 32 {
                let end = bytes.len() - 32;
                let digest = Digest::of(&bytes[..end]);
                bytes[end..].copy_from_slice(digest.as_bytes());
                let _ = decode(&bytes, Path::new("/"));
            } else {
                prop_assert!(decode(&bytes, Path::new("/")).is_err());
            }
        }
    }
}
