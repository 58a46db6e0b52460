//! CycloneDX 1.6 bill of materials (cyclonedx.org/docs/1.6/json).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bill::{Bill, GoModule};
use super::manifest::Manifest;
use super::spdx::timestamp;

/// The document: packages, components and Go modules flat, with the dependency edges image -> component -> module.
pub fn document(manifest: &Manifest, bill: &Bill) -> Result<Vec<u8>> {
    let mut components: Vec<Value> = bill
        .packages
        .iter()
        .map(|package| {
            let purl = package.purl(&bill.distribution, &bill.distribution_version);
            json!({
                "type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl,
                "hashes": [{ "alg": "SHA-256", "content": package.sha256 }],
            })
        })
        .collect();
    let mut depends_on: Vec<String> = bill
        .packages
        .iter()
        .map(|package| package.purl(&bill.distribution, &bill.distribution_version))
        .collect();
    let mut edges = Vec::new();
    let mut modules: Vec<&GoModule> = Vec::new();
    for component in &bill.components {
        let reference = format!("component:{}@{}", component.name, component.version);
        components.push(json!({
            "type": "application", "bom-ref": reference, "name": component.name, "version": component.version,
        }));
        let mut needs: Vec<String> = component.go_modules.iter().map(GoModule::purl).collect();
        needs.sort();
        needs.dedup();
        edges.push(json!({ "ref": reference, "dependsOn": needs }));
        depends_on.push(reference);
        modules.extend(&component.go_modules);
    }
    modules.sort();
    modules.dedup_by(|a, b| (&a.path, &a.version) == (&b.path, &b.version));
    components.extend(modules.iter().map(|module| {
        let purl = module.purl();
        json!({ "type": "library", "bom-ref": purl, "name": module.path, "version": module.version, "purl": purl })
    }));
    let image = format!("kimage:{}-{}@{}", manifest.image, manifest.role, manifest.version);
    depends_on.sort();
    edges.insert(0, json!({ "ref": image, "dependsOn": depends_on }));
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial_number(manifest),
        "version": 1,
        "metadata": {
            "timestamp": timestamp(manifest.epoch)?,
            "tools": { "components": [{ "type": "application", "name": "kimage", "version": manifest.kimage }] },
            "component": {
                "type": "operating-system", "bom-ref": image, "name": format!("kimage-{}-{}", manifest.image, manifest.role),
                "version": manifest.version,
                "hashes": [{ "alg": "SHA-256", "content": manifest.root.sha256 }],
            },
        },
        "components": components,
        "dependencies": edges,
    });
    let mut bytes = serde_json::to_vec_pretty(&document).context("write CycloneDX document")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A version 8 UUID (RFC 9562) from the root hash: equal images have equal documents.
fn serial_number(manifest: &Manifest) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&manifest.root.hash.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = crate::digest::hex(&bytes);
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}
