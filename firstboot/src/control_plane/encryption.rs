//! Secrets are written to etcd encrypted.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::secret::Secret;
use serde_json::{Value, json};

/// Where the configuration is. It holds the key.
pub const PATH: &str = "/etc/kubernetes/encryption.json";

/// Bytes of a key of secretbox (XSalsa20-Poly1305).
const KEY_BYTES: usize = 32;

/// `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`): secretbox writes, `identity` last reads what was written
/// before. `key` is base64.
pub fn configuration(key: &Secret) -> Result<Value> {
    let bytes = STANDARD
        .decode(key.reveal())
        .ok()
        .context("secrets.encryptionKey is not base64")?;
    ensure!(
        bytes.len() == KEY_BYTES,
        "secrets.encryptionKey has {} bytes, not {KEY_BYTES}",
        bytes.len()
    );
    let keys = [json!({"name": key_name(&bytes), "secret": key.reveal()})];
    Ok(json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [{"secretbox": {"keys": keys}}, {"identity": {}}],
        }],
    }))
}

/// A name that follows from the key: etcd's values carry it in the clear, and two keys must never share one. 32 bits
/// of a digest say nothing about 256 random bits.
fn key_name(key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key);
    let hex: String = digest.as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("key-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secretbox_writes_and_identity_reads() {
        let value = configuration(&Secret::new(STANDARD.encode([7; 32]))).unwrap();
        let providers = value["resources"][0]["providers"].as_array().unwrap();
        assert!(providers[0]["secretbox"]["keys"][0]["name"].is_string());
        assert_eq!(providers[1], json!({"identity": {}}));
    }

    #[test]
    fn bad_keys_are_refused_without_being_shown() {
        for bad in ["c2hvcnQ=", "not base64!"] {
            let error = format!("{:#}", configuration(&Secret::new(bad)).unwrap_err());
            assert!(!error.contains(bad), "{error}");
        }
    }
}
