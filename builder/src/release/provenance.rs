//! SLSA v1 provenance: an in-toto Statement v1 (in-toto/attestation, spec/v1) in a DSSE envelope
//! (secure-systems-lab/dsse, protocol.md). It says what was built from what, and nothing about when or where, so
//! that it is reproducible like the rest.

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use super::bill::Bill;
use super::manifest::Manifest;
use crate::digest::{Digest, hex};
use crate::sign::{Purpose, Signer};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The in-toto statement about the files of `manifest`.
pub fn statement(manifest: &Manifest, bill: &Bill) -> Result<Vec<u8>> {
    let subject: Vec<Value> = manifest
        .files
        .iter()
        .map(|file| json!({ "name": file.name, "digest": { "sha256": file.sha256 } }))
        .collect();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://kimage.dev/build/v1",
                "externalParameters": {
                    "image": manifest.image,
                    "role": manifest.role,
                    "version": manifest.version,
                },
                "internalParameters": { "kimage": manifest.kimage, "epoch": manifest.epoch },
                "resolvedDependencies": dependencies(manifest, bill),
            },
            "runDetails": {
                "builder": { "id": "https://kimage.dev/builder", "version": { "kimage": manifest.kimage } },
                "metadata": { "invocationId": invocation(manifest) },
            },
        },
    });
    serde_json::to_vec(&statement).context("write provenance")
}

/// The envelope with one signature by the release key; `keyid` is the hex digest of the raw public key.
pub fn envelope(statement: &[u8], signer: &dyn Signer) -> Result<Vec<u8>> {
    let signature = signer
        .sign(Purpose::Release, &pre_authentication_encoding(statement))
        .context("sign provenance")?;
    let envelope = json!({
        "payloadType": PAYLOAD_TYPE,
        "payload": STANDARD.encode(statement),
        "signatures": [{ "keyid": Digest::of(&signer.identity().release), "sig": STANDARD.encode(signature) }],
    });
    let mut bytes = serde_json::to_vec_pretty(&envelope).context("write provenance.json")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The statement in `envelope`, after the check of its signature by the release key.
pub fn open(envelope: &[u8], release_key: &[u8; 32]) -> Result<Value> {
    let envelope: Value = serde_json::from_slice(envelope).context("provenance.json")?;
    let text = |value: &Value, what: &str| -> Result<String> {
        let text = value
            .as_str()
            .with_context(|| format!("provenance.json has no {what}"))?;
        Ok(text.to_owned())
    };
    let kind = text(&envelope["payloadType"], "payloadType")?;
    ensure!(
        kind == PAYLOAD_TYPE,
        "provenance.json holds `{kind}`, not `{PAYLOAD_TYPE}`"
    );
    let payload = STANDARD
        .decode(text(&envelope["payload"], "payload")?)
        .context("payload of provenance.json")?;
    let signature = text(&envelope["signatures"][0]["sig"], "signature")?;
    let signature = STANDARD
        .decode(signature)
        .context("signature of provenance.json")?;
    UnparsedPublicKey::new(&ED25519, release_key)
        .verify(&pre_authentication_encoding(&payload), &signature)
        .map_err(|_| anyhow!("the signature in provenance.json is not from the release key"))?;
    serde_json::from_slice(&payload).context("statement in provenance.json")
}

/// What DSSE signs: type and body with their lengths, so that neither can be read as the other.
fn pre_authentication_encoding(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn dependencies(manifest: &Manifest, bill: &Bill) -> Vec<Value> {
    let lock = json!({ "name": format!("images/{}/image.lock", manifest.image), "digest": { "sha256": manifest.lock } });
    let packages = bill.packages.iter().map(|package| {
        let uri = package.purl(&bill.distribution, &bill.distribution_version);
        json!({ "name": package.name, "uri": uri, "digest": { "sha256": package.sha256 } })
    });
    let components = bill.components.iter().map(|component| {
        let name = format!("images/components/{}", component.name);
        let mut annotations = json!({ "version": component.version });
        let named = manifest
            .components
            .iter()
            .find(|named| named.name == component.name);
        if let Some(compiler) = named.and_then(|named| named.compiler.as_ref()) {
            annotations["compiler"] = json!(compiler);
        }
        json!({ "name": name, "digest": { "sha256": component.source }, "annotations": annotations })
    });
    std::iter::once(lock).chain(packages).chain(components).collect()
}

/// The same build has the same id wherever it runs.
fn invocation(manifest: &Manifest) -> String {
    let mut bytes = manifest.root.hash.as_bytes().to_vec();
    bytes.extend_from_slice(manifest.kernel.authenticode.as_bytes());
    hex(&Digest::of(&bytes).as_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_text_is_the_one_that_the_dsse_specification_shows() {
        let text = pre_authentication_encoding(b"hello world");
        assert_eq!(text, b"DSSEv1 28 application/vnd.in-toto+json 11 hello world");
    }
}
