use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use super::*;

pub(in crate::approver) const SERVER: [&str; 2] = ["digital signature", "server auth"];
pub(in crate::approver) const CLIENT: [&str; 2] = ["digital signature", "client auth"];
pub(in crate::approver) const NODES: &str = "system:nodes";
pub(in crate::approver) const TOKENS: &str = "system:bootstrappers:kubeadm:default-node-token";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// What rcgen writes for a certificate of `common_name` in `organization` with these names.
pub(in crate::approver) fn parameters(
    common_name: &str,
    organization: &str,
    names: &[&str],
) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    parameters.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    parameters
}

pub(in crate::approver) fn pem(parameters: &CertificateParams) -> String {
    let request = parameters.serialize_request(&KeyPair::generate().unwrap());
    request.unwrap().pem().unwrap()
}

fn object(user: &str, groups: &[&str], signer: &str, usages: &[&str], pem: &str) -> Value {
    json!({
        "metadata": {"name": "csr-1", "uid": "u", "resourceVersion": "3", "managedFields": [{}]},
        "spec": {"signerName": signer, "username": user, "groups": groups, "usages": usages,
            "request": STANDARD.encode(pem), "extra": {"x": ["y"]}},
        "status": {},
    })
}

/// A request of `user` for a serving certificate.
pub(in crate::approver) fn serving(user: &str, group: &str, pem: &str, usages: &[&str]) -> Object {
    serde_json::from_value(object(
        user,
        &[group, "system:authenticated"],
        SERVING_SIGNER,
        usages,
        pem,
    ))
    .unwrap()
}

/// A request of `user` for a client's certificate.
pub(in crate::approver) fn client(user: &str, group: &str, pem: &str, usages: &[&str]) -> Object {
    serde_json::from_value(object(
        user,
        &[group, "system:authenticated"],
        CLIENT_SIGNER,
        usages,
        pem,
    ))
    .unwrap()
}

fn asked(pem: &str) -> Result<Asked, String> {
    serving("system:node:w1", NODES, pem, &SERVER).asked(Signer::Serving)
}

#[test]
fn a_request_is_read_whole_and_waits_until_somebody_has_judged_it() {
    let pem = pem(&parameters("system:node:w1", NODES, &["w1", "10.0.0.7"]));
    let mut value = object("system:node:w1", &[NODES], SERVING_SIGNER, &SERVER, &pem);
    let read = |value: &Value| serde_json::from_value::<Object>(value.clone()).unwrap();
    assert_eq!(read(&value).waits_for(), Some(Signer::Serving));
    let found = read(&value).asked(Signer::Serving).unwrap();
    assert_eq!(found.dns_names, ["w1"]);
    assert_eq!(found.addresses, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
    value["status"]["conditions"] = json!([{"type": "Denied"}]);
    assert_eq!(read(&value).waits_for(), None);
    value["status"] = json!({"certificate": "AAAA"});
    assert_eq!(read(&value).waits_for(), None);
    value["status"] = json!({});
    value["spec"]["signerName"] = json!("kubernetes.io/legacy-unknown");
    assert_eq!(read(&value).waits_for(), None);
}

#[test]
fn usages_are_the_signers_own_and_no_others() {
    let pem = pem(&parameters("system:node:w1", NODES, &["w1"]));
    let with = |usages: &[&str]| serving("system:node:w1", NODES, &pem, usages).asked(Signer::Serving);
    assert!(with(&SERVER).is_ok());
    assert!(with(&["server auth", "key encipherment", "digital signature"]).is_ok());
    for usages in [
        &CLIENT[..],
        &["server auth"],
        &["digital signature", "server auth", "client auth"],
        &["digital signature", "server auth", "server auth"],
        &["digital signature", "server auth", "cert sign"],
        &[],
    ] {
        assert!(with(usages).unwrap_err().contains("usages"), "{usages:?}");
    }
}

/// The block that Go skips, and the one that it reads instead.
#[test]
fn two_blocks_are_refused_whichever_of_them_is_good() {
    let good = pem(&parameters("system:node:w1", NODES, &["w1", "10.0.0.7"]));
    let evil = pem(&parameters("system:node:w1", NODES, &["kubernetes", "10.96.0.1"]));
    let skipped = good.replace("-----END CERTIFICATE REQUEST-----", "-----END X-----");
    assert!(asked(&good).is_ok());
    for text in [
        format!("{skipped}{evil}"),
        format!("{good}{evil}"),
        format!("{evil}{good}"),
        format!("text\n{good}"),
        format!("{good}text"),
        good.replacen("-----\n", "-----\nProc-Type: 4\n\n", 1),
        good.replace('\n', "\r\n"),
        good.trim_end().to_owned(),
    ] {
        assert!(asked(&text).is_err(), "{text}");
    }
}

#[test]
fn a_text_of_megabytes_goes_by() {
    let good = pem(&parameters("system:node:w1", NODES, &["w1"]));
    let said = asked(&format!("{}\n{good}", "x".repeat(1_200_000))).unwrap_err();
    assert!(said.contains("more than"), "{said}");
}

#[test]
fn whatever_else_a_request_may_hold_is_refused() {
    let of = |change: &dyn Fn(&mut CertificateParams)| {
        let mut parameters = parameters("system:node:w1", NODES, &["w1"]);
        change(&mut parameters);
        asked(&pem(&parameters))
    };
    assert!(of(&|_| ()).is_ok());
    let email = SanType::Rfc822Name("a@b".try_into().unwrap());
    let uri = SanType::URI("spiffe://x".try_into().unwrap());
    for name in [email, uri] {
        assert!(of(&|parameters| parameters.subject_alt_names.push(name.clone())).is_err());
    }
    assert!(of(&|parameters| parameters.distinguished_name.push(DnType::CountryName, "DE")).is_err());
    let usage = rcgen::KeyUsagePurpose::KeyCertSign;
    assert!(of(&|parameters| parameters.key_usages.push(usage)).is_err());
    // A second extension of names: Go reads the last, others the first.
    let other = parameters("x", "y", &["kubernetes"]);
    let second = CustomExtension::from_oid_content(&[2, 5, 29, 17], b"\x30\x04\x82\x02w1".to_vec());
    assert!(of(&|parameters| parameters.custom_extensions.push(second.clone())).is_err());
    assert!(!other.subject_alt_names.is_empty());
}
