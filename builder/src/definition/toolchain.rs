//! `images/components/toolchain.toml`: the compilers that build components, pinned so that every host gives the
//! same bytes.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};

/// The name of the file, beside the components' folders.
pub const FILE_NAME: &str = "toolchain.toml";

/// The pinned compilers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Toolchains {
    /// Version of this format: 1.
    pub schema: u32,
    /// Go.
    pub go: Pin,
    /// Rust.
    pub rust: Pin,
}

/// One compiler.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pin {
    /// Go: as `go version` prints it (`go1.26.8`). Rust: the release (`1.95.0`).
    pub version: String,
    /// Of what runs. Go: the `h1:` hash of the module `golang.org/toolchain` for linux-amd64. Rust: `sha256:` and the
    /// digest of the files of its sysroot that compile something for x86-64 Linux
    /// ([`crate::components::rust_files_digest`]).
    pub hash: String,
    /// Rust: base URLs of servers that have its releases (`{server}/dist/rustc-{version}-{target}.tar.xz`).
    /// `RUSTUP_DIST_SERVER` wins over them.
    #[serde(default)]
    pub servers: Vec<String>,
}

impl Toolchains {
    /// Reads the pins of `folder` (`images/components`).
    ///
    /// # Errors
    /// [`ExitCode::Usage`] with file and line.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join(FILE_NAME);
        let text = std::fs::read_to_string(&file)
            .with_context(|| Failure::new(ExitCode::Usage, format!("read {}", file.display())))?;
        let pins: Self = toml::from_str(&text).map_err(|error| located(&error, &text, &file))?;
        let version_number = pins.go.version.strip_prefix("go1.").unwrap_or_default();
        let valid =
            !version_number.is_empty() && version_number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let rust = pins
            .rust
            .hash
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.parse::<Digest>().is_ok());
        if pins.schema != 1 || !valid || !rust || !pins.go.hash.starts_with("h1:") {
            let what = "schema must be 1, go.version like `go1.26.8`, go.hash like `h1:...`, rust.hash like `sha256:...`";
            return Err(Failure::new(ExitCode::Usage, format!("{}: {what}", file.display())).into());
        }
        Ok(pins)
    }
}

/// The line, from 1, that a TOML error is about.
pub fn line_of(error: &toml::de::Error, text: &str) -> usize {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..start];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A TOML error as `file:line: what`, with exit code [`ExitCode::Usage`].
pub(super) fn located(error: &toml::de::Error, text: &str, file: &Path) -> anyhow::Error {
    let line = line_of(error, text);
    Failure::new(
        ExitCode::Usage,
        format!("{}:{line}: {}", file.display(), error.message()),
    )
    .into()
}
