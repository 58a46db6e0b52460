//! Signs off the serving certificates of kubelets: nothing in Kubernetes does, and without them `logs` and `exec` don't
//! work where the API server checks whom it calls.
//!
//! A request is approved when the node itself asks for its own name and for addresses that its Node object has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use crate::kubernetes::{Api, ApiError};

const SIGNER: &str = "kubernetes.io/kubelet-serving";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
/// Usages that a serving certificate may have; the second stands only with RSA keys.
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

/// Looks at all requests that wait; says what it approved and what it didn't, a line each.
pub fn approve_waiting(api: &Api) -> Result<Vec<String>, ApiError> {
    // Version 0: what the API server has in memory will do, and spares etcd a question every other second.
    let list = api.get(&format!(
        "{REQUESTS}?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkubelet-serving&resourceVersion=0"
    ))?;
    let empty = Vec::new();
    let items = list
        .as_ref()
        .and_then(|list| list["items"].as_array())
        .unwrap_or(&empty);
    let mut lines = Vec::new();
    for request in items.iter().filter(|request| waits(request)) {
        let name = request
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match judge(request, |node| api.get(&format!("/api/v1/nodes/{node}")))? {
            Ok(node) => {
                approve(api, name, request)?;
                lines.push(format!("approved {name}: serving certificate of {node}"));
            }
            Err(why) => lines.push(format!("not approved {name}: {why}")),
        }
    }
    Ok(lines)
}

fn waits(request: &Value) -> bool {
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    request.pointer("/spec/signerName").and_then(Value::as_str) == Some(SIGNER)
        && conditions.is_none_or(Vec::is_empty)
}

fn approve(api: &Api, name: &str, request: &Value) -> Result<(), ApiError> {
    let mut approved = request.clone();
    approved["status"]["conditions"] = json!([{
        "type": "Approved",
        "status": "True",
        "reason": "KimageNodeServing",
        "message": "the node asks for its own name and addresses",
    }]);
    match api.replace(&format!("{REQUESTS}/{name}/approval"), &approved) {
        // Another control plane was faster.
        Err(error) if error.code() == Some(409) => Ok(()),
        other => other.map(drop),
    }
}

/// The node whose request is fine, or why it isn't. `node` looks up a Node.
fn judge(
    request: &Value,
    node: impl FnOnce(&str) -> Result<Option<Value>, ApiError>,
) -> Result<Result<String, String>, ApiError> {
    let asked = match Asked::read(request) {
        Ok(asked) => asked,
        Err(why) => return Ok(Err(why)),
    };
    let Some(found) = node(&asked.node)? else {
        return Ok(Err(format!("there is no Node {}", asked.node)));
    };
    let known = addresses(&found);
    let strangers: Vec<&String> = asked.names.iter().filter(|name| !known.contains(*name)).collect();
    if strangers.is_empty() {
        Ok(Ok(asked.node))
    } else {
        Ok(Err(format!("Node {} has no address {strangers:?}", asked.node)))
    }
}

/// What a request asks for.
struct Asked {
    node: String,
    /// DNS names and addresses.
    names: BTreeSet<String>,
}

impl Asked {
    fn read(request: &Value) -> Result<Self, String> {
        let spec = &request["spec"];
        let user = spec["username"].as_str().unwrap_or_default();
        let node = user
            .strip_prefix(USER_PREFIX)
            .ok_or_else(|| format!("`{user}` is no node"))?;
        let texts = |key: &str| -> Vec<&str> {
            let list = spec[key].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).collect()
        };
        if !texts("groups").contains(&GROUP) {
            return Err(format!("`{user}` is not in {GROUP}"));
        }
        let usages = texts("usages");
        if !usages.contains(&"server auth") || usages.iter().any(|usage| !USAGES.contains(usage)) {
            return Err(format!("usages {usages:?} are not those of a server"));
        }
        let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default());
        let pem = pem.map_err(|_| "the request is not base64".to_owned())?;
        let names = names(&pem, user)?;
        Ok(Self {
            node: node.to_owned(),
            names,
        })
    }
}

/// The names in a certificate signing request (RFC 2986) whose subject is `user` of [`GROUP`].
fn names(pem: &[u8], user: &str) -> Result<BTreeSet<String>, String> {
    let broken = |what: &str| format!("the request is no certificate signing request: {what}");
    let (_, pem) = parse_x509_pem(pem).map_err(|_| broken("not PEM"))?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| broken("not DER"))?;
    let subject = &csr.certification_request_info.subject;
    let one = |mut values: Vec<&str>| match (values.pop(), values.is_empty()) {
        (Some(value), true) => value.to_owned(),
        _ => String::new(),
    };
    let common = one(subject
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .collect());
    let organization = one(subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .collect());
    if common != user || organization != GROUP {
        return Err(format!(
            "`{user}` asks for a certificate of `{common}` in `{organization}`"
        ));
    }
    let mut names = BTreeSet::new();
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension else {
            continue;
        };
        for name in &alternative.general_names {
            names.insert(match name {
                GeneralName::DNSName(name) => (*name).to_owned(),
                GeneralName::IPAddress(bytes) => address(bytes).ok_or_else(|| broken("an odd address"))?,
                other => return Err(format!("asks for a name of another kind: {other}")),
            });
        }
    }
    if names.is_empty() {
        return Err("asks for no name".to_owned());
    }
    Ok(names)
}

fn address(bytes: &[u8]) -> Option<String> {
    let address: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(address.to_string())
}

/// Names and addresses that a Node object has.
fn addresses(node: &Value) -> BTreeSet<String> {
    let list = node.pointer("/status/addresses").and_then(Value::as_array);
    let list = list.map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|address| address["address"].as_str())
        // One spelling for each address.
        .map(|text| {
            text.parse::<IpAddr>()
                .map_or_else(|_| text.to_owned(), |address| address.to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn request(user: &str, group: &str, common: &str, names: &[&str], usages: &[&str]) -> Value {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, group);
        parameters.distinguished_name.push(DnType::CommonName, common);
        parameters.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let csr = parameters
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap();
        json!({"metadata": {"name": "csr-1"}, "spec": {
            "signerName": SIGNER, "username": user, "groups": [group, "system:authenticated"], "usages": usages,
            "request": STANDARD.encode(csr.pem().unwrap()),
        }})
    }

    fn verdict(request: &Value) -> Result<String, String> {
        judge(request, |name| {
            Ok((name == "w1").then(|| {
                json!({"status": {"addresses": [
                    {"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": "w1"}]}})
            }))
        })
        .unwrap()
    }

    const SERVER: [&str; 2] = ["digital signature", "server auth"];
    const NODE: &str = "system:node:w1";

    #[test]
    fn a_node_gets_a_certificate_for_its_own_name_and_address() {
        let fine = request(NODE, GROUP, NODE, &["w1", "10.0.0.7"], &SERVER);
        assert!(waits(&fine));
        assert_eq!(verdict(&fine), Ok("w1".to_owned()));
    }

    #[test]
    fn whatever_else_is_asked_for_is_not_approved() {
        let client = ["digital signature", "client auth"];
        for (request, why) in [
            (request(NODE, GROUP, NODE, &["10.0.0.8"], &SERVER), "no address"),
            (
                request(NODE, GROUP, NODE, &["w1", "kubernetes"], &SERVER),
                "no address",
            ),
            (request(NODE, GROUP, NODE, &[], &SERVER), "no name"),
            (
                request(NODE, GROUP, "system:node:w2", &["w1"], &SERVER),
                "asks for a certificate of",
            ),
            (request(NODE, "system:masters", NODE, &["w1"], &SERVER), "not in"),
            (request("admin", GROUP, "admin", &["w1"], &SERVER), "is no node"),
            (request(NODE, GROUP, NODE, &["w1"], &client), "usages"),
            (
                request("system:node:w9", GROUP, "system:node:w9", &["w9"], &SERVER),
                "no Node",
            ),
        ] {
            let said = verdict(&request).unwrap_err();
            assert!(said.contains(why), "{said} lacks {why}");
        }
        let mut broken = request(NODE, GROUP, NODE, &["w1"], &SERVER);
        broken["spec"]["request"] = json!("AAAA");
        assert!(verdict(&broken).is_err());
    }
}
