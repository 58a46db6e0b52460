//! Users and groups of an image and a role together: every name and every id once.

use std::collections::BTreeMap;

use anyhow::Result;

use super::file::TomlFile;
use super::image::ImageManifest;
use super::role::RoleManifest;

/// Refuses a name or an id that two users or two groups share. `file` is the role's when there is one.
pub(super) fn check(file: &TomlFile, image: &ImageManifest, role: Option<&RoleManifest>) -> Result<()> {
    let users = image
        .users
        .iter()
        .chain(role.into_iter().flat_map(|role| &role.users));
    distinct(
        file,
        "user",
        "uid",
        users.map(|user| (user.name.as_str(), user.uid)),
    )?;
    let groups = image
        .groups
        .iter()
        .chain(role.into_iter().flat_map(|role| &role.groups));
    distinct(
        file,
        "group",
        "gid",
        groups.map(|group| (group.name.as_str(), group.gid)),
    )
}

fn distinct<'a>(
    file: &TomlFile,
    kind: &str,
    id_key: &str,
    entries: impl Iterator<Item = (&'a str, u32)>,
) -> Result<()> {
    let (mut names, mut ids) = (BTreeMap::new(), BTreeMap::new());
    for (name, id) in entries {
        if names.insert(name, id).is_some() {
            return Err(file
                .refuse_at(name, format!("{kind} `{name}` is defined twice"))
                .into());
        }
        if let Some(other) = ids.insert(id, name) {
            let message = format!("{kind}s `{other}` and `{name}` share the {id_key} {id}");
            return Err(file.refuse_at(name, message).into());
        }
    }
    Ok(())
}
