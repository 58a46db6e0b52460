//! X.509 certificates as far as Secure Boot needs them: a name, a serial number and an RSA key.

use anyhow::{Result, anyhow, ensure};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use x509_parser::prelude::{FromDer, X509Certificate};

/// No certificate of a key set is larger, in bytes.
const MAX_CERTIFICATE: usize = 64 * 1024;

/// Reads a DER certificate that nothing follows.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>> {
    ensure!(der.len() <= MAX_CERTIFICATE, "certificate of {} bytes", der.len());
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| anyhow!("not an X.509 certificate: {error}"))?;
    ensure!(rest.is_empty(), "bytes follow the certificate");
    Ok(certificate)
}

/// Checks an RSA PKCS#1 v1.5 SHA-256 signature over `message` with the key of `certificate` (DER).
pub(super) fn verify_rsa(certificate: &[u8], message: &[u8], signature: &[u8]) -> Result<()> {
    let certificate = parse(certificate)?;
    let key = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(message, signature)
        .map_err(|_| {
            anyhow!(
                "RSA signature does not match the certificate `{}`",
                certificate.subject()
            )
        })
}
