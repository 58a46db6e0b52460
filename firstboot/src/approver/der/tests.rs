use proptest::prelude::{ProptestConfig, prop_assert, proptest};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::*;

fn sample(names: &[&str]) -> Vec<u8> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    parameters
        .distinguished_name
        .push(DnType::CommonName, "system:node:w1");
    let name = |text: &&str| match text.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*text).try_into().unwrap()),
    };
    parameters.subject_alt_names = names.iter().map(name).collect();
    let request = parameters.serialize_request(&KeyPair::generate().unwrap());
    request.unwrap().der().to_vec()
}

/// A request of these parts, signed by nobody.
fn request(version: &[u8], subject: &[u8], attributes: &[u8]) -> Vec<u8> {
    let real = sample(&[]);
    let (_, parsed) = X509CertificationRequest::from_der(&real).unwrap();
    let key = parsed.certification_request_info.subject_pki.raw;
    let info = tlv(SEQUENCE, &[version, subject, key, attributes].concat());
    let rest = &real[parsed.certification_request_info.raw.len() + 3..];
    tlv(SEQUENCE, &[&info, rest].concat())
}

fn part(kind: &[u8], tag: u8, text: &str) -> Vec<u8> {
    tlv(SET, &tlv(SEQUENCE, &[kind, &tlv(tag, text.as_bytes())].concat()))
}

fn extension(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<u8> = names.iter().flat_map(|(tag, name)| tlv(*tag, name)).collect();
    tlv(
        SEQUENCE,
        &[ALTERNATIVE_NAMES, &tlv(OCTET_STRING, &tlv(SEQUENCE, &names))].concat(),
    )
}

#[test]
fn what_nodes_send_is_read() {
    let asked = read(&sample(&["w1", "10.0.0.7", "fd00::7"])).unwrap();
    assert_eq!(asked.common_name, "system:node:w1");
    assert_eq!(asked.organization, "system:nodes");
    assert_eq!(asked.dns_names, ["w1"]);
    assert_eq!(asked.addresses.len(), 2);
    assert!(read(&sample(&[])).unwrap().dns_names.is_empty());
}

#[test]
fn what_readers_could_take_differently_is_refused_before_its_signature_is_asked_for() {
    let name = [
        part(ORGANIZATION, UTF8_STRING, "system:nodes"),
        part(COMMON_NAME, PRINTABLE_STRING, "system:node:w1"),
    ];
    let subject = tlv(SEQUENCE, &name.concat());
    let w1 = extension(&[(DNS_NAME, b"w1")]);
    let attributes = |content: &[u8]| tlv(ATTRIBUTES, content);
    let why = |der: &[u8]| read(der).unwrap_err();
    let of = |subject: &[u8], content: &[u8]| why(&request(INTEGER_ZERO, subject, &attributes(content)));
    let fine = |said: &str| said.contains("signature");

    assert!(
        fine(&of(&subject, &attribute_of(&w1))),
        "{}",
        of(&subject, &attribute_of(&w1))
    );
    assert!(fine(&of(&subject, &[])));
    // Attributes and extensions, twice or strange.
    let twice = [attribute_of(&w1), attribute_of(&extension(&[(DNS_NAME, b"x")]))].concat();
    assert!(!fine(&of(&subject, &twice)));
    assert!(!fine(&of(
        &subject,
        &attribute_of(&[w1.clone(), w1.clone()].concat())
    )));
    let values = tlv(SET, &[tlv(SEQUENCE, &w1), tlv(SEQUENCE, &w1)].concat());
    assert!(!fine(&of(
        &subject,
        &tlv(SEQUENCE, &[EXTENSION_REQUEST, &values].concat())
    )));
    let critical = [
        ALTERNATIVE_NAMES,
        &[1, 1, 0xff],
        &tlv(OCTET_STRING, &tlv(SEQUENCE, &tlv(DNS_NAME, b"w1"))),
    ];
    assert!(!fine(&of(
        &subject,
        &attribute_of(&tlv(SEQUENCE, &critical.concat()))
    )));
    let challenge = [
        &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07][..],
        &tlv(SET, &tlv(UTF8_STRING, b"x")),
    ];
    assert!(!fine(&of(&subject, &tlv(SEQUENCE, &challenge.concat()))));
    // Names of other kinds, and addresses that Go takes for others.
    for names in [
        &[(0x81, &b"a@b"[..])][..],
        &[(0x86, b"http://x")],
        &[(IP_ADDRESS, b"12345")],
        &[(
            IP_ADDRESS,
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 7],
        )],
        &[(IP_ADDRESS, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7])],
        &[(DNS_NAME, b"w1\xff")],
    ] {
        assert!(
            !fine(&of(&subject, &attribute_of(&extension(names)))),
            "{names:?}"
        );
    }
    // Subjects.
    let both = tlv(SET, &[&name[0][2..], &name[1][2..]].concat());
    for subject in [
        tlv(SEQUENCE, &[&name[0][..], &name[1], &name[1]].concat()),
        tlv(SEQUENCE, &name[1]),
        tlv(SEQUENCE, &both),
        tlv(
            SEQUENCE,
            &[name[0].clone(), part(COMMON_NAME, 0x1e, "\0a")].concat(),
        ),
        tlv(
            SEQUENCE,
            &[
                name[0].clone(),
                part(COMMON_NAME, UTF8_STRING, "system:node:w1\0"),
            ]
            .concat(),
        ),
        tlv(
            SEQUENCE,
            &[
                name[0].clone(),
                name[1].clone(),
                part(&[6, 3, 0x55, 4, 6], PRINTABLE_STRING, "DE"),
            ]
            .concat(),
        ),
        tlv(SEQUENCE, &[]),
    ] {
        assert!(!fine(&of(&subject, &[])), "{subject:?}");
    }
    // Other versions, no attributes at all, and bytes behind.
    assert!(!fine(&why(&request(&[2, 1, 1], &subject, &attributes(&[])))));
    assert!(!fine(&why(&request(INTEGER_ZERO, &subject, &[]))));
    let mut longer = request(INTEGER_ZERO, &subject, &attributes(&[]));
    longer.push(0);
    assert!(!fine(&why(&longer)));
}

#[test]
fn a_length_in_a_longer_form_is_refused() {
    let der = sample(&["w1"]);
    assert_eq!(der[..2], [SEQUENCE, 0x82]);
    let longer = [&[SEQUENCE, 0x83, 0x00][..], &der[2..]].concat();
    assert!(read(&longer).is_err());
}

#[test]
fn somebody_elses_signature_is_refused() {
    let (mut one, other) = (sample(&["w1"]), sample(&["w1"]));
    let at = one.len() - 20;
    one[at] ^= 1;
    assert!(read(&one).is_err());
    assert!(read(&other).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_changed_request_is_read(at in 0usize..400, flip in 1u8..=255) {
        let mut der = sample(&["w1", "10.0.0.7"]);
        let at = at % der.len();
        der[at] ^= flip;
        // Its own key has signed the bytes as they were.
        prop_assert!(read(&der).is_err());
    }

    #[test]
    fn no_bytes_panic(der: Vec<u8>) {
        prop_assert!(read(&der).is_err());
    }
}
