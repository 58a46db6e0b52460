//! `Cargo.lock`, as far as kimage must know it: which crates a program needs, and what they hash to.
//!
//! Format: version 3 and 4 of cargo's lock file (`cargo/core/resolver/encode.rs`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The lock file of a Rust workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CargoLock {
    version: u32,
    #[serde(default)]
    package: Vec<Package>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Absent for what the workspace itself holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<Digest>,
    /// `name`, `name version` or `name version (source)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dependencies: Vec<String>,
}

impl Package {
    /// The digest of its `.crate` file.
    pub(super) fn digest(&self) -> Result<Digest> {
        self.checksum.with_context(|| {
            format!(
                "crate {} {} has no checksum in Cargo.lock: only crates of registries can be built from",
                self.name, self.version
            )
        })
    }

    fn is_same_as(&self, other: &Self) -> bool {
        (&self.name, &self.version, &self.source, &self.checksum)
            == (&other.name, &other.version, &other.source, &other.checksum)
    }
}

impl CargoLock {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lock: Self = toml::from_str(text)?;
        ensure!(
            matches!(lock.version, 3 | 4),
            "version {} of the format is neither 3 nor 4",
            lock.version
        );
        for package in &lock.package {
            let plain = |text: &str| {
                let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
                !text.is_empty() && !text.starts_with('.') && text.chars().all(allowed)
            };
            // Both become parts of paths.
            ensure!(
                plain(&package.name) && plain(&package.version),
                "`{} {}` names no package",
                package.name,
                package.version
            );
        }
        Ok(lock)
    }

    /// The file's text.
    pub(super) fn to_text(&self) -> Result<String> {
        toml::to_string(self).context("write Cargo.lock")
    }

    /// The part of it that the workspace's packages `members` need, in its order.
    pub(super) fn needed_by(&self, members: &BTreeSet<String>) -> Result<Self> {
        let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, package) in self.package.iter().enumerate() {
            by_name.entry(&package.name).or_default().push(index);
        }
        let mut pending = Vec::new();
        for member in members {
            let own = by_name.get(member.as_str()).into_iter().flatten();
            let own = own.copied().find(|index| self.package[*index].source.is_none());
            pending.push(own.with_context(|| format!("Cargo.lock holds no `{member}`"))?);
        }
        let mut needed = BTreeSet::new();
        while let Some(index) = pending.pop() {
            if !needed.insert(index) {
                continue;
            }
            for dependency in &self.package[index].dependencies {
                let mut words = dependency.split(' ');
                let (name, version) = (words.next().unwrap_or_default(), words.next());
                let source = words
                    .next()
                    .map(|source| source.trim_start_matches('(').trim_end_matches(')'));
                let fits = |package: &Package| {
                    version.is_none_or(|version| version == package.version)
                        && source.is_none_or(|source| Some(source) == package.source.as_deref())
                };
                let found = by_name.get(name).into_iter().flatten();
                let before = pending.len();
                pending.extend(found.copied().filter(|index| fits(&self.package[*index])));
                if pending.len() == before {
                    bail!("Cargo.lock names `{dependency}` and does not hold it");
                }
            }
        }
        Ok(Self {
            version: self.version,
            package: needed
                .into_iter()
                .map(|index| self.package[index].clone())
                .collect(),
        })
    }

    /// The crates of registries.
    pub(super) fn crates(&self) -> impl Iterator<Item = &Package> {
        self.package.iter().filter(|package| package.source.is_some())
    }

    /// What `other` holds and this doesn't, if anything: the same package with other bytes counts.
    pub(super) fn lacks<'a>(&self, other: &'a Self) -> Option<&'a Package> {
        let known = |package: &&Package| self.package.iter().any(|own| own.is_same_as(package));
        other.package.iter().find(|package| !known(package))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"version = 4

[[package]]
name = "app"
version = "1.0.0"
dependencies = ["one", "two 2.0.0"]

[[package]]
name = "one"
version = "1.0.0"
source = "registry+https://example.com/index"
checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[[package]]
name = "other"
version = "1.0.0"
dependencies = ["two 1.0.0"]

[[package]]
name = "two"
version = "1.0.0"
source = "registry+https://example.com/index"
checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[[package]]
name = "two"
version = "2.0.0"
source = "registry+https://example.com/index"
checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
dependencies = ["one 1.0.0 (registry+https://example.com/index)"]
"#;

    fn names(lock: &CargoLock) -> Vec<String> {
        let names = lock.package.iter();
        names
            .map(|package| format!("{} {}", package.name, package.version))
            .collect()
    }

    #[test]
    fn a_program_needs_what_it_leads_to_and_nothing_of_other_members() {
        let lock = CargoLock::parse(LOCK).unwrap();
        let needed = lock.needed_by(&BTreeSet::from(["app".to_owned()])).unwrap();
        assert_eq!(names(&needed), ["app 1.0.0", "one 1.0.0", "two 2.0.0"]);
        assert!(lock.lacks(&needed).is_none());
        assert_eq!(needed.lacks(&lock).unwrap().name, "other");
        assert_eq!(CargoLock::parse(&needed.to_text().unwrap()).unwrap(), needed);
    }

    #[test]
    fn the_same_version_with_other_bytes_is_another_crate() {
        let lock = CargoLock::parse(LOCK).unwrap();
        let other = CargoLock::parse(&LOCK.replacen("e3b0", "0000", 1)).unwrap();
        assert_eq!(lock.lacks(&other).unwrap().name, "one");
    }

    #[test]
    fn what_is_no_lock_is_refused() {
        for (good, bad) in [
            ("version = 4", "version = 9"),
            ("\"app\"", "\"../app\""),
            ("\"app\"", "\"\""),
            ("checksum = \"e3b0", "checksum = \"xx"),
            ("dependencies = [\"one\"", "dependencies = [\"gone\""),
        ] {
            let parsed = CargoLock::parse(&LOCK.replacen(good, bad, 1));
            let needed = parsed.and_then(|lock| lock.needed_by(&BTreeSet::from(["app".to_owned()])));
            assert!(needed.is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_a_panic(text in "(version = 4\n)?(\\[\\[package\\]\\]\nname = \"[a-z./]{0,4}\"\nversion = \"[0-9.]{0,4}\"\n){0,3}.{0,20}") {
            if let Ok(lock) = CargoLock::parse(&text) {
                let _ = lock.needed_by(&BTreeSet::from(["a".to_owned()]));
            }
        }
    }
}
