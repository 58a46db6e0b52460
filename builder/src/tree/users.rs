//! System users and groups with fixed ids. They stand in `/etc/passwd` before any maintainer script runs, so that
//! scripts find what they would create and no id depends on the order of installation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::dpkg::put;
use super::unpack::Origin;
use crate::definition::image::{Group, User};
use crate::failure::{ExitCode, Failure};

/// Seconds of a day: `/etc/shadow` counts days.
const DAY: u32 = 86_400;

/// The accounts of a tree: base-passwd's static ones and the definition's.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// The accounts in a tree's `/etc/passwd` and `/etc/group`.
    pub fn read(root: &Path) -> Result<Self> {
        Ok(Self {
            users: ids(&root.join("etc/passwd"))?,
            groups: ids(&root.join("etc/group"))?,
        })
    }

    /// Owner and group of a packaged file: dpkg goes by name and falls back to the number.
    pub fn owner(&self, origin: &Origin) -> (u32, u32) {
        let find = |names: &BTreeMap<String, u32>, (id, name): &(u32, Vec<u8>)| {
            std::str::from_utf8(name)
                .ok()
                .and_then(|name| names.get(name))
                .copied()
                .unwrap_or(*id)
        };
        (find(&self.users, &origin.user), find(&self.groups, &origin.group))
    }

    /// Refuses a tree with accounts that are not among these: a maintainer script made them, with an id that depends
    /// on what else is installed.
    pub fn check(&self, root: &Path) -> Result<()> {
        let now = Self::read(root)?;
        let text = fs::read_to_string(root.join("etc/passwd")).context("read /etc/passwd")?;
        let mut lines = String::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, comment, home, shell] = fields[..]
                && self.users.get(name).is_none_or(|known| known.to_string() != uid)
            {
                let _ = writeln!(
                    lines,
                    "[[users]]\nname = {name:?}\nuid = {uid}\ngid = {gid}\ncomment = {comment:?}\nhome = {home:?}\nshell = {shell:?}"
                );
            }
        }
        for (name, gid) in &now.groups {
            if self.groups.get(name) != Some(gid) {
                let _ = writeln!(lines, "[[groups]]\nname = {name:?}\ngid = {gid}");
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let names = lines.lines().filter_map(|line| line.strip_prefix("name = "));
        let names = names.collect::<Vec<_>>().join(", ");
        let message = format!("packages made users or groups that the definition does not fix: {names}");
        Err(Failure::new(ExitCode::Usage, message)
            .hint(format!("add to the definition:\n{lines}"))
            .into())
    }
}

/// Writes `/etc/passwd` and `/etc/group` of a fresh tree: base-passwd's master files and the definition's accounts.
/// base-passwd's scripts leave existing files alone; passwd's turn them into shadow files.
pub fn seed(root: &Path, users: &[User], groups: &[Group]) -> Result<Accounts> {
    let master = |name: &str| {
        let path = root.join("usr/share/base-passwd").join(name);
        fs::read_to_string(&path).with_context(|| format!("read {name} of base-passwd"))
    };
    let (mut passwd, mut group) = (master("passwd.master")?, master("group.master")?);
    append(&mut passwd, users.iter().map(|user| passwd_line(user, "*")));
    append(
        &mut group,
        groups
            .iter()
            .map(|group| format!("{}:*:{}:", group.name, group.gid)),
    );
    write(root, &[("passwd", &passwd, 0o644), ("group", &group, 0o644)])
}

/// Adds a role's accounts to the accounts of the tree `below`, in its delta `root`.
pub fn add(root: &Path, below: &Path, users: &[User], groups: &[Group], epoch: u32) -> Result<Accounts> {
    let old = |name: &str| {
        fs::read_to_string(below.join("etc").join(name)).with_context(|| format!("read /etc/{name}"))
    };
    let (mut passwd, mut shadow) = (old("passwd")?, old("shadow")?);
    let (mut group, mut gshadow) = (old("group")?, old("gshadow")?);
    append(&mut passwd, users.iter().map(|user| passwd_line(user, "x")));
    append(
        &mut shadow,
        users
            .iter()
            .map(|user| format!("{}:!*:{}::::::", user.name, epoch / DAY)),
    );
    append(
        &mut group,
        groups
            .iter()
            .map(|group| format!("{}:x:{}:", group.name, group.gid)),
    );
    append(
        &mut gshadow,
        groups.iter().map(|group| format!("{}:!*::", group.name)),
    );
    let open = [("passwd", &passwd, 0o644), ("group", &group, 0o644)];
    write(
        root,
        &[
            ("shadow", &shadow, 0o640),
            ("gshadow", &gshadow, 0o640),
            open[0],
            open[1],
        ],
    )
}

/// Sets the day of the last password change (`shadow(5)`, third field) of accounts that have one to `epoch`'s.
pub fn clamp_shadow(text: &str, epoch: u32) -> String {
    let day = (epoch / DAY).to_string();
    let clamp = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(changed) = fields.get_mut(2).filter(|changed| !changed.is_empty()) {
            *changed = &day;
        }
        fields.join(":") + "\n"
    };
    text.lines().map(clamp).collect()
}

fn passwd_line(user: &User, password: &str) -> String {
    format!(
        "{}:{password}:{}:{}:{}:{}:{}",
        user.name, user.uid, user.gid, user.comment, user.home, user.shell
    )
}

fn append(text: &mut String, lines: impl Iterator<Item = String>) {
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
}

fn write(root: &Path, files: &[(&str, &String, u32)]) -> Result<Accounts> {
    for (name, text, mode) in files {
        put(&root.join("etc").join(name), text.as_bytes(), *mode)?;
    }
    Accounts::read(root)
}

fn ids(path: &Path) -> Result<BTreeMap<String, u32>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut ids = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else {
            bail!("bad line `{line}`")
        };
        let id = id.parse().with_context(|| format!("bad id in line `{line}`"))?;
        if ids.insert(name.to_owned(), id).is_some() {
            bail!(
                "`{name}` occurs twice in {}: remove it from the definition",
                path.display()
            );
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_of_the_last_change_is_the_epoch() {
        let text = clamp_shadow("root:*:20777:0:99999:7:::\nx:!*:::::::\n", 86_400 * 5 + 3);
        assert_eq!(text, "root:*:5:0:99999:7:::\nx:!*:::::::\n");
    }
}
