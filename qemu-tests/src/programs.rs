//! The programs that run inside images, as the image build compiles them.

use anyhow::{Context, Result};
use kimage_builder::tool::Tool;

use crate::images::{self, workspace};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A program of the crate `firstboot` as it runs in an image: static, without this machine's paths.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let flags = format!(
        "-C target-feature=+crt-static --remap-path-prefix={}=/kimage",
        workspace().display()
    );
    Tool::new(env!("CARGO"))
        .inherit(&[
            "PATH",
            "HOME",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "RUSTUP_TOOLCHAIN",
            "CARGO_TARGET_DIR",
        ])
        // A test must not let rustup change the host's toolchains.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env("RUSTFLAGS", flags)
        .directory(workspace())
        .args(["build", "--locked", "--profile", "guest", "--target", TRIPLE])
        .args(["-p", "kimage-firstboot", "--bin", name])
        .run()?;
    let path = images::target().join(TRIPLE).join("guest").join(name);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}
