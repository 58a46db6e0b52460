//! A request for a certificate (PKCS#10, RFC 2986) as it may be: read, then written again from what was read. Only when
//! both are the same bytes do all readers of DER agree on what they say.

use std::net::{IpAddr, Ipv6Addr};

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

const INTEGER_ZERO: &[u8] = &[0x02, 0x01, 0x00];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
/// The attributes of a request: `[0] IMPLICIT`.
const ATTRIBUTES: u8 = 0xa0;
/// `GeneralName`: `[2] dNSName`, `[7] iPAddress`.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// 2.5.4.3 `commonName`
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// 2.5.4.10 `organizationName`
const ORGANIZATION: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
/// 1.2.840.113549.1.9.14 `extensionRequest` (PKCS#9)
const EXTENSION_REQUEST: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
/// 2.5.29.17 `subjectAltName`
const ALTERNATIVE_NAMES: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];

const BIT_STRING: u8 = 0x03;
/// Algorithms of signatures that kubelets and Go use, as they are written: ECDSA and RSA with SHA-256, -384 and -512, Ed25519.
const SIGNATURES: [&[u8]; 7] = [
    &[
        0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
    ],
    &[
        0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
    ],
    &[
        0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04,
    ],
    &[
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00,
    ],
    &[
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c, 0x05, 0x00,
    ],
    &[
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d, 0x05, 0x00,
    ],
    &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70],
];

/// What a request says. It says nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its one common name.
    pub common_name: String,
    /// Its one organization.
    pub organization: String,
    /// DNS names in their order.
    pub dns_names: Vec<String>,
    /// Addresses in their order.
    pub addresses: Vec<IpAddr>,
}

/// Reads a request and checks that its own key signed it.
pub(super) fn read(der: &[u8]) -> Result<Asked, String> {
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| "it is no request of PKCS#10".to_owned())?;
    let info = &request.certification_request_info;
    let (asked, canonical) = rewrite(&request)?;
    let signature = [&[0][..], request.signature_value.data.as_ref()].concat();
    let signature = tlv(BIT_STRING, &signature);
    let whole = |algorithm: &&[u8]| tlv(SEQUENCE, &[&canonical, *algorithm, &signature].concat()) == der;
    if !rest.is_empty() || canonical != info.raw || !SIGNATURES.iter().any(whole) {
        return Err("it holds more than a node's request may, or is written in an unusual way".to_owned());
    }
    let signed = request.verify_signature();
    signed.map_err(|_| "its signature is not of its own key".to_owned())?;
    Ok(asked)
}

/// What a request says, and a request that says that and nothing else.
fn rewrite(request: &X509CertificationRequest<'_>) -> Result<(Asked, Vec<u8>), String> {
    let info = &request.certification_request_info;
    let (common_name, organization, subject) = subject(&info.subject)?;
    let mut asked = Asked {
        common_name,
        organization,
        dns_names: Vec::new(),
        addresses: Vec::new(),
    };
    let attributes = match info.attributes() {
        [] => Vec::new(),
        [attribute] => {
            let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else {
                return Err("it has an attribute that is no extension request".to_owned());
            };
            let [extension] = &wanted.extensions[..] else {
                return Err(format!("it asks for {} extensions", wanted.extensions.len()));
            };
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                return Err("it asks for another extension than names".to_owned());
            };
            attribute_of(&alternative_names(&names.general_names, &mut asked)?)
        }
        _ => return Err("it has several attributes".to_owned()),
    };
    let parts = [
        INTEGER_ZERO,
        &subject,
        info.subject_pki.raw,
        &tlv(ATTRIBUTES, &attributes),
    ];
    Ok((asked, tlv(SEQUENCE, &parts.concat())))
}

/// A name of one common name and one organization, in either order, each a part of its own.
fn subject(name: &X509Name<'_>) -> Result<(String, String, Vec<u8>), String> {
    let mut written = Vec::new();
    let (mut common_name, mut organization) = (None, None);
    for part in name.iter_rdn() {
        let attribute = part.iter().next().ok_or("an empty part of its name")?;
        let (tag, value) = text(attribute)?;
        let (kind, place) = match attribute.attr_type().to_id_string().as_str() {
            "2.5.4.3" => (COMMON_NAME, &mut common_name),
            "2.5.4.10" => (ORGANIZATION, &mut organization),
            _ => return Err("its name has a part that is no common name and no organization".to_owned()),
        };
        if place.replace(value.clone()).is_some() {
            return Err("its name has two parts of one type".to_owned());
        }
        let pair = tlv(SEQUENCE, &[kind, &tlv(tag, value.as_bytes())].concat());
        written.extend(tlv(SET, &pair));
    }
    match (common_name, organization) {
        (Some(common_name), Some(organization)) => Ok((common_name, organization, tlv(SEQUENCE, &written))),
        _ => Err("its name is not a common name and an organization".to_owned()),
    }
}

/// The text of a part of a name, in one of the two types that Go and rcgen write, and plain enough to be the same in both.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Result<(u8, String), String> {
    let tag = match attribute.attr_value().tag().0 {
        12 => UTF8_STRING,
        19 => PRINTABLE_STRING,
        other => return Err(format!("its name has a text of type {other}")),
    };
    let bytes = attribute.as_slice().to_vec();
    if !bytes.iter().all(u8::is_ascii_graphic) {
        return Err("its name is not plain text".to_owned());
    }
    let value = String::from_utf8(bytes).map_err(|_| "its name is not text".to_owned())?;
    Ok((tag, value))
}

/// The extension with these names; they are added to `asked`.
fn alternative_names(names: &[GeneralName<'_>], asked: &mut Asked) -> Result<Vec<u8>, String> {
    let mut written = Vec::new();
    for name in names {
        match name {
            GeneralName::DNSName(name) => {
                asked.dns_names.push((*name).to_owned());
                written.extend(tlv(DNS_NAME, name.as_bytes()));
            }
            GeneralName::IPAddress(bytes) => {
                asked
                    .addresses
                    .push(address(bytes).ok_or("it asks for an odd address")?);
                written.extend(tlv(IP_ADDRESS, bytes));
            }
            other => return Err(format!("it asks for a name of another kind: {other}")),
        }
    }
    let value = tlv(OCTET_STRING, &tlv(SEQUENCE, &written));
    Ok(tlv(SEQUENCE, &[ALTERNATIVE_NAMES, &value].concat()))
}

fn attribute_of(extension: &[u8]) -> Vec<u8> {
    let values = tlv(SET, &tlv(SEQUENCE, extension));
    tlv(SEQUENCE, &[EXTENSION_REQUEST, &values].concat())
}

/// An address in the one form it has: Go takes the sixteen bytes of `::ffff:a.b.c.d` for the four of `a.b.c.d`.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
    address.to_ipv4().is_none().then_some(address.into())
}

/// Tag, length and value (X.690, 10.1: the shortest form of the length).
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut written = vec![tag];
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match significant {
        [] => written.push(0),
        [short] if *short < 0x80 => written.push(*short),
        long => {
            // At most eight bytes.
            written.push(0x80 | long.len() as u8);
            written.extend(long);
        }
    }
    written.extend(value);
    written
}

#[cfg(test)]
mod tests;
