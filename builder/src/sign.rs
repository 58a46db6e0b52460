//! Everything that needs a private key, and the formats in which firmware wants signatures and keys.

pub mod authenticode;
mod certificate;
pub mod command;
mod der;
pub mod efi_signature_list;
pub mod keys;
pub mod ovmf_vars;

use anyhow::{Result, anyhow};
use ring::signature::{ED25519, UnparsedPublicKey};

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
    /// Signed firmware updates, where the key set has them.
    pub enrolment: Option<Enrolment>,
    /// Made by kimage itself because no key was given.
    pub development: bool,
}

/// Authenticated updates (`.auth` files) that put a key set into firmware in setup mode, made once with the keys. The
/// boot partition carries them in `/loader/keys/auto`, where systemd-boot looks.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Sets PK, signed by PK.
    pub platform_key: Vec<u8>,
    /// Sets KEK, signed by PK.
    pub key_exchange_key: Vec<u8>,
    /// Sets db, signed by KEK.
    pub database: Vec<u8>,
}

impl Identity {
    /// Checks a signature over `message`.
    pub fn verify(&self, purpose: Purpose, message: &[u8], signature: &[u8]) -> Result<()> {
        match purpose {
            Purpose::SecureBoot => certificate::verify_rsa(&self.database, message, signature),
            Purpose::Release => UnparsedPublicKey::new(&ED25519, &self.release)
                .verify(message, signature)
                .map_err(|_| anyhow!("Ed25519 signature does not match the release key")),
        }
    }
}
