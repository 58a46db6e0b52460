//! What the release says about its content: role, packages, components, provenance.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::Subject;
use super::findings::{Findings, same};
use crate::partitions::squashfs::Reader;
use crate::release::contents::Materials;
use crate::release::manifest::{Component, FileRecord};
use crate::release::{names, provenance};
use crate::tree::TreePath;
use crate::tree::control::Paragraph;

/// Largest text that is read out of the root filesystem, in bytes.
const LIMIT: u64 = 64 << 20;

/// `/usr/lib/kimage/role.json` as far as it repeats the manifest.
#[derive(Deserialize)]
struct Role {
    role: String,
    image: String,
    kernel: String,
    components: Vec<RoleComponent>,
}

#[derive(Deserialize)]
struct RoleComponent {
    name: String,
    version: String,
}

/// The image itself names the same role, kernel and components as the manifest.
pub(super) fn role(subject: &Subject<'_>, root: &Reader<File>) -> Result<((), String)> {
    let manifest = subject.manifest;
    let role: Role = serde_json::from_slice(&text(root, "usr/lib/kimage/role.json")?).context("role.json")?;
    same("role", manifest.role.as_str(), role.role.as_str())?;
    same("image", manifest.image.as_str(), role.image.as_str())?;
    same("kernel", manifest.kernel.version.as_str(), role.kernel.as_str())?;
    let found = role
        .components
        .into_iter()
        .map(|component| (component.name, component.version))
        .collect();
    equal("component", &components(&manifest.components), &found)?;
    Ok((
        (),
        format!("role {}, {} components", manifest.role, manifest.components.len()),
    ))
}

fn components(list: &[Component]) -> BTreeSet<(String, String)> {
    list.iter()
        .map(|component| (component.name.clone(), component.version.clone()))
        .collect()
}

/// dpkg's record in the image, the manifest's count and the bill of materials agree package by package.
pub(super) fn packages(subject: &Subject<'_>, root: &Reader<File>, findings: &mut Findings) {
    let outcome = installed(root).and_then(|installed| {
        same(
            "number of installed packages",
            subject.manifest.packages as usize,
            installed.len(),
        )?;
        let materials = Materials::read(subject.folder)?;
        let listed = materials.packages.iter().flat_map(|(name, versions)| {
            versions
                .iter()
                .map(move |(version, architecture)| (name.clone(), format!("{version} {architecture}")))
        });
        equal("package", &installed, &listed.collect())?;
        Ok((
            (),
            format!("{} installed, the same in {}", installed.len(), names::SPDX),
        ))
    });
    findings.claim("packages", outcome);
}

/// Name, and version with architecture, of each package that dpkg counts as installed.
fn installed(root: &Reader<File>) -> Result<BTreeSet<(String, String)>> {
    let path = "usr/lib/sysimage/dpkg/status";
    let mut installed = BTreeSet::new();
    for paragraph in Paragraph::parse_all(&text(root, path)?).with_context(|| format!("/{path}"))? {
        let field = |name: &str| {
            paragraph
                .get(name)
                .with_context(|| format!("/{path}: a package has no {name}"))
        };
        if !field("Status")?.ends_with(" installed") {
            continue;
        }
        let (name, version) = (field("Package")?.to_owned(), field("Version")?);
        let fresh = installed.insert((name.clone(), format!("{version} {}", field("Architecture")?)));
        ensure!(fresh, "/{path}: {name} is there twice");
    }
    Ok(installed)
}

fn text(root: &Reader<File>, path: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = root.read_file(&TreePath::parse(path.as_bytes())?)?;
    file.take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read /{path}"))?;
    ensure!(
        bytes.len() as u64 <= LIMIT,
        "/{path} is larger than {LIMIT} bytes"
    );
    Ok(bytes)
}

/// Error that names the first element which only one of two sets has.
fn equal(
    what: &str,
    expected: &BTreeSet<(String, String)>,
    found: &BTreeSet<(String, String)>,
) -> Result<()> {
    let Some((name, version)) = expected.symmetric_difference(found).next() else {
        return Ok(());
    };
    let version_in = |set: &BTreeSet<(String, String)>| {
        let other = set.iter().find(|(other, _)| other == name);
        other.map_or("none".to_owned(), |(_, version)| version.clone())
    };
    let (expected, found) = (version_in(expected), version_in(found));
    anyhow::bail!("{what} {name} {version}: found {found}, expected {expected}")
}

/// The documents beside the disk.
pub(super) fn check(subject: &Subject<'_>, findings: &mut Findings) {
    let spdx = Materials::read(subject.folder).and_then(|materials| {
        same(
            "number of packages",
            subject.manifest.packages as usize,
            materials.package_count(),
        )?;
        let listed = materials.components.clone().into_iter().collect();
        equal("component", &components(&subject.manifest.components), &listed)?;
        let (packages, modules) = (materials.package_count(), materials.go_modules.len());
        Ok((materials, format!("{packages} packages, {modules} Go modules")))
    });
    if let Some(materials) = findings.claim(names::SPDX, spdx) {
        findings.claim(names::CYCLONEDX, cyclonedx(subject.folder, &materials));
    }
    findings.claim(names::PROVENANCE, provenance(subject));
}

/// Both bills of materials name the same packages and modules.
fn cyclonedx(folder: &Path, materials: &Materials) -> Result<((), String)> {
    let path = folder.join(names::CYCLONEDX);
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let document: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    let listed = document["components"]
        .as_array()
        .context("it has no components")?;
    let purls: BTreeSet<&str> = listed
        .iter()
        .filter_map(|component| component["purl"].as_str())
        .collect();
    let expected: BTreeSet<&str> = materials.purls.iter().map(String::as_str).collect();
    if let Some(purl) = expected.symmetric_difference(&purls).next() {
        anyhow::bail!(
            "{purl} is in only one of {} and {}",
            names::SPDX,
            names::CYCLONEDX
        );
    }
    Ok((
        (),
        format!("{} package URLs, the same as in {}", purls.len(), names::SPDX),
    ))
}

/// The provenance is signed by the release key and is about this release.
fn provenance(subject: &Subject<'_>) -> Result<((), String)> {
    let manifest = subject.manifest;
    let path = subject.folder.join(names::PROVENANCE);
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let statement = provenance::open(&bytes, &subject.release_key)?;
    let mut subjects = BTreeMap::new();
    for entry in statement["subject"].as_array().context("it has no subjects")? {
        let name = entry["name"].as_str().context("a subject has no name")?;
        subjects.insert(
            name,
            entry["digest"]["sha256"]
                .as_str()
                .context("a subject has no sha256")?,
        );
    }
    // The provenance cannot hold its own digest.
    let others: Vec<&FileRecord> = manifest
        .files
        .iter()
        .filter(|file| file.name != names::PROVENANCE)
        .collect();
    same("number of subjects", others.len(), subjects.len())?;
    for file in &others {
        let found = subjects
            .get(file.name.as_str())
            .with_context(|| format!("{} is not among its subjects", file.name))?;
        same(
            &format!("sha256 of subject {}", file.name),
            file.sha256.to_string().as_str(),
            found,
        )?;
    }
    let definition = &statement["predicate"]["buildDefinition"];
    let parameters = &definition["externalParameters"];
    for (name, expected) in [
        ("image", &manifest.image),
        ("role", &manifest.role),
        ("version", &manifest.version),
    ] {
        same(
            name,
            expected.as_str(),
            parameters[name].as_str().unwrap_or_default(),
        )?;
    }
    let lock = definition["resolvedDependencies"][0]["digest"]["sha256"]
        .as_str()
        .unwrap_or_default();
    same("lock", manifest.lock.to_string().as_str(), lock)?;
    Ok(((), format!("signed, {} subjects", others.len())))
}
