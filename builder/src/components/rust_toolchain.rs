//! The pinned Rust compiler: the files of a sysroot that compile something for x86-64 Linux, by the digest of exactly
//! those files. They are taken into the store once: from an installation of this host that has them, or else from a
//! server of Rust's releases. Nothing else of an installation is ever used, so it can't matter what else it holds.

mod release;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Means, TOOLCHAIN};
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedToolchain;
use crate::store::remove_tree;
use crate::tool::Tool;

/// Rust's name of what components are compiled for.
pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What finding an installation needs of the environment.
const VARIABLES: &[&str] = &["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
/// Most files of a sysroot that may be the pinned ones (1.95.0 has 51).
const MOST_FILES: usize = 2000;

/// The digest of a pinned hash.
pub(super) fn pinned(pin: &LockedToolchain) -> Result<Digest> {
    let hex = pin.hash.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    hex.ok_or_else(|| {
        let message = format!("the lock pins Rust by `{}`, which is no digest", pin.hash);
        Failure::new(ExitCode::Lock, message)
            .hint("run `kimage lock`")
            .into()
    })
}

/// How the compiler is named in bills of materials.
pub(super) fn described(pin: &LockedToolchain) -> String {
    format!("rustc {} ({})", pin.version, pin.hash)
}

/// The folder of the pinned compiler in the store: `bin/rustc`, `bin/cargo`, `lib`.
///
/// # Errors
/// [`ExitCode::Fetch`] when no installation has it and no server can be asked, [`ExitCode::Mismatch`] when a server has
/// other bytes.
pub(super) fn find(pin: &LockedToolchain, means: &Means<'_>) -> Result<PathBuf> {
    let wanted = pinned(pin)?;
    let mut key = Hasher::new();
    key.field(b"rust toolchain 1").field(wanted.as_bytes());
    let key = key.finish();
    means.store.artifact_or_build(TOOLCHAIN, &key, |folder| {
        for sysroot in means
            .toolchain_beside(&key)?
            .into_iter()
            .chain(installations(pin))
        {
            if take(&sysroot, folder, &wanted)? {
                return Ok(());
            }
        }
        release::fetch(pin, folder, means.access.network, means.progress)?;
        let (found, _) = files_digest(folder)?;
        if found != wanted {
            let message = format!(
                "Rust {}: the release's files hash to sha256:{found}, the lock says {}",
                pin.version, pin.hash
            );
            let hint = "the server has other bytes than were locked: set RUSTUP_DIST_SERVER to another one";
            return Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
        }
        Ok(())
    })
}

/// Where this host may have it. That a folder of that name holds anything else costs a look, nothing more.
fn installations(pin: &LockedToolchain) -> Vec<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let rustup = folder("RUSTUP_HOME").or_else(|| folder("HOME").map(|home| home.join(".rustup")));
    let by_version = rustup.map(|rustup| rustup.join(format!("toolchains/{}-{TARGET}", pin.version)));
    let asked = Tool::new("rustc")
        .args(["--print", "sysroot"])
        .inherit(VARIABLES)
        .env("RUSTUP_AUTO_INSTALL", "0")
        .run();
    let in_use = asked
        .ok()
        .map(|path| PathBuf::from(String::from_utf8_lossy(&path).trim().to_owned()));
    let mut found: Vec<PathBuf> = by_version.into_iter().chain(in_use).collect();
    found.retain(|path| path.join("bin/rustc").is_file());
    found.dedup();
    found
}

/// Copies the compiler of `sysroot` to the empty `folder`, if it is the wanted one. What is hashed is what was copied.
fn take(sysroot: &Path, folder: &Path, wanted: &Digest) -> Result<bool> {
    // Another one is told apart without copying half a gigabyte.
    let Ok((found, files)) = files_digest(sysroot) else {
        return Ok(false);
    };
    if found != *wanted {
        return Ok(false);
    }
    let mut listed = Vec::with_capacity(files.len());
    for path in files {
        let digest = copy(&sysroot.join(&path), &folder.join(&path), is_program(&path))?;
        listed.push((path, digest));
    }
    if of_files(&listed) == *wanted {
        return Ok(true);
    }
    // It was changed meanwhile.
    for entry in fs::read_dir(folder).with_context(|| format!("read folder {}", folder.display()))? {
        let path = entry?.path();
        remove_tree(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(false)
}

/// Writes `from` to the new file `to` and returns the digest of what was written.
fn copy(from: &Path, to: &Path, program: bool) -> Result<Digest> {
    let context = || format!("copy {}", from.display());
    put(&mut File::open(from).with_context(context)?, to, program).with_context(context)
}

/// Writes what `reader` yields to the new file `to` and returns its digest.
fn put(reader: &mut impl Read, to: &Path, program: bool) -> Result<Digest> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                out.write_all(&buffer[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mode = if program { 0o755 } else { 0o644 };
    out.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(hasher.finish())
}

/// The digest of the files of `sysroot` that compile something, and their paths. It is that of the lines
/// `<SHA-256>  <path>`, sorted by path, as `sha256sum` prints them.
pub fn files_digest(sysroot: &Path) -> Result<(Digest, Vec<PathBuf>)> {
    let mut files = Vec::new();
    let mut pending: Vec<PathBuf> = ["bin", "lib"].map(PathBuf::from).to_vec();
    while let Some(folder) = pending.pop() {
        let here = sysroot.join(&folder);
        for entry in fs::read_dir(&here).with_context(|| format!("read folder {}", here.display()))? {
            let entry = entry.with_context(|| format!("read folder {}", here.display()))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && leads_to_files(&path) {
                pending.push(path);
            } else if is_needed(&path) {
                if !kind.is_file() {
                    bail!("{} is no regular file", entry.path().display());
                }
                files.push(path);
            }
        }
        if files.len() > MOST_FILES {
            bail!("{} holds more files than a Rust compiler", sysroot.display());
        }
    }
    files.sort();
    let mut listed = Vec::with_capacity(files.len());
    for path in files {
        let full = sysroot.join(&path);
        let (digest, _) = Digest::of_file(&full).with_context(|| format!("read {}", full.display()))?;
        listed.push((path, digest));
    }
    let digest = of_files(&listed);
    Ok((digest, listed.into_iter().map(|(path, _)| path).collect()))
}

/// `files` are sorted by path.
fn of_files(files: &[(PathBuf, Digest)]) -> Digest {
    let mut hasher = Hasher::new();
    for (path, digest) in files {
        hasher.update(format!("{digest}  {}\n", path.display()).as_bytes());
    }
    hasher.finish()
}

/// Whether the file is part of the compiler: rustc, cargo, their libraries, the linker and the standard library. Not
/// its documentation, and nothing that further parts of an installation add (`clippy`, `rust-src`).
fn is_needed(path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    let below_target = |path: &str| {
        let rest = path.strip_prefix("lib/rustlib/")?;
        let rest = rest.strip_prefix(TARGET)?.strip_prefix('/')?;
        Some(rest.starts_with("lib/") || rest == "bin/rust-lld" || rest.starts_with("bin/gcc-ld/"))
    };
    let library = path
        .strip_prefix("lib/")
        .is_some_and(|name| !name.contains('/') && name.starts_with("lib"));
    matches!(path, "bin/rustc" | "bin/cargo") || library || below_target(path) == Some(true)
}

fn leads_to_files(folder: &Path) -> bool {
    let target = Path::new("lib/rustlib").join(TARGET);
    target.starts_with(folder) || folder.starts_with(&target)
}

fn is_program(path: &Path) -> bool {
    path.parent()
        .is_some_and(|folder| folder.iter().any(|part| part == "bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_compiles_counts() {
        for needed in [
            "bin/rustc",
            "bin/cargo",
            "lib/librustc_driver-0123.so",
            "lib/rustlib/x86_64-unknown-linux-gnu/lib/libstd-0123.rlib",
            "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld/ld.lld",
        ] {
            assert!(is_needed(Path::new(needed)), "{needed}");
        }
        for other in [
            "bin/rustdoc",
            "bin/cargo-clippy",
            "lib/rustlib/components",
            "lib/rustlib/manifest-rustc-x86_64-unknown-linux-gnu",
            "lib/rustlib/src/rust/library/std/src/lib.rs",
            "lib/rustlib/wasm32-unknown-unknown/lib/libstd.rlib",
            "lib/rustlib/x86_64-unknown-linux-gnu/bin/llvm-objdump",
        ] {
            assert!(!is_needed(Path::new(other)), "{other}");
        }
    }

    fn sysroot(folder: &Path, std: &str) {
        for (path, text) in [
            ("bin/rustc", "rustc"),
            ("bin/rustdoc", "documents"),
            ("lib/librustc_driver.so", "driver"),
            ("lib/rustlib/x86_64-unknown-linux-gnu/lib/libstd.rlib", std),
        ] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn an_installation_is_taken_when_its_files_are_the_pinned_ones() {
        let place = tempfile::tempdir().unwrap();
        let (one, other) = (place.path().join("one"), place.path().join("other"));
        sysroot(&one, "std");
        sysroot(&other, "another std");
        let (wanted, files) = files_digest(&one).unwrap();
        assert_eq!(files.len(), 3);
        let folder = place.path().join("taken");
        fs::create_dir(&folder).unwrap();
        assert!(!take(&other, &folder, &wanted).unwrap());
        assert!(take(&one, &folder, &wanted).unwrap());
        assert_eq!(files_digest(&folder).unwrap().0, wanted);
        assert!(!folder.join("bin/rustdoc").exists());
        let mode = fs::metadata(folder.join("bin/rustc"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_link_in_the_place_of_a_library_is_refused() {
        let place = tempfile::tempdir().unwrap();
        sysroot(place.path(), "std");
        std::os::unix::fs::symlink("/etc/hostname", place.path().join("lib/libz.so")).unwrap();
        assert!(files_digest(place.path()).is_err());
    }
}
