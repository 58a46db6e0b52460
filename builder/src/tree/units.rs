//! Which systemd units run: the definition's list is the whole truth. Links that packages shipped or scripts made
//! below `/etc/systemd` are dropped, then each listed unit is enabled as its `[Install]` section says
//! (systemd.unit(5)) and each masked one linked to `/dev/null`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use super::normalise::{place, read};
use super::value::{Entry, Kind, Tree, TreePath};
use crate::failure::{ExitCode, Failure};

const SYSTEM: &str = "etc/systemd/system";
const LINKED: [&str; 2] = [SYSTEM, "etc/systemd/user"];
/// Where unit files are, the first wins (systemd.unit(5), "System Unit Search Path").
const SEARCH: [&str; 3] = [SYSTEM, "usr/local/lib/systemd/system", "usr/lib/systemd/system"];
/// It would mount partitions that stage 0 and first boot already handle.
const GPT_AUTO: &str = "etc/systemd/system-generators/systemd-gpt-auto-generator";
/// Links of links that are followed to a unit's file.
const MOST_LINKS: usize = 8;

/// A list of a definition and the file it stands in.
pub struct Wanted<'a> {
    /// For messages: `images/ubuntu-24.04/image.toml`.
    pub file: &'a str,
    /// Units to enable.
    pub enable: &'a [String],
    /// Units to mask.
    pub mask: &'a [String],
}

/// Enables and masks what `lists` say, and nothing else.
pub fn apply(tree: &mut Tree, lists: &[Wanted<'_>]) -> Result<()> {
    drop_links(tree)?;
    let masked: BTreeSet<&String> = lists.iter().flat_map(|list| list.mask).collect();
    for list in lists {
        for unit in list.enable {
            if masked.contains(unit) {
                return Err(refuse(
                    list.file,
                    format!("unit `{unit}` is to be enabled and masked"),
                ));
            }
            enable(tree, unit, &mut BTreeSet::new())
                .map_err(|error| refuse(list.file, format!("{error:#}")))?;
        }
        for unit in list.mask {
            if find(tree, unit)?.is_none() {
                return Err(refuse(
                    list.file,
                    format!("unit `{unit}`, which is to be masked, is in no package"),
                ));
            }
            let path = parse(SYSTEM)?.join(unit.as_bytes());
            if matches!(
                tree.get(&path),
                Some(Entry {
                    kind: Kind::File { .. },
                    ..
                })
            ) {
                return Err(refuse(
                    list.file,
                    format!("unit `{unit}` can't be masked: {path} is a file"),
                ));
            }
            link(tree, path, "/dev/null")?;
        }
    }
    let path = parse(GPT_AUTO)?;
    tree.remove(&path);
    place(tree, &path, Entry::symlink("/dev/null"))
}

fn refuse(file: &str, message: String) -> anyhow::Error {
    Failure::new(ExitCode::Usage, format!("{file}: {message}")).into()
}

/// Removes all links below `/etc/systemd/{system,user}` and folders that are empty then.
fn drop_links(tree: &mut Tree) -> Result<()> {
    for folder in LINKED {
        let folder = parse(folder)?;
        let inside: Vec<(TreePath, bool)> = tree
            .subtree(&folder)
            .filter(|(path, _)| **path != folder)
            .map(|(path, entry)| (path.clone(), matches!(entry.kind, Kind::Directory)))
            .collect();
        for (path, _) in inside.iter().filter(|(_, directory)| !directory) {
            if matches!(
                tree.get(path),
                Some(Entry {
                    kind: Kind::Symlink(_),
                    ..
                })
            ) {
                tree.remove(path);
            }
        }
        for (path, _) in inside.iter().rev().filter(|(_, directory)| *directory) {
            if tree.subtree(path).nth(1).is_none() {
                tree.remove(path);
            }
        }
    }
    Ok(())
}

/// The keys of an `[Install]` section, each a list of words.
type Install = BTreeMap<String, Vec<String>>;

fn enable(tree: &mut Tree, unit: &str, done: &mut BTreeSet<String>) -> Result<()> {
    if !done.insert(unit.to_owned()) {
        return Ok(());
    }
    let Some(path) = find(tree, unit)? else {
        bail!("unit `{unit}` is in no package")
    };
    let text = tree.get(&path).map(read).transpose()?.unwrap_or_default();
    let text = String::from_utf8(text).with_context(|| format!("{path} is not UTF-8"))?;
    let install = install_section(&text);
    let words = |key: &str| install.get(key).cloned().unwrap_or_default();
    if install.is_empty() {
        bail!("unit `{unit}` has no [Install] section: others start it, it can't be enabled");
    }
    let mut name = unit.to_owned();
    if let (Some(prefix), Some(instance)) = (unit.find("@."), words("DefaultInstance").first()) {
        name = format!("{}@{instance}{}", &unit[..prefix], &unit[prefix + 1..]);
    } else if unit.contains("@.") {
        bail!("unit `{unit}` is a template: name an instance");
    }
    let target = format!("/{}", String::from_utf8_lossy(&path.to_bytes()));
    let system = parse(SYSTEM)?;
    for (key, suffix) in [
        ("WantedBy", "wants"),
        ("RequiredBy", "requires"),
        ("UpheldBy", "upholds"),
    ] {
        for by in words(key) {
            let folder = format!("{}.{suffix}", expand(&by, &name)?);
            link(
                tree,
                system.join(folder.as_bytes()).join(name.as_bytes()),
                &target,
            )?;
        }
    }
    for alias in words("Alias") {
        let alias = expand(&alias, &name)?;
        if alias != name {
            link(tree, system.join(alias.as_bytes()), &target)?;
        }
    }
    for also in words("Also") {
        let also = expand(&also, &name)?;
        if find(tree, &also)?.is_some() {
            enable(tree, &also, done)?;
        }
    }
    Ok(())
}

fn link(tree: &mut Tree, path: TreePath, target: &str) -> Result<()> {
    tree.remove(&path);
    place(tree, &path, Entry::symlink(target))
}

/// Whether a package or the definition brings `unit`, or its template.
pub(super) fn exists(tree: &Tree, unit: &str) -> Result<bool> {
    Ok(find(tree, unit)?.is_some())
}

/// The file of a unit: its own, or its template's. Aliases that packages ship are followed.
fn find(tree: &Tree, unit: &str) -> Result<Option<TreePath>> {
    if unit.is_empty() || unit.contains('/') {
        bail!("`{unit}` is not a unit's name");
    }
    let template = unit.split_once('@').and_then(|(prefix, rest)| {
        let suffix = rest.rsplit_once('.')?.1;
        Some(format!("{prefix}@.{suffix}"))
    });
    for name in std::iter::once(unit.to_owned()).chain(template) {
        for folder in SEARCH {
            let path = parse(folder)?.join(name.as_bytes());
            if let Some(found) = resolve(tree, path)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn resolve(tree: &Tree, mut path: TreePath) -> Result<Option<TreePath>> {
    for _ in 0..MOST_LINKS {
        match tree.get(&path).map(|entry| &entry.kind) {
            Some(Kind::File { .. }) => return Ok(Some(path)),
            Some(Kind::Symlink(target)) if target == b"/dev/null" => return Ok(None),
            Some(Kind::Symlink(target)) => {
                path = follow(&path, target)?;
            }
            _ => return Ok(None),
        }
    }
    bail!("{path}: too many links");
}

/// Where a link at `path` leads, in a merged-/usr tree.
fn follow(path: &TreePath, target: &[u8]) -> Result<TreePath> {
    let mut parts = if target.starts_with(b"/") {
        TreePath::root()
    } else {
        path.parent().unwrap_or_default()
    };
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => parts = parts.parent().unwrap_or_default(),
            _ => parts = parts.join(part),
        }
    }
    Ok(super::unpack::merged(&parts))
}

fn install_section(text: &str) -> Install {
    let mut install = Install::new();
    let mut inside = false;
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[Install]";
        } else if let (true, Some((key, value))) =
            (inside && !line.starts_with(['#', ';']), line.split_once('='))
        {
            let words = install.entry(key.trim().to_owned()).or_default();
            // An empty value resets the list.
            if value.trim().is_empty() {
                words.clear();
            }
            words.extend(value.split_whitespace().map(str::to_owned));
        }
    }
    install
}

/// Replaces the specifiers that `[Install]` may use (systemd.unit(5)).
fn expand(word: &str, unit: &str) -> Result<String> {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let mut out = String::new();
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('%') => out.push('%'),
            Some('i' | 'I') => out.push_str(instance),
            Some('n') => out.push_str(unit),
            Some('N') => out.push_str(stem),
            Some('p' | 'P') => out.push_str(prefix),
            other => bail!("unit `{unit}`: unknown specifier in `{word}` ({other:?})"),
        }
    }
    if out.contains('/') || out.is_empty() {
        bail!("unit `{unit}`: `{word}` is not a unit's name");
    }
    Ok(out)
}

fn parse(path: &str) -> Result<TreePath> {
    TreePath::parse(path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(units: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new(1);
        for (path, text) in units {
            let entry = match text.strip_prefix("-> ") {
                Some(target) => Entry::symlink(target),
                None => Entry::bytes(0o644, text.as_bytes().to_vec()),
            };
            place(&mut tree, &parse(path).unwrap(), entry).unwrap();
        }
        tree
    }

    fn target(tree: &Tree, path: &str) -> Option<String> {
        match &tree.get(&parse(path).unwrap())?.kind {
            Kind::Symlink(target) => Some(String::from_utf8(target.clone()).unwrap()),
            _ => Some("a file".to_owned()),
        }
    }

    fn run(tree: &mut Tree, enable: &[&str], mask: &[&str]) -> Result<()> {
        let own = |list: &[&str]| list.iter().map(|unit| (*unit).to_owned()).collect::<Vec<_>>();
        apply(
            tree,
            &[Wanted {
                file: "image.toml",
                enable: &own(enable),
                mask: &own(mask),
            }],
        )
    }

    #[test]
    fn install_sections_become_links_and_old_links_go() {
        let mut tree = tree(&[
            (
                "etc/systemd/system/multi-user.target.wants/old.service",
                "-> /lib/systemd/system/old.service",
            ),
            (
                "etc/systemd/system/own.service",
                "[Install]\nRequiredBy=x.target\n",
            ),
            (
                "usr/lib/systemd/system/a.service",
                "[Install]\nWantedBy=m.target \\\n n.target\nAlias=b.service\nAlso=c.socket no.socket\n",
            ),
            (
                "usr/lib/systemd/system/c.socket",
                "[Install]\nWantedBy=sockets.target\n",
            ),
            (
                "usr/lib/systemd/system/t@.service",
                "[Install]\nWantedBy=%i.target\nDefaultInstance=one\n",
            ),
            ("usr/lib/systemd/system/link.service", "-> a.service"),
        ]);
        run(
            &mut tree,
            &["a.service", "own.service", "t@.service", "t@two.service"],
            &["link.service"],
        )
        .unwrap();
        let at = |path: &str| target(&tree, &format!("etc/systemd/system/{path}"));
        assert_eq!(at("multi-user.target.wants/old.service"), None);
        assert_eq!(at("multi-user.target.wants"), None);
        assert_eq!(
            at("m.target.wants/a.service").as_deref(),
            Some("/usr/lib/systemd/system/a.service")
        );
        assert_eq!(
            at("n.target.wants/a.service").as_deref(),
            Some("/usr/lib/systemd/system/a.service")
        );
        assert_eq!(
            at("b.service").as_deref(),
            Some("/usr/lib/systemd/system/a.service")
        );
        assert_eq!(
            at("sockets.target.wants/c.socket").as_deref(),
            Some("/usr/lib/systemd/system/c.socket")
        );
        assert_eq!(
            at("x.target.requires/own.service").as_deref(),
            Some("/etc/systemd/system/own.service")
        );
        assert_eq!(
            at("one.target.wants/t@one.service").as_deref(),
            Some("/usr/lib/systemd/system/t@.service")
        );
        assert_eq!(
            at("two.target.wants/t@two.service").as_deref(),
            Some("/usr/lib/systemd/system/t@.service")
        );
        assert_eq!(at("link.service").as_deref(), Some("/dev/null"));
        assert_eq!(target(&tree, GPT_AUTO).as_deref(), Some("/dev/null"));
    }

    #[test]
    fn a_unit_that_is_absent_or_static_is_named_with_the_file() {
        let mut tree = tree(&[("usr/lib/systemd/system/static.service", "[Unit]\n")]);
        for (enable, mask) in [
            (&["x.service"][..], &[][..]),
            (&["static.service"], &[]),
            (&[], &["y.service"]),
        ] {
            let error = run(&mut tree, enable, mask).unwrap_err().to_string();
            let unit = enable.iter().chain(mask).next().unwrap();
            assert!(
                error.starts_with("image.toml: ") && error.contains(unit),
                "{error}"
            );
        }
    }

    #[test]
    fn a_component_can_not_place_a_unit_through_a_path() {
        assert!(run(&mut tree(&[]), &["../x.service"], &[]).is_err());
        assert!(expand("a/b", "x.service").is_err());
    }
}
