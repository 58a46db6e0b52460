//! Authorities: made self-signed like kubeadm's, or taken from PEM.

use std::fmt;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};
use ring::rand::{SecureRandom, SystemRandom};
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::{RelativeDistinguishedName, SubjectPublicKeyInfo};

use super::{AUTHORITY_LIFETIME, CertificateError, key, parse, set_validity};
use crate::node_config::KeyPair;
use crate::pem;

/// A certificate authority that can sign.
pub struct Authority {
    der: Vec<u8>,
    issuer: Issuer<'static, rcgen::KeyPair>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("key", &"****")
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new self-signed authority: its common name is its DNS name too, it lives [`AUTHORITY_LIFETIME`].
    /// kubeadm's names are `kubernetes`, `front-proxy-ca` and `etcd-ca`.
    pub fn create(common_name: &str, now: SystemTime) -> Result<KeyPair, CertificateError> {
        let make = || {
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters
                .distinguished_name
                .push(DnType::CommonName, common_name);
            parameters.subject_alt_names = vec![rcgen::SanType::DnsName(common_name.try_into()?)];
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
                KeyUsagePurpose::KeyCertSign,
            ];
            parameters.serial_number = Some(serial()?);
            set_validity(&mut parameters, now, AUTHORITY_LIFETIME)?;
            let key = key::generate()?;
            let certificate = parameters.self_signed(&key)?;
            Ok(KeyPair {
                certificate: certificate.pem(),
                key: key::to_secret(&key),
            })
        };
        make().map_err(|error: CertificateError| error.about(format_args!("authority `{common_name}`")))
    }

    /// Takes an authority made here, by kubeadm or by OpenSSL. Refuses a certificate that may not sign, and a key that
    /// belongs to another.
    pub fn from_pair(pair: &KeyPair) -> Result<Self, CertificateError> {
        let der = pem::decode("CERTIFICATE", &pair.certificate).map_err(CertificateError::new)?;
        let certificate = parse(&der)?;
        if !certificate.is_ca() {
            return Err(CertificateError::new(
                "the certificate is not an authority's (CA:TRUE)",
            ));
        }
        let usage = certificate
            .key_usage()
            .map_err(|_| CertificateError::new("the certificate's key usage can't be read"))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(CertificateError::new(
                "the certificate's key may not sign certificates (keyCertSign)",
            ));
        }
        if !certificate.subject().iter().all(is_writable) {
            return Err(CertificateError::new(
                "the certificate's name has a part that is not one attribute of a known type",
            ));
        }
        let key = key::read(&pair.key)?;
        if !key::belongs(&pair.key, &certificate) {
            return Err(CertificateError::new("the key belongs to another certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key)?;
        let subject = certificate.subject().as_raw().to_vec();
        let public_key = certificate.public_key().raw.to_vec();
        Ok(Self {
            subject,
            public_key,
            issuer,
            der,
        })
    }

    /// The certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, rcgen::KeyPair> {
        &self.issuer
    }

    /// The name as it stands in the certificate, DER.
    pub(super) fn subject(&self) -> &[u8] {
        &self.subject
    }

    pub(super) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok((_, public_key)) = SubjectPublicKeyInfo::from_der(&self.public_key) else {
            return false;
        };
        certificate.issuer().as_raw() == self.subject
            && certificate.verify_signature(Some(&public_key)).is_ok()
    }
}

/// Whether rcgen can write this part of a name; of others it panics or makes another name. An attribute's type is an
/// object identifier, whose first number is 0, 1 or 2 (X.660).
fn is_writable(part: &RelativeDistinguishedName<'_>) -> bool {
    let mut attributes = part.iter();
    let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
        return false;
    };
    let first = attribute
        .attr_type()
        .iter()
        .and_then(|mut numbers| numbers.next());
    first.is_some_and(|first| first <= 2)
}

/// A random serial number from 1 to 2^63 - 1, as kubeadm's.
pub(super) fn serial() -> Result<rcgen::SerialNumber, CertificateError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CertificateError::new("the system gives no entropy"))?;
    let number = u64::from_be_bytes(bytes) >> 1;
    Ok(number.max(1).into())
}
