//! `/var/lib/dpkg/triggers` (deb-triggers(5), dpkg's `lib/dpkg/triglib.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{ADMIN, Package, put};
use crate::tree::unpack::merged;
use crate::tree::value::TreePath;

/// Writes `triggers/`: who is interested in what, and what the new packages have set off.
pub fn write_triggers(
    root: &Path,
    packages: &[Package],
    below: Option<&Path>,
    lists: &[Vec<TreePath>],
) -> Result<()> {
    let folder = root.join(ADMIN).join("triggers");
    let old = below.map(|below| below.join(ADMIN).join("triggers"));
    let mut interests = old
        .as_deref()
        .map(read_interests)
        .transpose()?
        .unwrap_or_default();
    let known = interests.clone();
    for package in packages {
        for (directive, trigger) in directives(package)? {
            let Some(kind) = directive.strip_prefix("interest") else {
                continue;
            };
            let suffix = if kind == "-noawait" { "/noawait" } else { "" };
            let line = format!("{}{suffix}", package.info_name());
            let holders = interests.entry(trigger).or_default();
            if !holders.contains(&line) {
                holders.push(line);
            }
        }
    }
    let mut file_text = String::new();
    for (trigger, holders) in &interests {
        if trigger.starts_with('/') {
            for holder in holders {
                let _ = writeln!(file_text, "{trigger} {holder}");
            }
        } else if known.get(trigger) != Some(holders) {
            put(
                &folder.join(trigger),
                format!("{}\n", holders.join("\n")).as_bytes(),
                0o644,
            )?;
        }
    }
    put(&folder.join("File"), file_text.as_bytes(), 0o644)?;
    // Packages unpacked together start from `unpacked`, and configuring them does what their triggers would do. Only
    // packages that were configured before (the base's) must be told.
    let mut set_off: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (package, list) in packages.iter().zip(lists) {
        for (directive, trigger) in directives(package)? {
            if let (true, Some((known, _))) =
                (directive.starts_with("activate"), known.get_key_value(&trigger))
            {
                let who = if directive == "activate-noawait" {
                    "-".to_owned()
                } else {
                    package.info_name()
                };
                set_off.entry(known).or_default().insert(who);
            }
        }
        for trigger in known.keys().filter(|trigger| trigger.starts_with('/')) {
            let watched = merged(&TreePath::parse(trigger.as_bytes())?);
            if list
                .iter()
                .any(|path| watched.holds(&merged(path)) && merged(path) != watched)
            {
                set_off.entry(trigger).or_default().insert("-".to_owned());
            }
        }
    }
    let mut text = String::new();
    for (trigger, who) in set_off {
        let who: Vec<String> = who.into_iter().collect();
        let _ = writeln!(text, "{trigger} {}", who.join(" "));
    }
    put(&folder.join("Unincorp"), text.as_bytes(), 0o644)
}

/// deb-triggers(5): one directive and one trigger a line.
fn directives(package: &Package) -> Result<Vec<(String, String)>> {
    let text = package.control_file("triggers").unwrap_or_default();
    let text =
        std::str::from_utf8(text).with_context(|| format!("{}: triggers is not UTF-8", package.name))?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let pairs = lines.filter(|line| !line.is_empty()).map(|line| {
        let (directive, trigger) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let trigger = trigger.trim();
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"+-._:".contains(&c);
        let named = !trigger.is_empty() && !trigger.starts_with('.') && trigger.bytes().all(plain);
        if !(trigger.starts_with('/') || named) {
            bail!("{}: triggers: bad trigger `{trigger}`", package.name);
        }
        Ok((directive.to_owned(), trigger.to_owned()))
    });
    pairs.collect()
}

fn read_interests(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut interests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut names: Vec<_> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let name = name.to_string_lossy().into_owned();
        let text = fs::read_to_string(folder.join(&name))?;
        match name.as_str() {
            "Lock" | "Unincorp" => {}
            "File" => {
                for (trigger, holder) in text.lines().filter_map(|line| line.split_once(' ')) {
                    interests
                        .entry(trigger.to_owned())
                        .or_default()
                        .push(holder.to_owned());
                }
            }
            _ => interests
                .entry(name)
                .or_default()
                .extend(text.lines().map(str::to_owned)),
        }
    }
    Ok(interests)
}
