//! What the user wrote: an image (`images/<name>/image.toml`), a role (`roles/<name>/role.toml`) and the components
//! that the role names. Unknown keys, wrong types and bad names are refused with file and line.

pub mod component;
mod field;
mod file;
pub mod image;
pub mod role;
mod suggestion;
pub mod toolchain;
mod users;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use crate::failure::{ExitCode, Failure};

pub use component::Component;
pub(crate) use field::mirror_url;
pub use image::Image;
pub use role::Role;
pub use suggestion::nearest;
pub use toolchain::Toolchains;

use file::TomlFile;

/// One image and one role with all components, checked: names are valid, the role exists, every component that the
/// role names exists.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The base image.
    pub image: Image,
    /// The role.
    pub role: Role,
    /// The components that the role (and the image) name, sorted by name.
    pub components: Vec<Component>,
}

/// One image with all roles: what a lock covers.
#[derive(Debug, Clone)]
pub struct ImageDefinition {
    /// The base image.
    pub image: Image,
    /// All roles of the workspace, sorted by name.
    pub roles: Vec<Role>,
    /// The components that the image or a role names, sorted by name.
    pub components: Vec<Component>,
    /// The pinned compilers of `images/components`; `None` without that folder.
    pub toolchains: Option<Toolchains>,
}

/// Reads and checks one image and one role of the workspace at `root` (the folder of `images/` and `roles/`).
///
/// # Errors
/// [`ExitCode::Usage`] with file and line, and a hint that lists what exists.
pub fn load(root: &Path, image: &str, role: &str) -> Result<Definition> {
    load_image(root, image)?.role(role)
}

/// The names of the images of the workspace at `root`, sorted.
pub fn image_names(root: &Path) -> Result<Vec<String>> {
    folders_with(&root.join("images"), image::FILE_NAME)
}

/// Reads and checks one image and all roles of the workspace at `root`.
///
/// # Errors
/// [`ExitCode::Usage`] with file and line, and a hint that lists what exists.
pub fn load_image(root: &Path, name: &str) -> Result<ImageDefinition> {
    let images = folders_with(&root.join("images"), image::FILE_NAME)?;
    known("image", name, &images, &root.join("images"))?;
    let (image, image_file) = image::read(&root.join("images").join(name), name)?;

    let role_names = folders_with(&root.join("roles"), role::FILE_NAME)?;
    let mut roles = Vec::new();
    let components_folder = root.join("images/components");
    let existing = folders_with(&components_folder, component::FILE_NAME)?;
    let (mut used, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
    check_components(&image_file, &image.manifest.components, &existing, &mut used)?;
    users::check(&image_file, &image.manifest, None)?;
    for role_name in &role_names {
        let (role, file) = role::read(&root.join("roles").join(role_name), role_name)?;
        for (base, on) in &role.manifest.on {
            file.known("image", base, &images)?;
            let target = if base == name { &mut used } else { &mut elsewhere };
            check_components(&file, &on.components, &existing, target)?;
        }
        check_components(&file, &role.manifest.components, &existing, &mut used)?;
        users::check(&file, &image.manifest, Some(&role.manifest))?;
        check_leave_out(&file, &image, &role)?;
        roles.push(role);
    }
    let components = used
        .iter()
        .map(|name| Component::load(&components_folder, name))
        .collect::<Result<_>>()?;
    let toolchain_file = components_folder.join(toolchain::FILE_NAME);
    let toolchains = toolchain_file
        .exists()
        .then(|| Toolchains::load(&components_folder))
        .transpose()?;
    Ok(ImageDefinition {
        image,
        roles,
        components,
        toolchains,
    })
}

impl ImageDefinition {
    /// The definition of one role.
    ///
    /// # Errors
    /// [`ExitCode::Usage`] when there is no such role.
    pub fn role(&self, name: &str) -> Result<Definition> {
        let names: Vec<String> = self.roles.iter().map(|role| role.name.clone()).collect();
        known("role", name, &names, Path::new("roles"))?;
        let role = self
            .roles
            .iter()
            .find(|role| role.name == name)
            .context("role vanished")?
            .clone();
        let wanted = role.components_on(&self.image);
        let components = self
            .components
            .iter()
            .filter(|component| wanted.contains(component.name.as_str()))
            .cloned()
            .collect();
        Ok(Definition {
            image: self.image.clone(),
            role,
            components,
        })
    }
}

/// Adds the names of `components` to `used`, refusing those that don't exist and those named twice.
fn check_components(
    file: &TomlFile,
    components: &[String],
    existing: &[String],
    used: &mut BTreeSet<String>,
) -> Result<()> {
    let mut here = BTreeSet::new();
    for name in components {
        file.known("component", name, existing)?;
        if !here.insert(name) {
            return Err(file
                .refuse_at(name, format!("component `{name}` is listed twice"))
                .into());
        }
        used.insert(name.clone());
    }
    Ok(())
}

/// A role must not leave out what the base installs: its result would not hold the base.
fn check_leave_out(file: &TomlFile, image: &Image, role: &Role) -> Result<()> {
    let installed: BTreeSet<&str> = image
        .manifest
        .packages
        .install
        .iter()
        .map(String::as_str)
        .chain(role.install_on(&image.name))
        .collect();
    for package in role.leave_out_on(&image.name) {
        if installed.contains(package) {
            let message = format!("package `{package}` is both installed and left out");
            return Err(file.refuse_at(package, message).into());
        }
    }
    Ok(())
}

/// The names of the folders of `parent` that hold `file`, sorted. An absent parent has none.
fn folders_with(parent: &Path, file: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read folder {}", parent.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read folder {}", parent.display()))?;
        if entry.path().join(file).is_file() {
            let name = entry.file_name().into_string();
            let name =
                name.map_err(|name| anyhow::anyhow!("{} is not UTF-8", parent.join(name).display()))?;
            field::folder_name(&name)
                .map_err(|why| Failure::new(ExitCode::Usage, format!("{}: {why}", entry.path().display())))?;
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Refuses a `name` from the command line that no folder of `parent` has.
fn known(kind: &str, name: &str, names: &[String], parent: &Path) -> Result<()> {
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let failure = Failure::new(ExitCode::Usage, format!("unknown {kind} `{name}`"));
    let place = parent.file_name().unwrap_or_default().to_string_lossy();
    Err(failure
        .hint(suggestion::listing(&format!("{place}/ has"), name, names))
        .into())
}

#[cfg(test)]
mod tests;
