//! The images that the claims are about: built by the real `kimage`, once per test process, from the committed lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

/// Where the workspace is.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

/// What of the workspace a build reads: what a copy of it must hold.
pub const WORKSPACE_PARTS: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "images",
    "roles",
    "firstboot",
    "builder",
    "qemu-tests",
];

/// Copies what a build reads of the workspace into `folder`.
pub fn copy_workspace(folder: &Path) -> Result<()> {
    let parts = WORKSPACE_PARTS.map(|name| workspace().join(name));
    finish(command("cp").arg("-a").args(parts).arg(folder)).map(drop)
}

/// The real `kimage`, built if need be.
pub fn kimage() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| build_kimage().map_err(|error| format!("{error:#}")));
    program.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn build_kimage() -> Result<PathBuf> {
    let mut cargo = command("cargo");
    // What cargo tells a test about its own crate would make build scripts of dependencies run again.
    let ours = |name: &str| name.starts_with("CARGO") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR";
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        cargo.env_remove(name);
    }
    cargo
        .args(["build", "--release", "--locked", "--bin", "kimage"])
        .current_dir(workspace());
    finish(cargo.stderr(Stdio::inherit()))?;
    Ok(target().join("release/kimage"))
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The release folder of `role` on base `image`, below `target/images`, built once in this process. Its keys are those of
/// [`keys`].
pub fn release(image: &str, role: &str) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let output = workspace().join("target/images").join(image);
    let folder = output.join(role);
    // Held while building: two builds of one folder are no test's matter. What a panic left is what was built before.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains(&folder) {
        let mut build = command(kimage()?);
        build
            .args(["build", "--image", image, "--role", role, "--output"])
            .arg(&output);
        build.arg("--keys").arg(keys()?).current_dir(workspace());
        finish(build.stderr(Stdio::inherit()))?;
        built.insert(folder.clone());
    }
    Ok(folder)
}

/// Folders of `store` that hold inputs, compilers and components, and no tree. A store whose components are all from
/// a vendor file has no compilers.
pub fn store_parts(store: &Path) -> impl Iterator<Item = &'static str> {
    let parts = [
        "blobs",
        "artifacts/component",
        "artifacts/toolchain",
        "artifacts/compile-root",
    ];
    parts.into_iter().filter(|part| store.join(part).exists())
}

/// A key set of the tests' own, made once.
pub fn keys() -> Result<PathBuf> {
    let folder = workspace().join("target/images/keys");
    if !folder.exists() {
        std::fs::create_dir_all(workspace().join("target/images"))?;
        finish(command(kimage()?).args(["keys", "new"]).arg(&folder))?;
    }
    Ok(folder)
}

/// A child process of a test.
#[expect(clippy::disallowed_methods, reason = "the door for kimage and for oracles")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null());
    command
}

/// Runs a child that must succeed; what it said is in the error.
pub fn finish(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}: run `qemu-tests/run-all` once, it installs tools"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&said)
        );
    }
    Ok(output)
}
