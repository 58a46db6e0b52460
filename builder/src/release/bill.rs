//! What an image is made of, as the bills of materials and the provenance need it.

use anyhow::{Context, Result};

use crate::components::BuiltComponent;
use crate::digest::Digest;
use crate::lock::Lock;
use crate::partitions::root::content;
use crate::tree::{Assembled, TreePath};

/// The bill of an image: what the lock and the built components say, for the packages that are in the tree.
pub fn of(lock: &Lock, role: &str, assembled: &Assembled, built: &[BuiltComponent]) -> Result<Bill> {
    let (distribution, distribution_version) = distribution(assembled)?;
    let packages = lock.packages_of(role).map(|package| Package {
        name: package.name.clone(),
        version: package.version.clone(),
        architecture: package.architecture.clone(),
        source: package.source.clone(),
        path: package.path.clone(),
        sha256: package.sha256,
    });
    let components = built.iter().map(|component| {
        let locked = lock.component.iter().find(|locked| locked.name == component.name);
        let locked = locked.with_context(|| format!("component {} is not in the lock", component.name))?;
        let modules = component.go_modules.iter().map(|module| GoModule {
            path: module.path.clone(),
            version: module.version.clone(),
            sum: module.sum.clone(),
        });
        Ok(ComponentEntry {
            name: component.name.clone(),
            version: component.version.clone(),
            source: locked.source,
            go_modules: modules.collect(),
            files: component
                .files
                .iter()
                .map(|file| (file.path.clone(), file.digest))
                .collect(),
        })
    });
    let (mut packages, mut components) = (
        packages.collect::<Vec<_>>(),
        components.collect::<Result<Vec<_>>>()?,
    );
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    components.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Bill {
        distribution,
        distribution_version,
        packages,
        components,
    })
}

/// `ID` and `VERSION_ID` of the base's os-release.
fn distribution(assembled: &Assembled) -> Result<(String, String)> {
    let entry = assembled
        .tree
        .get(&TreePath::parse(b"usr/lib/os-release")?)
        .context("no /usr/lib/os-release")?;
    let text = String::from_utf8(content(entry)?).context("/usr/lib/os-release")?;
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
            .with_context(|| format!("/usr/lib/os-release has no {key}"))
    };
    Ok((value("ID")?, value("VERSION_ID")?))
}

/// Everything that went into an image.
#[derive(Debug, Clone, Default)]
pub struct Bill {
    /// Distribution id as in `os-release` (`ubuntu`, `debian`).
    pub distribution: String,
    /// Distribution version as in `os-release` (`24.04`, `13`).
    pub distribution_version: String,
    /// Packages, sorted by name.
    pub packages: Vec<Package>,
    /// Components, sorted by name.
    pub components: Vec<ComponentEntry>,
}

/// One .deb.
#[derive(Debug, Clone)]
pub struct Package {
    /// Binary package.
    pub name: String,
    /// Version with epoch.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Source package, where its name differs.
    pub source: Option<String>,
    /// Path below the archive's base URL.
    pub path: String,
    /// Digest of the .deb.
    pub sha256: Digest,
}

impl Package {
    /// Package URL (purl-spec, type `deb`).
    pub fn purl(&self, distribution: &str, distribution_version: &str) -> String {
        let version = percent(&self.version);
        format!(
            "pkg:deb/{distribution}/{}@{version}?arch={}&distro={distribution}-{distribution_version}",
            percent(&self.name),
            self.architecture
        )
    }
}

/// One component.
#[derive(Debug, Clone)]
pub struct ComponentEntry {
    /// Its name below `images/components`.
    pub name: String,
    /// What users call its version.
    pub version: String,
    /// Digest of the sources that pin it (definition folder and lock entry).
    pub source: Digest,
    /// Go modules linked into its binaries.
    pub go_modules: Vec<GoModule>,
    /// Files it puts into the image: path and digest.
    pub files: Vec<(String, Digest)>,
}

/// One Go module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoModule {
    /// `k8s.io/kubernetes`.
    pub path: String,
    /// `v1.36.3`.
    pub version: String,
    /// `h1:...` as in go.sum; empty for a main module.
    pub sum: String,
}

impl GoModule {
    /// Package URL (purl-spec, type `golang`).
    pub fn purl(&self) -> String {
        let path: Vec<String> = self.path.split('/').map(percent).collect();
        format!("pkg:golang/{}@{}", path.join("/"), percent(&self.version))
    }
}

/// Percent-encodes what purl-spec does not allow literally.
fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_follow_the_specification() {
        let package = Package {
            name: "libstdc++6".to_owned(),
            version: "1:14.2.0-4ubuntu2~24.04".to_owned(),
            architecture: "amd64".to_owned(),
            source: None,
            path: String::new(),
            sha256: Digest::of(b""),
        };
        assert_eq!(
            package.purl("ubuntu", "24.04"),
            "pkg:deb/ubuntu/libstdc%2B%2B6@1:14.2.0-4ubuntu2~24.04?arch=amd64&distro=ubuntu-24.04"
        );
        let module = GoModule {
            path: "k8s.io/api".to_owned(),
            version: "v0.36.3".to_owned(),
            sum: String::new(),
        };
        assert_eq!(module.purl(), "pkg:golang/k8s.io/api@v0.36.3");
    }
}
