//! `image.lock` on disk.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Lock;
use super::drift::drift;
use super::resolve::{SCHEMA, Wanted};
use crate::definition::toolchain::line_of;
use crate::definition::{Component, Image, Role, Toolchains};
use crate::failure::{ExitCode, Failure};

/// The file beside `image.toml`.
pub const FILE_NAME: &str = "image.lock";

/// Largest lock in bytes.
const LIMIT: u64 = 16 << 20;

const HEADER: &str =
    "# Every input of the image. Written by `kimage lock`, read by `kimage build`; commit it.\n\n";

/// Reads the lock of `image`; `None` when there is none.
pub fn load(image: &Image) -> Result<Option<Lock>> {
    let path = image.folder.join(FILE_NAME);
    let size = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    ensure!(
        size <= LIMIT,
        "{} has {size} bytes, more than {LIMIT}",
        path.display()
    );
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lock = parse(&text).map_err(|(line, why)| {
        Failure::new(ExitCode::Lock, format!("{}:{line}: {why}", path.display())).hint(remedy(image))
    })?;
    Ok(Some(lock))
}

/// Reads the lock and makes sure that it is what the definitions ask for now.
///
/// # Errors
/// [`ExitCode::Lock`] when it is absent or stale; the message names what drifted, the hint the command that mends it.
pub fn load_fresh(
    image: &Image,
    roles: &[Role],
    components: &[Component],
    toolchains: Option<&Toolchains>,
) -> Result<Lock> {
    let path = image.folder.join(FILE_NAME);
    let lock = load(image)?.ok_or_else(|| {
        Failure::new(ExitCode::Lock, format!("{} is absent", path.display())).hint(remedy(image))
    })?;
    let wanted = Wanted::new(image, roles, components, toolchains)?;
    let differences = drift(&lock, &wanted, image);
    if differences.is_empty() {
        return Ok(lock);
    }
    let message = format!("{} is stale: {}", path.display(), differences.join("; "));
    Err(Failure::new(ExitCode::Lock, message).hint(remedy(image)).into())
}

/// What an error about a part of the lock of `image` begins with.
pub fn stale(image: &Image) -> String {
    format!("{} is stale", image.folder.join(FILE_NAME).display())
}

fn remedy(image: &Image) -> String {
    format!("kimage lock --image {}", image.name)
}

/// Writes the lock beside and renames it into place.
pub fn write(image: &Image, lock: &Lock) -> Result<PathBuf> {
    let path = image.folder.join(FILE_NAME);
    let text = render(lock)?;
    let context = || format!("write {}", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".image.lock.")
        .tempfile_in(&image.folder)
        .with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    set_ordinary_mode(file.path()).with_context(context)?;
    file.persist(&path).with_context(context)?;
    Ok(path)
}

/// Temporary files are private; a committed file is not.
fn set_ordinary_mode(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

pub(super) fn render(lock: &Lock) -> Result<String> {
    Ok(HEADER.to_owned() + &toml::to_string_pretty(lock).context("write image.lock")?)
}

fn parse(text: &str) -> Result<Lock, (usize, String)> {
    let lock: Lock = toml::from_str(text).map_err(|error| {
        let line = line_of(&error, text);
        (line, error.message().to_owned())
    })?;
    if lock.schema != SCHEMA {
        return Err((1, format!("schema {} is not the known {SCHEMA}", lock.schema)));
    }
    for package in &lock.package {
        let plain = package
            .path
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
        if !plain || !package.base && !package.compile && package.roles.is_empty() {
            return Err((
                1,
                format!(
                    "package {}: `{}` is no path of an archive or nobody needs it",
                    package.name, package.path
                ),
            ));
        }
    }
    Ok(lock)
}
