//! `Packages` indexes: stanzas of `Field: value` lines (deb822(5)), one per binary package.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::relation::{self, Alternatives, Relation};
use crate::digest::Digest;

/// Most packages in one index; Debian's and Ubuntu's largest have some 65,000.
const MAX_PACKAGES: usize = 500_000;

/// One binary package as its index describes it.
#[derive(Debug, Clone)]
pub struct Package {
    /// Binary package.
    pub name: String,
    /// Version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Source package, where its name differs.
    pub source: Option<String>,
    /// Position of the suite that lists it.
    pub suite: usize,
    /// Path below the mirror's base URL.
    pub path: String,
    /// Bytes of the .deb.
    pub size: u64,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// No system works without it.
    pub essential: bool,
    /// Rank for the choice among providers: required 0 ... optional 3, extra 4.
    pub priority: u8,
    /// Depends and Pre-Depends.
    pub depends: Vec<Alternatives>,
    /// Conflicts and Breaks.
    pub conflicts: Vec<Relation>,
    /// Virtual packages, with a version where there is one.
    pub provides: Vec<(String, Option<String>)>,
}

/// Reads the packages of `text` for `architecture` (and `all`). Errors name the stanza.
pub fn parse(text: &str, architecture: &str, suite: usize) -> Result<Vec<Arc<Package>>> {
    let mut packages = Vec::new();
    for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
        ensure!(packages.len() < MAX_PACKAGES, "more than {MAX_PACKAGES} packages");
        let package = Stanza::new(stanza).package(suite).with_context(|| {
            let first = stanza.trim_start().lines().next().unwrap_or_default();
            format!("stanza `{}`", first.chars().take(100).collect::<String>())
        })?;
        if package.architecture == architecture || package.architecture == "all" {
            packages.push(Arc::new(package));
        }
    }
    Ok(packages)
}

/// The single-line fields of a stanza; continuation lines matter to no field that a solver reads.
struct Stanza<'a> {
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Stanza<'a> {
    fn new(text: &'a str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with([' ', '\t']));
        Self {
            fields: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name, value.trim()))
                .collect(),
        }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    fn required(&self, name: &str) -> Result<&'a str> {
        self.get(name).with_context(|| format!("no field `{name}`"))
    }

    fn package(&self, suite: usize) -> Result<Package> {
        let name = self.required("Package")?;
        check_name(name)?;
        let path = self.required("Filename")?.trim_start_matches("./");
        ensure!(
            is_plain_path(path),
            "Filename `{path}` is not a plain relative path"
        );
        let mut depends = relation::parse(self.get("Pre-Depends").unwrap_or_default())?;
        depends.extend(relation::parse(self.get("Depends").unwrap_or_default())?);
        let mut conflicts = Vec::new();
        for field in ["Conflicts", "Breaks"] {
            for alternatives in relation::parse(self.get(field).unwrap_or_default())? {
                conflicts.extend(alternatives);
            }
        }
        let provides = relation::parse(self.get("Provides").unwrap_or_default())?;
        let provides = provides.into_iter().flatten();
        Ok(Package {
            name: name.to_owned(),
            version: self.required("Version")?.to_owned(),
            architecture: self.required("Architecture")?.to_owned(),
            source: self
                .get("Source")
                .and_then(|source| source.split_whitespace().next())
                .map(str::to_owned),
            suite,
            path: path.to_owned(),
            size: self.required("Size")?.parse().context("field `Size`")?,
            sha256: self.required("SHA256")?.parse().context("field `SHA256`")?,
            essential: self.get("Essential") == Some("yes"),
            priority: priority(self.get("Priority")),
            depends,
            conflicts,
            provides: provides
                .map(|relation| (relation.name, relation.version.map(|(_, version)| version)))
                .collect(),
        })
    }
}

/// Package names: Debian policy, section 5.6.1.
pub fn check_name(name: &str) -> Result<()> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
    if !first || !rest || name.len() > 128 {
        bail!("`{name}` is no package name: lower-case letters, digits and `+-.`");
    }
    Ok(())
}

/// The path goes into a URL and into file names of messages.
fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(plain) && path.bytes().all(|byte| byte.is_ascii_graphic()) && path.len() < 1024
}

fn priority(text: Option<&str>) -> u8 {
    match text {
        Some("required") => 0,
        Some("important") => 1,
        Some("standard") => 2,
        Some("extra") => 4,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "Package: libc6\nArchitecture: amd64\nVersion: 2.39-0ubuntu8\nPriority: optional\nEssential: no\n\
        Depends: libgcc-s1, libcrypt1 (>= 1:4.4.10-10ubuntu4)\nBreaks: foo (<< 2)\nProvides: libc-abi (= 1), x\n\
        Filename: pool/main/g/glibc/libc6_2.39-0ubuntu8_amd64.deb\nSize: 10\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nDescription: text\n more: text\n";

    #[test]
    fn a_stanza_is_read_whole() {
        let packages = parse(&format!("{ONE}\n{ONE}"), "amd64", 1).unwrap();
        assert_eq!(packages.len(), 2);
        let package = &packages[0];
        assert_eq!(
            (
                package.name.as_str(),
                package.depends.len(),
                package.conflicts.len()
            ),
            ("libc6", 2, 1)
        );
        assert_eq!(
            package.provides,
            [
                ("libc-abi".to_owned(), Some("1".to_owned())),
                ("x".to_owned(), None)
            ]
        );
    }

    #[test]
    fn a_foreign_architecture_is_left_out() {
        assert!(parse(ONE, "arm64", 0).unwrap().is_empty());
    }

    #[test]
    fn hostile_stanzas_are_refused() {
        for (from, to) in [
            ("pool/main", "../../etc"),
            ("Package: libc6", "Package: ../x"),
            ("Size: 10", "Size: -1"),
            ("SHA256: e3", "SHA256: zz"),
            ("Version: 2.39-0ubuntu8\n", ""),
        ] {
            assert!(parse(&ONE.replacen(from, to, 1), "amd64", 0).is_err(), "{to}");
        }
    }
}
