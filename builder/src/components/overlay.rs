//! Replaces packages of a dependency before the build. Go refuses `-overlay` for files of its module cache, so the
//! module is copied beside the main module and `go.mod` points there; the build information says so.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::definition::component::{Overlay, files_below};

/// Copies `module` (the folder of `version` in the module cache, already checked against go.sum) into
/// `workspace/overlay/`, puts the overlay's files in the place of the package's, and adds a `replace` line to the
/// workspace's `go.mod`.
pub(super) fn apply(overlay: &Overlay, module: &Path, version: &str, workspace: &Path) -> Result<()> {
    // Relative, because the build information repeats it.
    let below = format!("./overlay/{}", overlay.module);
    let copy = workspace.join(&below);
    // A second overlay of the same module changes the same copy.
    let first = !copy.exists();
    if first {
        for path in files_below(module)? {
            copy_file(&module.join(&path), &copy.join(&path))?;
        }
    }
    let package = copy.join(overlay.package.as_str());
    if !package.is_dir() {
        bail!(
            "overlay: {}@{version} has no package `{}`",
            overlay.module,
            overlay.package
        );
    }
    for entry in fs::read_dir(&package).with_context(|| format!("read folder {}", package.display()))? {
        let path = entry
            .with_context(|| format!("read folder {}", package.display()))?
            .path();
        if path.is_file() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let folder = workspace.join(overlay.folder.as_str());
    for path in files_below(&folder)? {
        copy_file(&folder.join(&path), &package.join(&path))?;
    }
    if first {
        let file = workspace.join("go.mod");
        let mut text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        text.push_str(&format!("\nreplace {} {version} => {below}\n", overlay.module));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Copies content only: files of the module cache are read-only, the copy is not.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}
