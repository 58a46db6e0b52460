//! Go's `h1:` hash of a module: what go.sum and the checksum database pin. It covers names and content, not how the
//! zip was packed, so any proxy's zip gives the same hash.
//!
//! Format: `golang.org/x/mod/sumdb/dirhash`, function `Hash1`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zip::ZipArchive;

use crate::digest::{Digest, Hasher};

/// Most files a module zip may hold (Go's toolchain has about 15 000).
const MOST_FILES: usize = 200_000;
/// Most bytes a module zip may unpack to (Go's own limit is 500 MB for modules; its toolchain has about 250 MB).
const MOST_BYTES: u64 = 2 << 30;

/// The `h1:` hash of the module zip at `path`.
///
/// # Errors
/// When the file is no zip, is damaged, or is larger than any module.
pub(super) fn of_zip(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut archive = ZipArchive::new(file).with_context(|| format!("read {} as zip", path.display()))?;
    if archive.len() > MOST_FILES {
        bail!(
            "{} holds {} files, more than any module",
            path.display(),
            archive.len()
        );
    }
    let mut left = MOST_BYTES;
    let mut files = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .with_context(|| format!("read {}", path.display()))?;
        if entry.is_dir() {
            continue;
        }
        let name = entry
            .name()
            .with_context(|| format!("read {}", path.display()))?
            .into_owned();
        let (digest, length) = Digest::of_reader((&mut entry).take(left + 1))
            .with_context(|| format!("read `{name}` of {}", path.display()))?;
        left = left
            .checked_sub(length)
            .with_context(|| format!("{} unpacks to over {MOST_BYTES} bytes", path.display()))?;
        files.push((name, digest));
    }
    of_files(files)
}

/// The `h1:` hash of files by name.
pub(super) fn of_files(mut files: Vec<(String, Digest)>) -> Result<String> {
    files.sort();
    let mut hasher = Hasher::new();
    for (name, digest) in &files {
        if name.contains('\n') {
            bail!("a file name holds a line break");
        }
        hasher.update(format!("{digest}  {name}\n").as_bytes());
    }
    Ok(format!("h1:{}", STANDARD.encode(hasher.finish().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_files() {
        // builder/tests/components.rs compares with what Go computes.
        let file = |name: &str| (name.to_owned(), Digest::of(format!("data for {name}").as_bytes()));
        let lines = format!("{}  abc\n{}  xyz\n", file("abc").1, file("xyz").1);
        let expected = format!("h1:{}", STANDARD.encode(Digest::of(lines.as_bytes()).as_bytes()));
        assert_eq!(of_files(vec![file("xyz"), file("abc")]).unwrap(), expected);
        assert!(of_files(vec![file("a\nb")]).is_err());
    }
}
