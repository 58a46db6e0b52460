//! `roles/<name>/role.toml`: what one role adds to the base.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use kimage_roles::slot::DECLARED_MIB;
use serde::Deserialize;

use super::field;
use super::file::TomlFile;
use super::image::{Group, Image, LeaveOut, Packages, Units, User, check_packages};

/// The name of the file that makes a folder a role.
pub(super) const FILE_NAME: &str = "role.toml";

/// A role.
#[derive(Debug, Clone)]
pub struct Role {
    /// The folder's name below `roles/`: `control-plane`, `etcd` or `worker`.
    pub name: String,
    /// The folder itself: `role.toml`, `files/`.
    pub folder: PathBuf,
    /// The content of `role.toml`.
    pub manifest: RoleManifest,
}

/// The keys of `role.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleManifest {
    /// Version of this format: 1.
    #[serde(deserialize_with = "field::schema")]
    pub schema: u32,
    /// One sentence for `kimage inspect`.
    #[serde(deserialize_with = "field::one::<_, field::Line>")]
    pub title: String,
    /// Packages on top of the base.
    #[serde(default)]
    pub packages: Packages,
    /// Where this role's packages have other names on one base: by image name.
    #[serde(default)]
    pub on: BTreeMap<String, RoleOnImage>,
    /// Components (folders of `images/components`).
    #[serde(default, deserialize_with = "field::list::<_, field::Folder>")]
    pub components: Vec<String>,
    /// Users on top of the base.
    #[serde(default, deserialize_with = "field::tables")]
    pub users: Vec<User>,
    /// Groups on top of the base.
    #[serde(default, deserialize_with = "field::tables")]
    pub groups: Vec<Group>,
    /// Units on top of the base.
    #[serde(default)]
    pub units: Units,
    /// Kernel modules to load at boot, written to `/usr/lib/modules-load.d/kimage.conf`.
    #[serde(default, deserialize_with = "field::list::<_, field::Module>")]
    pub modules: Vec<String>,
    /// Kernel parameters, written to `/usr/lib/sysctl.d/90-kimage.conf`.
    #[serde(default, deserialize_with = "field::sysctls")]
    pub sysctls: BTreeMap<String, String>,
    /// Size of the root partitions on a machine's disk, in MiB: what later versions have room to grow to. Half as
    /// much again as this version's root when it is not declared.
    #[serde(default)]
    pub root_size_mib: Option<u32>,
    /// What the role may cost; `kimage build` warns beyond it.
    pub budget: Budget,
}

/// What differs on one base image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleOnImage {
    /// More packages on that base.
    #[serde(default)]
    pub packages: Packages,
    /// More components on that base.
    #[serde(default, deserialize_with = "field::list::<_, field::Folder>")]
    pub components: Vec<String>,
}

/// Limits that `kimage build` reports against.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Budget {
    /// Compressed qcow2, in MB (10^6 bytes).
    pub image_mb: u64,
    /// From power-on to `multi-user.target` under emulation on two cores, in seconds.
    pub boot_seconds: u64,
}

impl Role {
    /// The packages to install on top of `image`'s base: the role's and those for that image.
    pub fn install_on(&self, image: &str) -> impl Iterator<Item = &str> {
        self.packages_on(image)
            .flat_map(|packages| packages.install.iter().map(String::as_str))
    }

    /// The packages that this role leaves out on `image`, besides the base's.
    pub fn leave_out_on(&self, image: &str) -> impl Iterator<Item = &str> {
        self.packages_on(image).flat_map(Packages::left_out)
    }

    /// Everything that the base and this role leave out of the tree on `image`.
    pub fn leave_outs<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = &'a LeaveOut> {
        let base = image.manifest.packages.leave_out.iter();
        base.chain(
            self.packages_on(&image.name)
                .flat_map(|packages| &packages.leave_out),
        )
    }

    /// The names of the components of the base and of this role on `image`.
    pub fn components_on<'a>(&'a self, image: &'a Image) -> BTreeSet<&'a str> {
        let on = self
            .manifest
            .on
            .get(&image.name)
            .into_iter()
            .flat_map(|on| &on.components);
        let all = image
            .manifest
            .components
            .iter()
            .chain(&self.manifest.components)
            .chain(on);
        all.map(String::as_str).collect()
    }

    fn packages_on(&self, image: &str) -> impl Iterator<Item = &Packages> {
        std::iter::once(&self.manifest.packages).chain(self.manifest.on.get(image).map(|on| &on.packages))
    }
}

/// Reads the role in `folder`.
pub(super) fn read(folder: &Path, name: &str) -> Result<(Role, TomlFile)> {
    let file = TomlFile::read(&folder.join(FILE_NAME))?;
    let manifest: RoleManifest = file.parse()?;
    if let Some(mib) = manifest.root_size_mib
        && !DECLARED_MIB.contains(&mib)
    {
        let (least, most) = (DECLARED_MIB.start(), DECLARED_MIB.end());
        let message = format!("root-size-mib must be {least} to {most}");
        return Err(file.refuse_at("root-size-mib", message).into());
    }
    check_packages(&file, &manifest.packages)?;
    for on in manifest.on.values() {
        check_packages(&file, &on.packages)?;
    }
    Ok((
        Role {
            name: name.to_owned(),
            folder: folder.to_owned(),
            manifest,
        },
        file,
    ))
}
