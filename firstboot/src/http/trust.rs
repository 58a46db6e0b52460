//! Which servers are believed, and who this machine is to them.

use std::sync::Arc;

use kimage_roles::secret::Secret;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsConfigBuilder};

use super::fault::HttpError;

/// Which servers are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those whose certificate one of the system's roots signed. A system without roots is no error until a server
    /// asks for trust.
    System,
    /// Those whose certificate one of these signed: PEM, one certificate or more. The system's roots count for nothing.
    Pinned(String),
    /// Everybody. Only for discovery, where the answer itself is signed and checked afterwards.
    Unverified,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then its chain.
    pub certificate: String,
    /// PEM: PKCS#8, SEC1 or PKCS#1.
    pub key: Secret,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS that believes nobody.
pub(super) fn nobody() -> TlsConfig {
    builder().root_certs(roots(&[])).build()
}

/// TLS that believes whom the system believes.
pub(super) fn by_system_roots() -> TlsConfig {
    builder().root_certs(system_roots()).build()
}

/// TLS as ureq wants it.
pub(super) fn tls(trust: &Trust, identity: Option<&Identity>) -> Result<TlsConfig, HttpError> {
    let mut config = builder();
    config = match trust {
        Trust::Unverified => config.disable_verification(true),
        Trust::System => config.root_certs(system_roots()),
        Trust::Pinned(pem) => config.root_certs(roots(&certificates(pem, "the pinned CA")?)),
    };
    if let Some(identity) = identity {
        config = config.client_cert(Some(client_certificate(identity)?));
    }
    Ok(config.build())
}

fn builder() -> TlsConfigBuilder {
    TlsConfig::builder().unversioned_rustls_crypto_provider(provider())
}

fn system_roots() -> RootCerts {
    roots(&rustls_native_certs::load_native_certs().certs)
}

fn roots(found: &[CertificateDer<'_>]) -> RootCerts {
    let roots: Vec<_> = found
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    RootCerts::new_with_certs(&roots)
}

/// All certificates of a PEM text; an error when there is none.
fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(HttpError::tls("", format!("{what} is no certificate in PEM"))),
    }
}

/// Checked here: what ureq can't use it panics over.
fn client_certificate(identity: &Identity) -> Result<ClientCert, HttpError> {
    let chain = certificates(&identity.certificate, "the client certificate")?;
    // No inner error: it must not quote the key.
    let key = PrivateKeyDer::from_pem_slice(identity.key.reveal().as_bytes())
        .map_err(|_| HttpError::tls("", "the client's key is no private key in PEM"))?;
    CertifiedKey::from_der(chain.clone(), key, &provider())
        .map_err(|error| HttpError::tls("", format!("the client certificate and its key: {error}")))?;
    let key = PrivateKey::from_pem(identity.key.reveal().as_bytes())
        .map_err(|_| HttpError::tls("", "the client's key is no private key in PEM"))?;
    let chain: Vec<_> = chain
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    Ok(ClientCert::new_with_certs(&chain, key))
}
