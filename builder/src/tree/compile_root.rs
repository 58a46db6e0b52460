//! The root filesystem that components are compiled in: the C compiler, the linker and the C library as the base's
//! archive has them. Packages are only unpacked. No script runs, because nothing of what they would set up is used:
//! programs are called by the names that packages ship, and libraries lie where the dynamic linker looks anyway.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::layer::{self, Input};
use super::unpack;
use super::value::TreePath;
use crate::digest::{Digest, Hasher};
use crate::progress::Progress;

/// Raised with each change of what this module makes of the same packages.
const VERSION: &str = "kimage compile root 1";
/// What no compiler reads, below `/usr/share`.
const NOT_READ: [&str; 6] = ["doc", "doc-base", "info", "lintian", "locale", "man"];
/// Time of every file, seconds since 1970: any will do, the same everywhere.
const TIME: u32 = 1;

/// Where compilers find the workspace, and the folder that they may write to.
pub const WORK: &str = "build";
/// Where compilers that are no packages are shown.
pub const TOOLS: &str = "tools";

/// The name of the root in the store: a digest of its packages.
pub fn key(packages: impl Iterator<Item = Digest>) -> Digest {
    let mut packages: Vec<Digest> = packages.collect();
    packages.sort();
    let mut hasher = Hasher::new();
    hasher.field(VERSION.as_bytes());
    for package in packages {
        hasher.field(package.as_bytes());
    }
    hasher.finish()
}

/// Unpacks `packages` into the empty folder `root`.
pub fn unpack(root: &Path, packages: &[Input], jobs: usize, progress: &Progress) -> Result<()> {
    let opened = layer::open(packages)?;
    let task = progress.task("unpack the C compiler", Some(opened.debs.len() as u64));
    let options = unpack::Options {
        below: None,
        skip: &is_never_read,
        mtime: TIME,
        jobs,
    };
    unpack::unpack(root, &opened.debs, &opened.packages, &options, &task)?;
    task.done();
    make_mount_points(root)
}

/// A root with nothing in it, for compilers that need no other program.
pub fn make_empty(root: &Path) -> Result<()> {
    fs::create_dir(root).with_context(|| format!("make {}", root.display()))?;
    make_mount_points(root)
}

/// The root is read-only later.
fn make_mount_points(root: &Path) -> Result<()> {
    for name in ["dev", "proc", "run", "sys", "tmp", WORK, TOOLS] {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

fn is_never_read(path: &TreePath) -> bool {
    let parts: Vec<&[u8]> = path.parts().iter().map(Vec::as_slice).collect();
    match parts.as_slice() {
        [usr, share, name, ..] if *usr == b"usr" && *share == b"share" => {
            NOT_READ.iter().any(|other| other.as_bytes() == *name)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_that_of_the_packages_in_any_order() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(key([a, b].into_iter()), key([b, a].into_iter()));
        assert_ne!(key([a, b].into_iter()), key([a].into_iter()));
    }

    #[test]
    fn manuals_stay_out_and_headers_do_not() {
        let skipped = |path: &str| is_never_read(&TreePath::parse(path.as_bytes()).unwrap());
        assert!(
            skipped("/usr/share/doc/gcc/changelog.gz") && skipped("/usr/share/locale/de/LC_MESSAGES/gcc.mo")
        );
        assert!(!skipped("/usr/include/stdio.h") && !skipped("/usr/share/gcc/python/x.py"));
    }
}
