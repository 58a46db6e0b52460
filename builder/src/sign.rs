//! Everything that needs a private key, and the formats in which firmware wants signatures and keys.

use anyhow::Result;

/// What a signature is for; a signer may keep a key for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The Secure Boot db key: RSA-2048, PKCS#1 v1.5 over SHA-256. Signs EFI programs.
    SecureBoot,
    /// The release key: Ed25519. Signs the manifest and the provenance.
    Release,
}

/// A holder of private keys: a folder of files, or an external command in front of an HSM or KMS.
pub trait Signer: Send + Sync {
    /// The signature over `message` (the message itself, not its digest): PKCS#1 v1.5 SHA-256 for
    /// [`Purpose::SecureBoot`], Ed25519 (64 bytes) for [`Purpose::Release`]. Both are deterministic, so equal
    /// inputs give equal images.
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>>;

    /// The public keys and certificates, which are no secret.
    fn identity(&self) -> &Identity;
}

/// The public half of a key set.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Secure Boot platform key certificate, DER.
    pub platform_key: Vec<u8>,
    /// Secure Boot key exchange key certificate, DER.
    pub key_exchange_key: Vec<u8>,
    /// Secure Boot signature database certificate, DER: its key signs EFI programs.
    pub database: Vec<u8>,
    /// Ed25519 public key of the release key, 32 raw bytes.
    pub release: [u8; 32],
    /// Made by kimage itself because no key was given.
    pub development: bool,
}
