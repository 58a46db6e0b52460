//! What a certificate says, as a document.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

/// Everything that verifiers look at; not what is different in each certificate (serial, key, times).
pub(crate) fn describe(pem: &[u8]) -> Value {
    let (_, pem) = parse_x509_pem(pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    if let Some(extension) = certificate.subject_alternative_name().unwrap() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => {
                    names.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    let address = <[u8; 4]>::try_from(*bytes)
                        .map(IpAddr::from)
                        .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                    addresses.insert(address.unwrap().to_string());
                }
                other => panic!("a name of another kind: {other:?}"),
            }
        }
    }
    let constraints = certificate.basic_constraints().unwrap();
    let usage = certificate.key_usage().unwrap();
    let purposes = certificate.extended_key_usage().unwrap();
    json!({
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "names": names,
        "addresses": addresses,
        "authority": constraints.as_ref().map(|extension| extension.value.ca),
        "constraints critical": constraints.as_ref().map(|extension| extension.critical),
        "usage": usage.as_ref().map(|extension| extension.value.to_string()),
        "usage critical": usage.as_ref().map(|extension| extension.critical),
        "server": purposes.as_ref().map(|extension| extension.value.server_auth),
        "client": purposes.as_ref().map(|extension| extension.value.client_auth),
        // Both ends are read from the clock, one after the other.
        "minutes": (certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp() + 30) / 60,
        "version": certificate.version().0,
        "key": certificate.public_key().algorithm.algorithm.to_id_string(),
        "signature": certificate.signature_algorithm.algorithm.to_id_string(),
    })
}
