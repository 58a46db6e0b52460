//! Crates: fetched by cargo with the user's own settings (mirrors, proxies), believed by the checksum that Cargo.lock
//! has of them, kept as blobs of the store, and unpacked for each build anew from those.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component as Part, Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;

use super::cargo_lock::{CargoLock, Package};
use super::cargo_sources::{LOCK, Sources};
use super::complaint::{self, Cause};
use super::{Means, watch};
use crate::digest::Digest;
use crate::download::Network;
use crate::failure::{ExitCode, Failure};
use crate::progress::Task;
use crate::store::Store;
use crate::tool::Tool;

/// What `cargo fetch` needs to reach the user's registry.
const VARIABLES: &[&str] = &[
    "PATH",
    "HOME",
    "CARGO_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
/// The kind of the store's artifacts that hold what cargo says is needed.
const NEEDED: &str = "needed-crates";
/// Most bytes that a crate may unpack to.
const MOST_BYTES: u64 = 1 << 30;
/// Most bytes of a `.crate` file.
const LARGEST_CRATE: u64 = 256 << 20;
/// crates.io, as cargo writes it into Cargo.lock.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Puts the crates that the workspace needs into the store and returns the lock of exactly those. `workspace` is the
/// copy of the workspace that will be built, `toolchain` the pinned one.
///
/// Cargo drops from a lock what no feature asks for, and it alone knows what that is. It is asked once per set of
/// manifests; the answer may hold nothing that the workspace's own lock does not.
pub(super) fn fetch(
    sources: &Sources,
    workspace: &Path,
    toolchain: &Path,
    means: &Means<'_>,
    task: &Task,
) -> Result<CargoLock> {
    if sources.lock.crates().next().is_none() {
        return Ok(sources.lock.clone());
    }
    let network = means.access.network;
    let key = sources.manifests_digest()?;
    let folder = means.store.artifact_or_build(NEEDED, &key, |folder| {
        ask_cargo(workspace, toolchain, network, task)?;
        let answer = folder.join(LOCK);
        std::fs::copy(workspace.join(LOCK), &answer).context("copy Cargo.lock")?;
        // Before it is kept: a wrong one would be wrong again at every build.
        sources.narrowed(&answer).map(drop)
    })?;
    let needed = sources.narrowed(&folder.join(LOCK))?;
    let mut missing = collect(&needed, means.store)?;
    if !missing.is_empty() && network == Network::Online {
        ask_cargo(workspace, toolchain, network, task)?;
        missing = collect(&needed, means.store)?;
    }
    let Some(first) = missing.first() else {
        return Ok(needed);
    };
    let more = match missing.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!("crate {} {}{more} is not in the store", first.name, first.version);
    let hint = match network {
        Network::Offline => "run once online",
        Network::Online => "cargo did not download it: a registry, or a mirror of one, must have it",
    };
    Err(Failure::new(ExitCode::Fetch, message).hint(hint).into())
}

/// Takes over what cargo has downloaded before; returns what is still missing.
fn collect<'a>(lock: &'a CargoLock, store: &Store) -> Result<Vec<&'a Package>> {
    let mut missing = Vec::new();
    for package in lock.crates() {
        let digest = package.digest()?;
        if store.blob(&digest)?.is_none() && !take(package, &digest, store)? {
            missing.push(package);
        }
    }
    Ok(missing)
}

/// One crate from the caches of cargo's registries, if one of them has the locked bytes.
fn take(package: &Package, digest: &Digest, store: &Store) -> Result<bool> {
    let Some(caches) = cargo_home().map(|home| home.join("registry/cache")) else {
        return Ok(false);
    };
    // One folder per registry address.
    let Ok(registries) = fs::read_dir(&caches) else {
        return Ok(false);
    };
    for registry in registries.flatten() {
        let file = registry.path().join(file_name(package));
        let Ok(opened) = File::open(&file) else { continue };
        let mut bytes = Vec::new();
        let read = opened.take(LARGEST_CRATE).read_to_end(&mut bytes);
        if read.is_ok() && Digest::of(&bytes) == *digest {
            store.put(&bytes)?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn cargo_home() -> Option<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("CARGO_HOME").or_else(|| folder("HOME").map(|home| home.join(".cargo")))
}

fn file_name(package: &Package) -> String {
    format!("{}-{}.crate", package.name, package.version)
}

fn ask_cargo(workspace: &Path, toolchain: &Path, network: Network, task: &Task) -> Result<()> {
    let what = "fetch the crates";
    task.message(what);
    let cargo = Tool::new(toolchain.join("bin/cargo"))
        .arg("fetch")
        .directory(workspace)
        .inherit(VARIABLES);
    let cargo = match network {
        Network::Offline => cargo.arg("--offline"),
        Network::Online => cargo,
    };
    let cargo = cargo
        .env("RUSTC", toolchain.join("bin/rustc"))
        .env("CARGO_TERM_COLOR", "never");
    let finished = watch::run(cargo, task, |line| {
        Some(line.trim_start().strip_prefix("Downloaded ")?.to_owned())
    })?;
    if finished.status.success() {
        return Ok(());
    }
    let causes = [
        Cause {
            phrases: &["failed to verify the checksum", "checksum for"],
            code: ExitCode::Mismatch,
            hint: "the registry serves other bytes than Cargo.lock pins",
        },
        Cause {
            phrases: &[
                "--offline",
                "failed to download",
                "failed to fetch",
                "failed to get",
                "spurious network error",
            ],
            code: ExitCode::Fetch,
            hint: "run once online; cargo's own settings say which registry is asked",
        },
    ];
    Err(complaint::explain(what, "cargo", &finished.stderr, &causes))
}

/// Unpacks the crates of `lock` into `folder`, as a directory source of cargo.
pub(super) fn unpack(lock: &CargoLock, store: &Store, folder: &Path) -> Result<()> {
    for package in lock.crates() {
        let digest = package.digest()?;
        let blob = store.blob(&digest)?;
        let blob = blob.with_context(|| format!("the store lost crate {}", package.name))?;
        let name = format!("{}-{}", package.name, package.version);
        unpack_one(&blob, &digest, &name, folder).with_context(|| format!("unpack crate {name}"))?;
    }
    Ok(())
}

fn unpack_one(blob: &Path, digest: &Digest, name: &str, folder: &Path) -> Result<()> {
    let own = folder.join(name);
    fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
    let plain = MultiGzDecoder::new(io::BufReader::new(File::open(blob)?)).take(MOST_BYTES);
    for entry in tar::Archive::new(plain).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let below = path.strip_prefix(name);
        let below = below.with_context(|| format!("`{}` is not below `{name}`", path.display()))?;
        if !below.components().all(|part| matches!(part, Part::Normal(_))) {
            bail!("`{}` leaves its folder", path.display());
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() || below.as_os_str().is_empty() {
            bail!("`{}` is no regular file", path.display());
        }
        let executable = entry.header().mode()? & 0o111 != 0;
        write(&mut entry, &own.join(below), executable)?;
    }
    // Cargo compares the package's checksum with Cargo.lock; the files were checked as a whole.
    let checksum = format!("{{\"files\":{{}},\"package\":\"{digest}\"}}");
    write(&mut checksum.as_bytes(), &own.join(".cargo-checksum.json"), false)
}

fn write(reader: &mut impl Read, path: &Path, executable: bool) -> Result<()> {
    let context = || format!("write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    let mut file = File::create_new(path).with_context(context)?;
    io::copy(reader, &mut file).with_context(context)?;
    let mode = if executable { 0o755 } else { 0o644 };
    file.set_permissions(fs::Permissions::from_mode(mode))
        .with_context(context)?;
    // Always the same time: build scripts compile again what is newer than what they have compiled.
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .with_context(context)
}

/// Cargo's configuration that takes the crates of `lock` from `folder` only.
pub(super) fn configuration(lock: &CargoLock, folder: &Path) -> String {
    let mut sources: Vec<&str> = lock
        .crates()
        .filter_map(|package| package.source.as_deref())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    let mut root = toml::Table::new();
    let mut table = toml::Table::new();
    for source in sources {
        let mut entry = toml::Table::new();
        entry.insert("replace-with".into(), "vendored".into());
        let name = if source == CRATES_IO {
            "crates-io"
        } else {
            let address = source.strip_prefix("registry+").unwrap_or(source);
            entry.insert("registry".into(), address.into());
            address
        };
        table.insert(name.into(), entry.into());
    }
    let mut vendored = toml::Table::new();
    vendored.insert("directory".into(), folder.to_string_lossy().into_owned().into());
    table.insert("vendored".into(), vendored.into());
    root.insert("source".into(), table.into());
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(files: &[(&str, &str)]) -> Vec<u8> {
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(gz);
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            let bytes = name.as_bytes();
            header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn unpacked(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, packed(files)).unwrap();
        let result = unpack_one(&blob, &Digest::of(b"x"), "one-1.0.0", folder.path());
        (folder, result)
    }

    #[test]
    fn a_crate_becomes_a_folder_that_cargo_can_check() {
        let (folder, result) = unpacked(&[("one-1.0.0/src/lib.rs", "pub fn f() {}")]);
        result.unwrap();
        let own = folder.path().join("one-1.0.0");
        assert_eq!(fs::read(own.join("src/lib.rs")).unwrap(), b"pub fn f() {}");
        let checksum = fs::read_to_string(own.join(".cargo-checksum.json")).unwrap();
        assert!(checksum.contains(&Digest::of(b"x").to_string()));
    }

    #[test]
    fn a_crate_may_not_write_outside_of_its_folder() {
        for name in [
            "other/src/lib.rs",
            "/etc/passwd",
            "one-1.0.0/../escaped",
            "one-1.0.0/../one-1.0.0/x",
        ] {
            let (folder, result) = unpacked(&[(name, "x")]);
            assert!(result.is_err(), "{name}");
            assert!(!folder.path().join("escaped").exists());
        }
    }

    #[test]
    fn each_registry_of_the_lock_is_replaced_by_the_folder() {
        let text = format!(
            "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"{CRATES_IO}\"\n\
             [[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"sparse+https://example.com/\"\n"
        );
        let lock = CargoLock::parse(&text).unwrap();
        let table: toml::Table = toml::from_str(&configuration(&lock, Path::new("/build/vendor"))).unwrap();
        let sources = table["source"].as_table().unwrap();
        assert_eq!(sources["crates-io"]["replace-with"].as_str(), Some("vendored"));
        assert_eq!(
            sources["sparse+https://example.com/"]["replace-with"].as_str(),
            Some("vendored")
        );
        assert_eq!(sources["vendored"]["directory"].as_str(), Some("/build/vendor"));
    }
}
