//! Which servers are believed, and who this machine is to them.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kimage_roles::secret::Secret;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::fault::{self, Fault, HttpError};

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

/// TLS as ureq wants it.
pub(super) fn tls(trust: &Trust, identity: Option<&Identity>) -> Result<TlsConfig, HttpError> {
    let mut config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider());
    config = match trust {
        Trust::Unverified => config.disable_verification(true),
        Trust::System => config.root_certs(roots(&rustls_native_certs::load_native_certs().certs)),
        Trust::Pinned(pem) => config.root_certs(roots(&certificates(pem, "the pinned CA")?)),
    };
    if let Some(identity) = identity {
        config = config.client_cert(Some(client_certificate(identity)?));
    }
    Ok(config.build())
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

/// The certificates (DER, leaf first) that a server shows, unverified except that it holds the leaf's key.
pub fn peer_certificates(host: &str, port: u16, limit: Duration) -> Result<Vec<Vec<u8>>, HttpError> {
    let url = format!("https://{host}:{port}");
    let fail = |fault| HttpError::new(&url, fault);
    let deadline = Instant::now() + limit;
    let seen = Arc::new(Witness::default());
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpError::tls(&url, error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| HttpError::tls(&url, error))?;
    let mut connection =
        ClientConnection::new(Arc::new(config), name).map_err(|error| HttpError::tls(&url, error))?;
    let mut socket = connect(host, port, deadline).map_err(fail)?;
    while connection.is_handshaking() {
        let left = left(deadline).ok_or_else(|| fail(Fault::Timeout))?;
        let timed = socket
            .set_read_timeout(Some(left))
            .and_then(|()| socket.set_write_timeout(Some(left)));
        timed.map_err(|error| fail(fault::of_io(&error)))?;
        let step = if connection.wants_write() {
            connection.write_tls(&mut socket).map(drop)
        } else {
            read_some(&mut connection, &mut socket)
        };
        step.map_err(|error| fail(fault::of_io(&error)))?;
    }
    let seen = seen.chain.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(seen.clone())
}

fn read_some(connection: &mut ClientConnection, socket: &mut TcpStream) -> std::io::Result<()> {
    if connection.read_tls(socket)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    connection.process_new_packets().map_err(std::io::Error::other)?;
    Ok(())
}

fn connect(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, Fault> {
    let addresses = (host, port).to_socket_addrs().map_err(|_| Fault::Dns)?;
    let mut last = Fault::Dns;
    for address in addresses {
        let left = left(deadline).ok_or(Fault::Timeout)?;
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Fault::Connect(error.to_string()),
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> Option<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
}

/// Believes every certificate and remembers it.
#[derive(Debug, Default)]
struct Witness {
    chain: Mutex<Vec<Vec<u8>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let all = std::iter::once(leaf).chain(others).map(|der| der.to_vec());
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = all.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            leaf,
            signed,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signed,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
