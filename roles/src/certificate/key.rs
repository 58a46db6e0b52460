//! Private keys as PEM: made as PKCS#8, read in every form that kubeadm and OpenSSL write.

use rcgen::PublicKeyData;
use x509_parser::prelude::X509Certificate;

use super::CertificateError;
use crate::pem;
use crate::secret::Secret;

/// `rsaEncryption` with its NULL (RFC 8017, appendix A.1).
const RSA: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// `id-ecPublicKey` on `prime256v1` (RFC 5480).
const P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
/// `id-ecPublicKey` on `secp384r1`.
const P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// A new ECDSA P-256 key.
pub(super) fn generate() -> Result<rcgen::KeyPair, CertificateError> {
    Ok(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

/// A new ECDSA P-256 key as PEM (PKCS#8): for service-account tokens (ES256).
pub fn new_key() -> Result<Secret, CertificateError> {
    Ok(to_secret(&generate()?))
}

/// The public half of a private key as PEM (SubjectPublicKeyInfo): `sa.pub`.
pub fn public_key_pem(key: &Secret) -> Result<String, CertificateError> {
    Ok(pem::encode("PUBLIC KEY", &read(key)?.subject_public_key_info()))
}

pub(super) fn to_secret(key: &rcgen::KeyPair) -> Secret {
    Secret::new(pem::encode("PRIVATE KEY", key.serialized_der()))
}

/// Reads `PRIVATE KEY` (PKCS#8), `EC PRIVATE KEY` (RFC 5915) or `RSA PRIVATE KEY` (PKCS#1).
pub(super) fn read(key: &Secret) -> Result<rcgen::KeyPair, CertificateError> {
    let unreadable =
        || CertificateError::new("not a private key of a kind that can be used (ECDSA P-256 or P-384, RSA)");
    let blocks = pem::blocks(key.reveal()).map_err(CertificateError::new)?;
    for block in blocks {
        let candidates = match block.label.as_str() {
            "PRIVATE KEY" => vec![block.der],
            "RSA PRIVATE KEY" => vec![pkcs8(RSA, &block.der)],
            "EC PRIVATE KEY" => vec![pkcs8(P256, &block.der), pkcs8(P384, &block.der)],
            // `openssl ecparam -genkey` puts the curve's name in front.
            "EC PARAMETERS" => continue,
            _ => return Err(unreadable()),
        };
        let mut readable = candidates
            .iter()
            .filter_map(|der| rcgen::KeyPair::try_from(der.as_slice()).ok());
        return readable.next().ok_or_else(unreadable);
    }
    Err(unreadable())
}

/// Whether `key` is the private half of the certificate's key.
pub(super) fn belongs(key: &Secret, certificate: &X509Certificate<'_>) -> bool {
    read(key).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

/// `PrivateKeyInfo` (RFC 5208) around a key in the form of its own algorithm.
fn pkcs8(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let body = [&[0x02, 0x01, 0x00], algorithm, &element(0x04, key)].concat();
    element(0x30, &body)
}

/// A DER element of less than 64 KiB, which [`pem::MAX_PEM`] ensures.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let length = match (high, low) {
        (0, 0..=0x7f) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag], length.as_slice(), content].concat()
}
