//! Certificates of a cluster as kubeadm 1.36 makes them (`cmd/kubeadm/app/phases/certs`, `util/pkiutil`), with ECDSA
//! P-256 keys: authorities, the profile of every leaf, and the text of kubeconfigs.
//!
//! Nothing here reads a clock or a file. `now` is the caller's, keys stay in [`Secret`]s.

use std::fmt;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::node_config::KeyPair;
use crate::pem;
use crate::secret::Secret;

mod authority;
mod key;
mod kubeconfig;
mod profile;
mod request;
mod validity;

pub use authority::Authority;
pub use key::{new_key, public_key_pem};
pub use kubeconfig::{Credentials, Kubeconfig, certificate_in};
pub use profile::Profile;
pub use request::request;
pub use validity::Validity;

/// Life of an authority: 10 years (kubeadm's `caCertificateValidityPeriod`).
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(87_600 * 3600);
/// Life of a leaf: 1 year (kubeadm's `certificateValidityPeriod`).
pub const LEAF_LIFETIME: Duration = Duration::from_secs(8_760 * 3600);
/// Certificates begin this long before they are made, for clocks that differ (kubeadm's `CertificateBackdate`); those that
/// live shorter than 50 minutes a tenth of their life.
pub const BACKDATE: Duration = Duration::from_secs(300);

/// Why a certificate or key can't be made or read. Holds nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateError(String);

impl CertificateError {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }

    /// Says what the error is about.
    fn about(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CertificateError {}

impl From<rcgen::Error> for CertificateError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

/// Makes a key and a certificate for it that `authority` signs, valid from [`BACKDATE`] before `now` until `lifetime`
/// after it. Like kubeadm's, a leaf may outlive its authority.
pub fn issue(
    authority: &Authority,
    profile: &Profile,
    now: SystemTime,
    lifetime: Duration,
) -> Result<KeyPair, CertificateError> {
    let make = || {
        let mut parameters = profile.parameters()?;
        set_validity(&mut parameters, now, lifetime)?;
        let key = key::generate()?;
        let certificate = parameters.signed_by(&key, authority.issuer())?;
        // An authority made elsewhere may have a name that rcgen writes in another way; verifiers compare bytes.
        if parse(certificate.der())?.issuer().as_raw() != authority.subject() {
            return Err(CertificateError::new(
                "the authority's name can't be written as it stands there",
            ));
        }
        Ok(KeyPair {
            certificate: certificate.pem(),
            key: key::to_secret(&key),
        })
    };
    make().map_err(|error| error.about(format_args!("certificate for `{}`", profile.common_name())))
}

/// Whether `pair` still serves at `now`: it says what `profile` says, `authority` signed it, its key belongs to it, it
/// is valid and more than a third of its life is left. What can't be read is not current.
pub fn is_current(pair: &KeyPair, profile: &Profile, authority: &Authority, now: SystemTime) -> bool {
    let Ok(der) = pem::decode("CERTIFICATE", &pair.certificate) else {
        return false;
    };
    let Ok(certificate) = parse(&der) else {
        return false;
    };
    validity(&certificate).is_young(now)
        && profile.matches(&certificate)
        && authority.has_signed(&certificate)
        && key::belongs(&pair.key, &certificate)
}

/// When the first certificate of a PEM text begins and ends.
pub fn validity_of(certificate: &str) -> Result<Validity, CertificateError> {
    let der = pem::decode("CERTIFICATE", certificate).map_err(CertificateError::new)?;
    Ok(validity(&parse(&der)?))
}

/// `sha256:<hex>` over the DER SubjectPublicKeyInfo of the first certificate of a PEM text: what kubeadm's
/// `--discovery-token-ca-cert-hash` takes.
pub fn public_key_hash(certificate: &str) -> Result<String, CertificateError> {
    let der = pem::decode("CERTIFICATE", certificate).map_err(CertificateError::new)?;
    public_key_hash_der(&der)
}

/// The same of a certificate in DER.
pub fn public_key_hash_der(certificate: &[u8]) -> Result<String, CertificateError> {
    let certificate = parse(certificate)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
    let mut text = "sha256:".to_owned();
    for byte in digest.as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Checks that `certificate` and `key` are PEM, readable and belong together.
pub fn check_pair(pair: &KeyPair) -> Result<(), CertificateError> {
    let der = pem::decode("CERTIFICATE", &pair.certificate).map_err(CertificateError::new)?;
    let certificate = parse(&der)?;
    if key::belongs(&pair.key, &certificate) {
        Ok(())
    } else {
        key::read(&pair.key)?;
        Err(CertificateError::new("the key belongs to another certificate"))
    }
}

/// The pair in `text`, which holds a certificate and its key as kubelets keep them, if it serves the client that
/// `profile` describes at `now`. One that begins later is no fault of the pair.
pub fn check_kept(text: &str, profile: &Profile, now: SystemTime) -> Result<KeyPair, CertificateError> {
    let blocks = pem::blocks(text).map_err(CertificateError::new)?;
    let only = |wanted: bool| {
        let chosen = blocks
            .iter()
            .filter(|block| (block.label == "CERTIFICATE") == wanted);
        chosen
            .map(|block| pem::encode(&block.label, &block.der))
            .collect::<String>()
    };
    let pair = KeyPair {
        certificate: only(true),
        key: Secret::new(only(false)),
    };
    check_pair(&pair)?;
    let der = pem::decode("CERTIFICATE", &pair.certificate).map_err(CertificateError::new)?;
    let certificate = parse(&der)?;
    if !profile.is_subject_of(&certificate) {
        return Err(CertificateError::new(format!(
            "the certificate is not `{}`'s",
            profile.common_name()
        )));
    }
    if validity(&certificate).is_over(now) {
        return Err(CertificateError::new("the certificate has expired"));
    }
    Ok(pair)
}

/// Checks that `key` is a private key that services accept.
pub fn check_key(key: &Secret) -> Result<(), CertificateError> {
    key::read(key).map(|_| ())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| CertificateError::new("not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(CertificateError::new("bytes follow the certificate"));
    }
    Ok(certificate)
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity {
        from: validity.not_before.timestamp(),
        until: validity.not_after.timestamp(),
    }
}

fn set_validity(
    parameters: &mut rcgen::CertificateParams,
    now: SystemTime,
    lifetime: Duration,
) -> Result<(), CertificateError> {
    /// The end of the year 9999, the last that X.509 can say.
    const LAST: u64 = 253_402_300_799;
    let passed = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CertificateError::new("the clock stands before 1970"))?;
    let now = Duration::from_secs(passed.as_secs());
    let until = now
        .checked_add(Duration::from_secs(lifetime.as_secs()))
        .filter(|until| until.as_secs() <= LAST)
        .ok_or_else(|| CertificateError::new("the lifetime ends after the year 9999"))?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let backdate = BACKDATE.min(Duration::from_secs(lifetime.as_secs() / 10));
    parameters.not_before = epoch + now.saturating_sub(backdate);
    parameters.not_after = epoch + until;
    Ok(())
}

#[cfg(test)]
mod tests;
