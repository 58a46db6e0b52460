//! `[cargo]`: static programs of a Rust workspace, compiled in a sandbox: the crates and the compiler by digest, the C
//! compiler, the linker and the C library that `crt-static` links in from locked packages of the base, the sources of
//! the key alone. The user's cargo configuration, home and other compilers are not there.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use super::cargo_sources::{LOCK, Sources};
use super::complaint;
use super::rust_toolchain::{self, TARGET};
use super::workroom::{Workroom, inside};
use super::{Bench, Product, Products, crates};
use crate::definition::Component;
use crate::definition::component::Cargo;
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::lock::{Lock, LockedPackage};
use crate::progress::Task;
use crate::tree::compile_root;
use crate::tree::layer::Input;

/// The kind of the store's artifacts that hold compile roots.
const COMPILE_ROOT: &str = "compile-root";
/// The C compiler, by the name that its package ships.
const C_COMPILER: &str = "/usr/bin/gcc";

/// Adds the compilers and the sources.
pub(super) fn add_to_key(sources: &Sources, lock: &Lock, hasher: &mut Hasher) -> Result<()> {
    hasher.field(super::toolchain(lock, "rust")?.hash.as_bytes());
    hasher.field(root_key(lock).as_bytes());
    sources.add_to_key(hasher)
}

/// Builds the programs into `folder`.
pub(super) fn build(
    component: &Component,
    cargo: &Cargo,
    sources: &Sources,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    let pin = bench.toolchain("rust")?;
    let toolchain = rust_toolchain::find(pin, bench.means)?;
    let root = compile_root(bench)?;
    let task = bench
        .means
        .progress
        .task(&format!("build {}", component.name), None);
    let room = Workroom::new(&root, bench.means.store, bench.means.program)?;
    // Alone from the first source that is written to the last program that is copied: cargo compiles what is newer than
    // what it compiled last, and another checkout's build between would have it take that one's programs for ours.
    let cache = target_cache(pin, bench.lock);
    let _alone = bench
        .means
        .store
        .lock_blob(&Digest::of(cache.as_bytes()), "what cargo compiled before")?;
    let workspace = room.folder("workspace")?;
    sources.write(&workspace)?;
    let needed = crates::fetch(sources, &workspace, &toolchain, bench.means, &task)?;
    std::fs::write(workspace.join(LOCK), needed.to_text()?).context("write Cargo.lock")?;
    crates::unpack(&needed, bench.means.store, &room.folder("vendor")?)?;
    let settings = format!(
        "{}[target.{TARGET}]\nlinker = \"{C_COMPILER}\"\n",
        crates::configuration(&needed, &inside("vendor"))
    );
    let home = room.folder("cargo")?;
    std::fs::write(home.join("config.toml"), settings).context("write cargo's configuration")?;
    let target = bench.means.store.cache(&cache)?;
    let room = room.tools(&toolchain).lend(&target, "target");
    compile(room, cargo, &task)?;
    let built = target.join(TARGET).join(if cargo.profile == "dev" {
        "debug"
    } else {
        &cargo.profile
    });
    let mut products = Products {
        compiler: Some(rust_toolchain::described(pin)),
        ..Products::default()
    };
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

/// What was compiled before by the same compilers, for speed. Only this user's own builds write there; who does not want
/// to believe it has `kimage verify --rebuild`.
fn target_cache(pin: &crate::lock::LockedToolchain, lock: &Lock) -> String {
    let mut hasher = Hasher::new();
    hasher.field(pin.hash.as_bytes()).field(root_key(lock).as_bytes());
    format!("cargo-target-{}", hasher.finish().short())
}

fn compile(room: Workroom, cargo: &Cargo, task: &Task) -> Result<()> {
    let room = room
        .env("PATH", "/tools/bin:/usr/bin")
        .env("CARGO_HOME", inside("cargo"))
        .env("CARGO_TARGET_DIR", inside("target"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(cargo))
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TERM_COLOR", "never")
        .env("RUSTC", "/tools/bin/rustc")
        .env("CC", C_COMPILER)
        .env("AR", "/usr/bin/ar");
    let manifest = inside("workspace/Cargo.toml");
    let mut command: Vec<OsString> = vec![
        "/tools/bin/cargo".into(),
        "build".into(),
        "--offline".into(),
        "--locked".into(),
        "--manifest-path".into(),
        manifest.into(),
    ];
    let options = [
        ("--target", TARGET),
        ("--profile", &cargo.profile),
        ("--package", &cargo.package),
    ];
    let binaries = cargo.binary.iter().map(|binary| ("--bin", binary.name.as_str()));
    for (option, value) in options.into_iter().chain(binaries) {
        command.extend([option.into(), value.into()]);
    }
    let finished = room.run(&command, task, |line| {
        let name = line.trim_start().strip_prefix("Compiling ")?;
        task.advance(1);
        Some(name.to_owned())
    })?;
    if finished.success {
        return Ok(());
    }
    Err(complaint::explain("compile", "cargo", &finished.output, &[]))
}

/// rustc's flags, separated by the byte that `CARGO_ENCODED_RUSTFLAGS` wants.
fn flags(cargo: &Cargo) -> String {
    let mut flags = vec!["-C", "target-feature=+crt-static"];
    flags.extend(cargo.rustflags.iter().map(String::as_str));
    flags.join("\x1f")
}

fn packages(lock: &Lock) -> impl Iterator<Item = &LockedPackage> {
    lock.package.iter().filter(|package| package.compile)
}

fn root_key(lock: &Lock) -> Digest {
    compile_root::key(packages(lock).map(|package| package.sha256))
}

/// The compile root of the lock's packages, from the store or made now.
fn compile_root(bench: &Bench<'_>) -> Result<std::path::PathBuf> {
    let means = bench.means;
    let folder = means.store.artifact_or_build(COMPILE_ROOT, &root_key(bench.lock), |folder| {
        if packages(bench.lock).next().is_none() {
            let message = "the lock holds no packages that compile components";
            let hint = "name them in image.toml (`[compile] install = [\"gcc\", \"libc6-dev\"]`), then run `kimage lock`";
            return Err(Failure::new(ExitCode::Lock, message).hint(hint).into());
        }
        crate::download::fetch(
            means.compilers,
            means.store,
            means.access.network,
            means.progress,
        )?;
        let input = |package: &LockedPackage| {
            let path = means.store.blob(&package.sha256)?.ok_or_else(|| {
                let message = format!("the store lacks {} {}", package.name, package.version);
                Failure::new(ExitCode::Fetch, message).hint("run once online")
            })?;
            Ok(Input {
                name: package.name.clone(),
                version: package.version.clone(),
                architecture: package.architecture.clone(),
                digest: package.sha256,
                path,
            })
        };
        let inputs: Vec<Input> = packages(bench.lock).map(input).collect::<Result<_>>()?;
        let root = folder.join("root");
        std::fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        let jobs = std::thread::available_parallelism().map_or(2, usize::from);
        compile_root::unpack(&root, &inputs, jobs, means.progress)
    })?;
    Ok(folder.join("root"))
}
