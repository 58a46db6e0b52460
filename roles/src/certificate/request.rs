//! Requests for certificates that an authority elsewhere signs (PKCS#10, RFC 2986).

use rcgen::{CertificateParams, DistinguishedName, DnType};

use super::{CertificateError, Profile, key};
use crate::secret::Secret;

/// A request, PEM, for a certificate in the name of `profile` and for this key. It asks for the name only: what the
/// certificate is to be used for stands beside the request in the cluster's API, which refuses other names in it.
pub fn request(profile: &Profile, key: &Secret) -> Result<String, CertificateError> {
    let mut name = DistinguishedName::new();
    if let Some(organization) = profile.organization() {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, profile.common_name());
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name;
    Ok(parameters.serialize_request(&key::read(key)?)?.pem()?)
}
