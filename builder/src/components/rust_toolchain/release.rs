//! A Rust compiler from a server of Rust's releases: `{server}/dist/{part}-{version}-{target}.tar.xz` for each part, as
//! Rust's own installer fetches them. In an archive, `{part}-{version}-{target}/{part}/` holds what belongs into the
//! sysroot; the standard library's part has the target in its name.

use std::io::Read;
use std::path::{Component as Part, Path, PathBuf};

use anyhow::{Context, Result, bail};
use lzma_rust2::XzReader;

use super::{MOST_FILES, TARGET, is_needed, is_program, put};
use crate::download::{self, Network};
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedToolchain;
use crate::progress::Progress;

const PARTS: [&str; 3] = ["rustc", "rust-std", "cargo"];
/// Most bytes of one archive (1.95.0: rustc has 80 MB).
const LARGEST_ARCHIVE: u64 = 512 << 20;
/// Most bytes that an archive may unpack to.
const MOST_BYTES: u64 = 4 << 30;

/// Fetches the parts and unpacks what compiles something into `folder`. The caller checks what came.
pub(super) fn fetch(
    pin: &LockedToolchain,
    folder: &Path,
    network: Network,
    progress: &Progress,
) -> Result<()> {
    let version = &pin.version;
    let install = format!("rustup toolchain install {version}");
    if network == Network::Offline {
        let message = format!("the pinned Rust {version} is neither installed nor in the store");
        return Err(Failure::new(ExitCode::Fetch, message)
            .hint(format!("run `{install}`, or run once online"))
            .into());
    }
    let servers = servers(pin);
    if servers.is_empty() {
        let message =
            format!("the pinned Rust {version} is not installed, and no server is known that has it");
        return Err(Failure::new(ExitCode::Fetch, message)
            .hint(format!("run `{install}`, or set RUSTUP_DIST_SERVER=https://..."))
            .into());
    }
    for part in PARTS {
        let name = format!("{part}-{version}-{TARGET}");
        let urls: Vec<download::Address> = servers
            .iter()
            .map(|server| download::Address::from(server.as_str()).below(&format!("dist/{name}.tar.xz")))
            .collect();
        let bytes = download::document(&urls, LARGEST_ARCHIVE, progress)
            .with_context(|| format!("fetch {name}; `{install}` would do as well"))?;
        unpack(&bytes, folder).with_context(|| format!("unpack {name}"))?;
    }
    Ok(())
}

/// Whom to ask: the user's own choice, or those that the pin names.
fn servers(pin: &LockedToolchain) -> Vec<String> {
    match std::env::var("RUSTUP_DIST_SERVER") {
        Ok(server) if !server.is_empty() => vec![server],
        _ => pin.servers.clone(),
    }
}

fn unpack(bytes: &[u8], folder: &Path) -> Result<()> {
    let plain = XzReader::new(bytes, true).take(MOST_BYTES);
    let mut files = 0;
    for entry in tar::Archive::new(plain).entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let name = entry.path().context("read the archive")?.into_owned();
        let Some(path) = in_sysroot(&name)? else { continue };
        if !entry.header().entry_type().is_file() || !is_needed(&path) {
            continue;
        }
        files += 1;
        if files > MOST_FILES {
            bail!("it holds more files than a Rust compiler");
        }
        let program = is_program(&path);
        put(&mut entry, &folder.join(&path), program)
            .with_context(|| format!("unpack {}", name.display()))?;
    }
    Ok(())
}

/// Where a file of an archive belongs; `None` for those beside the part's folder.
fn in_sysroot(name: &Path) -> Result<Option<PathBuf>> {
    let mut parts = name.components().filter(|part| *part != Part::CurDir);
    let rest: PathBuf = {
        let (_archive, _part) = (parts.next(), parts.next());
        parts.collect()
    };
    if rest.components().any(|part| !matches!(part, Part::Normal(_))) {
        bail!("`{}` leaves its folder", name.display());
    }
    Ok((!rest.as_os_str().is_empty()).then_some(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_archive_and_part_and_may_not_leave() {
        let there = |name: &str| in_sysroot(Path::new(name)).unwrap();
        assert_eq!(there("rustc-1/rustc/bin/rustc"), Some("bin/rustc".into()));
        assert_eq!(there("./rustc-1/rustc/bin/rustc"), Some("bin/rustc".into()));
        assert_eq!(there("rustc-1/install.sh"), None);
        assert!(in_sysroot(Path::new("rustc-1/rustc/../../x")).is_err());
    }
}
