//! The pinned Go compiler, by the `h1:` hash of its files: taken into the store once, from an installation of this host
//! that has those files, or else as the toolchain module from the Go proxy.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component as Part, Path, PathBuf};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::{Means, TOOLCHAIN, go_proxy, module_hash};
use crate::definition::component::files_below;
use crate::digest::{Digest, Hasher};
use crate::download::{self, Network};
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedToolchain;
use crate::store::remove_tree;
use crate::tool::Tool;

/// Most bytes of the zip (go1.26.8 has 72 MB).
const LARGEST_ZIP: u64 = 512 << 20;
/// What an installation holds and the module does not (`cmd/distpack`).
const NOT_IN_MODULE: [&str; 4] = ["api", "doc", "misc", "test"];

/// The folder of the pinned compiler in the store: its `GOROOT`.
///
/// # Errors
/// [`ExitCode::Fetch`] when no installation has it and no proxy can be asked, [`ExitCode::Mismatch`] when the proxy has
/// other bytes.
pub(super) fn find(pin: &LockedToolchain, means: &Means<'_>) -> Result<PathBuf> {
    let mut key = Hasher::new();
    key.field(b"go toolchain 2")
        .field(pin.version.as_bytes())
        .field(pin.hash.as_bytes());
    let key = key.finish();
    means.store.artifact_or_build(TOOLCHAIN, &key, |folder| {
        for root in means.toolchain_beside(&key)?.into_iter().chain(installation(pin)) {
            if take(&root, folder, pin)? {
                return Ok(());
            }
        }
        let zip = folder.join("toolchain.zip");
        download(pin, &zip, means)?;
        check(&zip, pin)?;
        unpack(&zip, folder, &prefix(&pin.version))?;
        fs::remove_file(&zip).with_context(|| format!("remove {}", zip.display()))
    })
}

/// The `GOROOT` of the host's `go`, if it calls itself the pinned version.
fn installation(pin: &LockedToolchain) -> Option<PathBuf> {
    let go = Tool::new("go")
        .args(["env", "GOROOT"])
        .env("GOTOOLCHAIN", "local")
        .env("GOENV", "off")
        .inherit(&["PATH", "HOME"]);
    let root = PathBuf::from(String::from_utf8_lossy(&go.run().ok()?).trim());
    let version = fs::read_to_string(root.join("VERSION")).ok()?;
    (version.lines().next() == Some(pin.version.as_str())).then_some(root)
}

/// Copies the compiler at `root` to the empty `folder`, if it is the pinned one. What is hashed is what was copied.
fn take(root: &Path, folder: &Path, pin: &LockedToolchain) -> Result<bool> {
    if files_hash(root, &pin.version).ok().as_ref() != Some(&pin.hash) {
        return Ok(false);
    }
    for path in module_files(root)? {
        let (from, to) = (root.join(&path), folder.join(&path));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        set_mode(&to, &path)?;
    }
    if files_hash(folder, &pin.version)? == pin.hash {
        return Ok(true);
    }
    // It was changed meanwhile.
    for entry in fs::read_dir(folder).with_context(|| format!("read folder {}", folder.display()))? {
        let path = entry?.path();
        remove_tree(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(false)
}

/// The `h1:` hash that the module zip of the compiler at `root`, called `version` (`go1.26.8`), has.
pub fn files_hash(root: &Path, version: &str) -> Result<String> {
    let mut files = Vec::new();
    for path in module_files(root)? {
        let full = root.join(&path);
        let (digest, _) = Digest::of_file(&full).with_context(|| format!("read {}", full.display()))?;
        let name = match path.file_name() {
            Some(name) if name == "go.mod" => path.with_file_name("_go.mod"),
            _ => path,
        };
        let name = name.to_str().context("a file name is not UTF-8")?;
        files.push((format!("{}{name}", prefix(version)), digest));
    }
    module_hash::of_files(files)
}

fn module_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files_below(root)?;
    files.retain(|path| {
        let top = path.components().next();
        !top.is_some_and(|top| NOT_IN_MODULE.iter().any(|name| top.as_os_str() == *name))
    });
    Ok(files)
}

/// Zips of modules hold no modes.
fn set_mode(file: &Path, path: &Path) -> Result<()> {
    let program = path.starts_with("bin") || path.starts_with("pkg/tool");
    let mode = if program { 0o755 } else { 0o644 };
    fs::set_permissions(file, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", file.display()))
}

fn module_version(version: &str) -> String {
    format!("v0.0.1-{version}.linux-amd64")
}

fn prefix(version: &str) -> String {
    format!("golang.org/toolchain@{}/", module_version(version))
}

fn download(pin: &LockedToolchain, zip: &Path, means: &Means<'_>) -> Result<()> {
    let (access, progress) = (means.access, means.progress);
    let name = format!("Go toolchain {}", pin.version);
    if access.network == Network::Offline {
        let hint =
            "install that Go version, run once online, or unpack a `kimage vendor` file into the store";
        let message = format!("{name} is neither installed nor in the store");
        return Err(Failure::new(ExitCode::Fetch, message).hint(hint).into());
    }
    let value = go_proxy::find(access.go_proxy.as_deref())?;
    let path = format!("golang.org/toolchain/@v/{}.zip", module_version(&pin.version));
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
        set_mode(&path, &below)?;
    }
    Ok(())
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
            servers: Vec::new(),
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
        unpack(
            &zip,
            folder.path(),
            "golang.org/toolchain@v0.0.1-go1.99.1.linux-amd64/",
        )
        .unwrap();
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
                unpack(
                    &zip,
                    folder.path(),
                    "golang.org/toolchain@v0.0.1-go1.99.1.linux-amd64/"
                )
                .is_err(),
                "{name}"
            );
        }
    }
}
