//! What moved between two locks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::Lock;
use crate::archive::version;

/// One difference between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// `package`, `component` or `toolchain`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The version before; absent when it is new.
    pub old: Option<String>,
    /// The version now; absent when it is gone.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, .. } = self;
        match (&self.old, &self.new) {
            (None, Some(new)) => write!(f, "added       {kind} {name} {new}"),
            (Some(old), None) => write!(f, "removed     {kind} {name} {old}"),
            (Some(old), Some(new)) if old == new => write!(f, "rebuilt     {kind} {name} {new}"),
            (Some(old), Some(new)) if version::compare(old, new).is_gt() => {
                write!(f, "downgraded  {kind} {name} {old} -> {new}")
            }
            (Some(old), Some(new)) => write!(f, "upgraded    {kind} {name} {old} -> {new}"),
            (None, None) => Ok(()),
        }
    }
}

/// All differences, sorted by kind and name.
pub fn between(old: &Lock, new: &Lock) -> Vec<Change> {
    let mut changes = Vec::new();
    type TableOf = fn(&Lock) -> Table;
    let tables: [(&'static str, TableOf); 3] = [
        ("component", components),
        ("package", packages),
        ("toolchain", toolchains),
    ];
    for (kind, table) in tables {
        let (old, new) = (table(old), table(new));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (before, after) = (old.get(name), new.get(name));
            if before != after {
                let version = |entry: Option<&(String, String)>| entry.map(|(version, _)| version.clone());
                changes.push(Change {
                    kind,
                    name: name.clone(),
                    old: version(before),
                    new: version(after),
                });
            }
        }
    }
    changes
}

/// Name -> version and what identifies the bytes.
type Table = BTreeMap<String, (String, String)>;

fn packages(lock: &Lock) -> Table {
    lock.package
        .iter()
        .map(|p| (p.name.clone(), (p.version.clone(), p.sha256.to_string())))
        .collect()
}

fn components(lock: &Lock) -> Table {
    lock.component
        .iter()
        .map(|c| {
            // What it is, or what it is made of where nobody has built it yet.
            let identity = c.built.as_ref().map_or(c.source, |built| built.output);
            (c.name.clone(), (c.version.clone(), identity.to_string()))
        })
        .collect()
}

fn toolchains(lock: &Lock) -> Table {
    lock.toolchain
        .iter()
        .map(|t| (t.name.clone(), (t.version.clone(), t.hash.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_which_way_it_goes() {
        let change = |old: Option<&str>, new: Option<&str>| {
            let (old, new) = (old.map(str::to_owned), new.map(str::to_owned));
            Change {
                kind: "package",
                name: "libc6".to_owned(),
                old,
                new,
            }
            .to_string()
        };
        assert_eq!(
            change(Some("2.39-1"), Some("2.39-10")),
            "upgraded    package libc6 2.39-1 -> 2.39-10"
        );
        assert_eq!(
            change(Some("1:1"), Some("2")),
            "downgraded  package libc6 1:1 -> 2"
        );
        assert_eq!(change(None, Some("1")), "added       package libc6 1");
        assert_eq!(change(Some("1"), None), "removed     package libc6 1");
        assert_eq!(change(Some("1"), Some("1")), "rebuilt     package libc6 1");
    }
}
