//! SPDX 2.3 bill of materials (spdx.github.io/spdx-spec/v2.3, JSON).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bill::{Bill, ComponentEntry, GoModule, Package};
use super::manifest::Manifest;

/// Where a fact is not known, SPDX wants this word rather than silence.
const NO_ASSERTION: &str = "NOASSERTION";

/// The document: the image contains packages and components, a component contains its Go modules.
pub fn document(manifest: &Manifest, bill: &Bill) -> Result<Vec<u8>> {
    let mut packages = vec![image(manifest)];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for package in &bill.packages {
        let id = format!(
            "SPDXRef-deb-{}-{}",
            identifier(&package.name),
            package.architecture
        );
        packages.push(deb(&id, package, bill));
        relationships.push(relation("SPDXRef-Image", "CONTAINS", &id));
    }
    let mut modules: Vec<&GoModule> = bill
        .components
        .iter()
        .flat_map(|component| &component.go_modules)
        .collect();
    modules.sort();
    modules.dedup_by(|a, b| (&a.path, &a.version) == (&b.path, &b.version));
    packages.extend(modules.iter().map(|module| go_module(module)));
    for component in &bill.components {
        let id = format!("SPDXRef-component-{}", identifier(&component.name));
        packages.push(component_package(&id, component));
        relationships.push(relation("SPDXRef-Image", "CONTAINS", &id));
        relationships.extend(
            component
                .go_modules
                .iter()
                .map(|module| relation(&id, "CONTAINS", &module_id(module))),
        );
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("kimage-{}-{}-{}", manifest.image, manifest.role, manifest.version),
        "documentNamespace": format!("https://kimage.dev/spdx/{}/{}/{}", manifest.image, manifest.role, manifest.root.hash),
        "creationInfo": {
            "created": timestamp(manifest.epoch)?,
            "creators": [format!("Tool: kimage-{}", manifest.kimage)],
        },
        "packages": packages,
        "relationships": relationships,
    });
    let mut bytes = serde_json::to_vec_pretty(&document).context("write SPDX document")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// `2026-11-20T08:00:00Z`.
pub(super) fn timestamp(epoch: u32) -> Result<String> {
    let time = jiff::Timestamp::from_second(i64::from(epoch)).context("epoch")?;
    Ok(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn image(manifest: &Manifest) -> Value {
    json!({
        "SPDXID": "SPDXRef-Image",
        "name": format!("kimage-{}-{}", manifest.image, manifest.role),
        "versionInfo": manifest.version,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "checksums": [{ "algorithm": "SHA256", "checksumValue": manifest.root.sha256 }],
    })
}

fn deb(id: &str, package: &Package, bill: &Bill) -> Value {
    let source = package.source.as_ref().unwrap_or(&package.name);
    json!({
        "SPDXID": id,
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": NO_ASSERTION,
        "packageFileName": package.path.rsplit('/').next().unwrap_or_default(),
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
        "sourceInfo": format!("built from source package {source}; licence text in /usr/share/doc/{}/copyright of the image", package.name),
        "checksums": [{ "algorithm": "SHA256", "checksumValue": package.sha256 }],
        "externalRefs": [purl(&package.purl(&bill.distribution, &bill.distribution_version))],
    })
}

fn component_package(id: &str, component: &ComponentEntry) -> Value {
    json!({
        "SPDXID": id,
        "name": component.name,
        "versionInfo": component.version,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
        "sourceInfo": format!("built by kimage from images/components/{} with SHA-256 {}", component.name, component.source),
    })
}

fn go_module(module: &GoModule) -> Value {
    json!({
        "SPDXID": module_id(module),
        "name": module.path,
        "versionInfo": module.version,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
        "externalRefs": [purl(&module.purl())],
    })
}

fn purl(locator: &str) -> Value {
    json!({ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator })
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn module_id(module: &GoModule) -> String {
    format!(
        "SPDXRef-go-{}-{}",
        identifier(&module.path),
        identifier(&module.version)
    )
}

/// SPDX ids allow letters, digits, `.` and `-`; everything else is written as `.` and its hex value, so that
/// different names stay different.
fn identifier(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => out.push(byte as char),
            _ => out.push_str(&format!(".{byte:02x}")),
        }
    }
    out
}
