//! `[cargo]`: static programs of a Rust workspace, the same bytes from any checkout, user and cargo home.
//!
//! Paths are the only thing of the host that rustc writes into a program; they are mapped to fixed ones.
//! The C library that `crt-static` links in is the host's: hosts with another glibc give other bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Bench, Product, Products, watch};
use crate::definition::Component;
use crate::definition::component::{Cargo, files_below};
use crate::digest::Hasher;
use crate::failure::{ExitCode, Failure};
use crate::inputs::Network;
use crate::lock::LockedToolchain;
use crate::tool::{Tool, tail};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What cargo, rustc and the linker need of the environment.
const VARIABLES: &[&str] = &[
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Adds the workspace's files that the programs are made of.
pub(super) fn add_to_key(component: &Component, cargo: &Cargo, hasher: &mut Hasher) -> Result<()> {
    let workspace = workspace(component, cargo)?;
    let mut files: Vec<PathBuf> = vec!["Cargo.toml".into(), "Cargo.lock".into()];
    for input in &cargo.inputs {
        let path = workspace.join(input.as_str());
        if path.is_dir() {
            files.extend(
                files_below(&path)?
                    .into_iter()
                    .map(|file| Path::new(input.as_str()).join(file)),
            );
        } else {
            files.push(input.as_str().into());
        }
    }
    for file in files {
        let path = workspace.join(&file);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        hasher.field(file.as_os_str().as_encoded_bytes()).field(&bytes);
    }
    Ok(())
}

/// Builds the programs into `folder`.
pub(super) fn build(
    component: &Component,
    cargo: &Cargo,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    let host = Host::look(bench.toolchain("rust")?)?;
    let workspace = workspace(component, cargo)?;
    let target = bench.store.cache("cargo-target")?;
    let task = bench.progress.task(&format!("build {}", component.name), None);
    // Fetching first makes the folders of crate sources exist whose paths are mapped.
    let mut fetch = host
        .cargo(&workspace)
        .args(["fetch", "--locked", "--target", TARGET]);
    if bench.access.network == Network::Offline {
        fetch = fetch.arg("--offline");
    }
    let mut steps = vec![("fetch the crates", fetch)];
    let build = host
        .cargo(&workspace)
        .args(["build", "--locked", "--offline", "--target", TARGET]);
    let build = build.args(["--profile", &cargo.profile, "--package", &cargo.package]);
    let build = cargo
        .binary
        .iter()
        .fold(build, |build, binary| build.args(["--bin", &binary.name]));
    // The user's configuration may name another linker, which would give other bytes.
    let build = build.args(["--config", &format!("target.{TARGET}.linker=\"cc\"")]);
    steps.push(("build", build));
    for (what, step) in steps {
        let flags = if what == "build" {
            host.flags(&workspace, cargo)?
        } else {
            OsString::new()
        };
        let step = step
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &target);
        let finished = watch::run(step, &task, |line| {
            let crate_name = line
                .trim_start()
                .strip_prefix("Compiling ")
                .or(line.trim_start().strip_prefix("Downloaded "));
            crate_name.map(|name| {
                task.advance(1);
                name.to_owned()
            })
        })?;
        if !finished.status.success() {
            return Err(explain(what, &finished.stderr));
        }
    }
    let built = target.join(TARGET).join(if cargo.profile == "dev" {
        "debug"
    } else {
        &cargo.profile
    });
    let mut products = Products::default();
    for (index, binary) in cargo.binary.iter().enumerate() {
        let (from, file) = (built.join(&binary.name), index.to_string());
        std::fs::copy(&from, folder.join(&file)).with_context(|| format!("copy {}", from.display()))?;
        products.files.push(Product {
            path: binary.path.clone(),
            mode: 0o755,
            links: Vec::new(),
            file,
        });
    }
    task.done();
    Ok(products)
}

/// The Rust installation of this host.
struct Host {
    cargo_home: PathBuf,
    sysroot: PathBuf,
    commit: String,
}

impl Host {
    /// Finds rustc and checks that it is the pinned one.
    fn look(pin: &LockedToolchain) -> Result<Self> {
        let hint = format!(
            "install it: `rustup toolchain install {0}`, then RUSTUP_TOOLCHAIN={0}",
            pin.version
        );
        let wrong = |found: &str| {
            let message = format!("Rust {} ({}) is needed, {found}", pin.version, pin.hash);
            Failure::new(ExitCode::Failed, message).hint(hint.clone())
        };
        let rustc = |arguments: &[&str]| -> Result<String> {
            let output = Tool::new("rustc").args(arguments).inherit(VARIABLES).run();
            let output = output.with_context(|| wrong("but rustc does not run"))?;
            Ok(String::from_utf8_lossy(&output).trim().to_owned())
        };
        let version = rustc(&["-vV"])?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or("unknown")
        };
        let (release, commit) = (field("release: "), field("commit-hash: "));
        if release != pin.version || commit != pin.hash {
            return Err(wrong(&format!("this host has {release} ({commit})")).into());
        }
        let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cargo_home = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo")));
        let cargo_home = cargo_home.context("neither CARGO_HOME nor HOME is set")?;
        Ok(Self {
            cargo_home,
            sysroot,
            commit: commit.to_owned(),
        })
    }

    fn cargo(&self, workspace: &Path) -> Tool {
        let cargo = Tool::new("cargo")
            .directory(workspace)
            .inherit(VARIABLES)
            .env("CARGO_HOME", &self.cargo_home);
        cargo
            .env("CARGO_INCREMENTAL", "0")
            .env("RUSTC_WRAPPER", "")
            .env("CARGO_TERM_COLOR", "never")
    }

    /// rustc's flags, separated by the byte that `CARGO_ENCODED_RUSTFLAGS` wants.
    fn flags(&self, workspace: &Path, cargo: &Cargo) -> Result<OsString> {
        let mut flags: Vec<OsString> = vec!["-C".into(), "target-feature=+crt-static".into()];
        // The last mapping that fits wins: the most special come last.
        let mut map = |from: &Path, to: &str| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        };
        map(&self.sysroot, "/rust");
        // With rust-src installed, rustc shows the standard library's files there instead of under /rustc.
        map(
            &self.sysroot.join("lib/rustlib/src/rust"),
            &format!("/rustc/{}", self.commit),
        );
        map(&self.cargo_home, "/cargo");
        // One folder per registry address: mirrors must not show.
        for source in registry_sources(&self.cargo_home)? {
            map(&source, "/cargo/registry");
        }
        map(workspace, "/kimage");
        flags.extend(cargo.rustflags.iter().map(OsString::from));
        Ok(flags.join(&OsString::from("\x1f")))
    }
}

fn registry_sources(cargo_home: &Path) -> Result<Vec<PathBuf>> {
    let folder = cargo_home.join("registry/src");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read folder {}", folder.display())),
    };
    let mut sources = Vec::new();
    for entry in entries {
        sources.push(
            entry
                .with_context(|| format!("read folder {}", folder.display()))?
                .path(),
        );
    }
    sources.sort();
    Ok(sources)
}

fn workspace(component: &Component, cargo: &Cargo) -> Result<PathBuf> {
    let path = component.folder.join(&cargo.workspace);
    path.canonicalize()
        .with_context(|| format!("find the Rust workspace {}", path.display()))
}

fn explain(what: &str, stderr: &str) -> anyhow::Error {
    let message = format!("{what}: cargo says\n{}", tail(stderr.as_bytes()));
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| stderr.contains(phrase));
    let failure = if says(&["failed to verify the checksum", "checksum for"]) {
        Failure::new(ExitCode::Mismatch, message).hint("the registry serves other bytes than Cargo.lock pins")
    } else if says(&[
        "--offline",
        "failed to download",
        "failed to fetch",
        "spurious network error",
    ]) {
        Failure::new(ExitCode::Fetch, message).hint("run once online")
    } else {
        Failure::new(ExitCode::Failed, message)
    };
    failure.into()
}
