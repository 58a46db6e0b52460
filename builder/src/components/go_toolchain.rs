//! The pinned Go compiler: the host's when it is exactly that version, otherwise the toolchain module from the Go
//! proxy, checked against its `h1:` hash and unpacked into the store.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component as Part, Path, PathBuf};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::{Access, go_proxy, module_hash};
use crate::digest::{Digest, Hasher};
use crate::download::{self, Network};
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedToolchain;
use crate::progress::Progress;
use crate::store::Store;
use crate::tool::Tool;

const ARTIFACT: &str = "toolchain";
/// Most bytes of the zip (go1.26.8 has 68 MB).
const LARGEST_ZIP: u64 = 512 << 20;

/// A Go compiler of the pinned version.
#[derive(Debug, Clone)]
pub(super) struct GoToolchain {
    /// The `go` program.
    pub(super) go: PathBuf,
}

/// The pinned compiler, fetched where the host has another or none.
pub(super) fn find(
    pin: &LockedToolchain,
    store: &Store,
    access: &Access,
    progress: &Progress,
) -> Result<GoToolchain> {
    match on_host(&pin.version) {
        Some(go) => Ok(GoToolchain { go }),
        None => fetched(pin, store, access, progress).map(|folder| GoToolchain {
            go: folder.join("bin/go"),
        }),
    }
}

/// The compiler from the proxy, unpacked in the store: the artifact's folder.
fn fetched(pin: &LockedToolchain, store: &Store, access: &Access, progress: &Progress) -> Result<PathBuf> {
    let mut key = Hasher::new();
    key.field(b"go toolchain 1")
        .field(pin.version.as_bytes())
        .field(pin.hash.as_bytes());
    store.artifact_or_build(ARTIFACT, &key.finish(), |folder| {
        let zip = folder.join("toolchain.zip");
        download(pin, &zip, access, progress)?;
        check(&zip, pin)?;
        unpack(&zip, folder, &prefix(pin))?;
        fs::remove_file(&zip).with_context(|| format!("remove {}", zip.display()))
    })
}

/// The `go` of `PATH` when it is `version`.
fn on_host(version: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let go = std::env::split_paths(&path)
        .map(|folder| folder.join("go"))
        .find(|go| go.is_file())?;
    // Without GOTOOLCHAIN=local, `go` would fetch and become another version.
    let output = Tool::new(&go)
        .arg("version")
        .env("GOTOOLCHAIN", "local")
        .env("GOENV", "off")
        .inherit(&["HOME"])
        .run();
    let words = String::from_utf8(output.ok()?).ok()?;
    let mut words = words.split_whitespace().skip(2);
    (words.next() == Some(version) && words.next() == Some("linux/amd64")).then_some(go)
}

fn module_version(pin: &LockedToolchain) -> String {
    format!("v0.0.1-{}.linux-amd64", pin.version)
}

fn prefix(pin: &LockedToolchain) -> String {
    format!("golang.org/toolchain@{}/", module_version(pin))
}

fn download(pin: &LockedToolchain, zip: &Path, access: &Access, progress: &Progress) -> Result<()> {
    let name = format!("Go toolchain {}", pin.version);
    if access.network == Network::Offline {
        let hint =
            "install that Go version, run once online, or unpack a `kimage vendor` file into the store";
        let message = format!("{name} is neither installed nor in the store");
        return Err(Failure::new(ExitCode::Fetch, message).hint(hint).into());
    }
    let value = go_proxy::find(access.go_proxy.as_deref())?;
    let path = format!("golang.org/toolchain/@v/{}.zip", module_version(pin));
    let urls: Vec<download::Address> = go_proxy::base_urls(&value)
        .iter()
        .map(|base| download::Address::from(base.as_str()).below(&path))
        .collect();
    if urls.is_empty() {
        let message = format!("{name}: GOPROXY={value} names no proxy to fetch it from");
        return Err(Failure::new(ExitCode::Fetch, message)
            .hint("set GOPROXY=https://...")
            .into());
    }
    let bytes = download::document(&urls, LARGEST_ZIP, progress).with_context(|| format!("fetch {name}"))?;
    fs::write(zip, bytes).with_context(|| format!("write {}", zip.display()))
}

fn check(zip: &Path, pin: &LockedToolchain) -> Result<()> {
    let found = module_hash::of_zip(zip)?;
    if found != pin.hash {
        let message = format!(
            "Go toolchain {}: the zip hashes to {found}, the lock says {}",
            pin.version, pin.hash
        );
        let hint = "the proxy serves other bytes than were locked: try another GOPROXY";
        return Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
    }
    Ok(())
}

/// Unpacks the zip and undoes what module zips can't hold: the execute bits and nested `go.mod` files
/// (`cmd/go/internal/toolchain`, function `Exec`).
fn unpack(zip: &Path, folder: &Path, prefix: &str) -> Result<()> {
    let file = File::open(zip).with_context(|| format!("open {}", zip.display()))?;
    let mut archive = ZipArchive::new(file).with_context(|| format!("read {} as zip", zip.display()))?;
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .with_context(|| format!("read {}", zip.display()))?;
        let name = entry
            .name()
            .with_context(|| format!("read {}", zip.display()))?
            .into_owned();
        let Some(name) = name.strip_prefix(prefix).map(str::to_owned) else {
            bail!("{}: `{name}` is not below `{prefix}`", zip.display());
        };
        if entry.is_dir() {
            continue;
        }
        let below = Path::new(&name);
        if name.is_empty() || !below.components().all(|part| matches!(part, Part::Normal(_))) {
            bail!("{}: `{name}` leaves its folder", zip.display());
        }
        let below = match below.file_name() {
            Some(file) if file == "_go.mod" => below.with_file_name("go.mod"),
            _ => below.to_owned(),
        };
        let path = folder.join(&below);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        let mut out = File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        io::copy(&mut entry, &mut out).with_context(|| format!("unpack {}", path.display()))?;
        if below.starts_with("bin") || below.starts_with("pkg/tool") {
            let executable = fs::Permissions::from_mode(0o755);
            out.set_permissions(executable)
                .with_context(|| format!("make {} executable", path.display()))?;
        }
    }
    Ok(())
}

/// What identifies the compiler in content keys.
pub(super) fn identity(pin: &LockedToolchain) -> Digest {
    let mut hasher = Hasher::new();
    hasher
        .field(pin.name.as_bytes())
        .field(pin.version.as_bytes())
        .field(pin.hash.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pin(hash: &str) -> LockedToolchain {
        LockedToolchain {
            name: "go".into(),
            version: "go1.99.1".into(),
            hash: hash.into(),
        }
    }

    fn toolchain_zip(path: &Path, files: &[(&str, &str)]) {
        let mut writer = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, text) in files {
            writer
                .start_file(*name, zip::write::SimpleFileOptions::default())
                .unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    }

    const GO: &str = "golang.org/toolchain@v0.0.1-go1.99.1.linux-amd64/bin/go";
    const MOD: &str = "golang.org/toolchain@v0.0.1-go1.99.1.linux-amd64/src/_go.mod";

    #[test]
    fn a_tampered_zip_is_a_mismatch() {
        let folder = tempfile::tempdir().unwrap();
        let zip = folder.path().join("t.zip");
        toolchain_zip(&zip, &[(GO, "#!/bin/sh\n"), (MOD, "module std\n")]);
        let good = pin(&module_hash::of_zip(&zip).unwrap());
        check(&zip, &good).unwrap();
        toolchain_zip(&zip, &[(GO, "#!/bin/sh\nrm -rf /\n"), (MOD, "module std\n")]);
        let error = check(&zip, &good).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Mismatch);
        assert!(error.to_string().contains(&good.hash), "{error}");
    }

    #[test]
    fn programs_become_executable_and_module_files_get_their_name_back() {
        let folder = tempfile::tempdir().unwrap();
        let zip = folder.path().join("t.zip");
        toolchain_zip(&zip, &[(GO, "x"), (MOD, "module std\n")]);
        unpack(&zip, folder.path(), &prefix(&pin("h1:"))).unwrap();
        let mode = fs::metadata(folder.path().join("bin/go"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(
            fs::read(folder.path().join("src/go.mod")).unwrap(),
            b"module std\n"
        );
    }

    #[test]
    fn a_name_outside_the_module_is_refused() {
        for name in [
            "etc/passwd",
            "golang.org/toolchain@v0.0.1-go1.99.1.linux-amd64/../../x",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let zip = folder.path().join("t.zip");
            toolchain_zip(&zip, &[(name, "x")]);
            assert!(
                unpack(&zip, folder.path(), &prefix(&pin("h1:"))).is_err(),
                "{name}"
            );
        }
    }
}
