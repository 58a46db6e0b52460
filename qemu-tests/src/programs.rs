//! The programs under test, as cargo builds them for users and images.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kimage_builder::tool::Tool;

use crate::workspace;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn cargo() -> Tool {
    Tool::new(env!("CARGO"))
        .inherit(&["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_TARGET_DIR"])
        .directory(&workspace())
        .args(["build", "--locked"])
}

/// The command `kimage`, up to date.
pub fn kimage() -> Result<PathBuf> {
    cargo()
        .args(["--release", "-p", "kimage-builder", "--bin", "kimage"])
        .run()?;
    Ok(target().join("release/kimage"))
}

/// A program of the crate `firstboot` as it runs in an image: static, without this machine's paths.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let flags = format!(
        "-C target-feature=+crt-static --remap-path-prefix={}=/kimage",
        workspace().display()
    );
    cargo()
        .env("RUSTFLAGS", flags)
        .args(["--profile", "guest", "--target", TRIPLE])
        .args(["-p", "kimage-firstboot", "--bin", name])
        .run()?;
    let path = target().join(TRIPLE).join("guest").join(name);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}
