//! What `kube-public/cluster-info` says, and whether to believe it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::cause::Cause;
use kimage_roles::certificate::public_key_hash_der;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::token::Token;
use crate::failure::Failure;

/// The cluster, as its own signed word has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Discovered {
    /// `https://host:port`.
    pub server: String,
    /// PEM of the authorities that sign it.
    pub ca_certificate: String,
}

/// The part of a kubeconfig that cluster-info holds.
#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    cluster: Cluster,
}

#[derive(Deserialize)]
struct Cluster {
    server: String,
    #[serde(rename = "certificate-authority-data")]
    authority: String,
}

/// Believes a cluster-info ConfigMap when the token has signed it and one of its authorities has a pinned hash. What is
/// wrong tells three mistakes apart: another cluster, a wrong hash, an unknown token.
pub(super) fn check(object: &Value, token: &Token, hashes: &[String]) -> Result<Discovered, Failure> {
    let data = |key: &str| object.pointer("/data").and_then(|data| data[key].as_str());
    let text = data("kubeconfig").ok_or_else(|| {
        Failure::because(
            Cause::ApiServerNotReady,
            "ConfigMap kube-public/cluster-info has no kubeconfig",
        )
    })?;
    let found = parse(text)?;
    let pinned = is_pinned(&found.ca_certificate, hashes)?;
    let signature = data(&format!("jws-kubeconfig-{}", token.id()));
    match (signature.map(|signature| token.signed(signature, text)), pinned) {
        (Some(true), true) => Ok(found),
        (Some(true), false) => Err(Failure::because(
            Cause::CaHashMismatch,
            "the cluster knows the token, but none of its authorities has a hash of join.caCertHashes",
        )),
        (None, true) => Err(Failure::because(
            Cause::TokenUnknown,
            format!("the cluster has signed nothing with token {}", token.id()),
        )),
        (Some(false), true) => Err(Failure::because(
            Cause::TokenRejected,
            format!(
                "the cluster's signature for token {} was made with another secret",
                token.id()
            ),
        )),
        (None | Some(false), false) => Err(Failure::because(
            Cause::ForeignCluster,
            "who answers knows neither the token nor has an authority of join.caCertHashes",
        )),
    }
}

fn parse(text: &str) -> Result<Discovered, Failure> {
    let broken = |what: String| Failure::because(Cause::ApiServerNotReady, format!("cluster-info: {what}"));
    let config: Kubeconfig =
        serde_saphyr::from_str(text).map_err(|error| broken(format!("no kubeconfig: {error}")))?;
    let [Named { cluster }] = &config.clusters[..] else {
        return Err(broken(format!(
            "{} clusters instead of one",
            config.clusters.len()
        )));
    };
    if !cluster.server.starts_with("https://") {
        return Err(broken("its server is no https URL".to_owned()));
    }
    let authority = STANDARD.decode(&cluster.authority).ok();
    let authority = authority.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Discovered {
        server: cluster.server.clone(),
        ca_certificate: authority.ok_or_else(|| broken("its authority is not base64 of PEM".to_owned()))?,
    })
}

fn is_pinned(pem: &str, hashes: &[String]) -> Result<bool, Failure> {
    for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|error| {
            Failure::because(
                Cause::ApiServerNotReady,
                format!("cluster-info's authority: {error}"),
            )
        })?;
        let hash = public_key_hash_der(&block.contents).map_err(|error| {
            Failure::because(
                Cause::ApiServerNotReady,
                format!("cluster-info's authority: {error}"),
            )
        })?;
        if hashes.iter().any(|pinned| pinned.eq_ignore_ascii_case(&hash)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use kimage_roles::certificate::{Authority, public_key_hash};
    use kimage_roles::secret::Secret;
    use serde_json::json;

    use super::*;

    struct Fixture {
        token: Token,
        object: Value,
        hash: String,
    }

    fn fixture() -> Fixture {
        let token = Token::parse(&Secret::new("abcdef.0123456789abcdef")).unwrap();
        let ca = Authority::create("kubernetes", SystemTime::now())
            .unwrap()
            .certificate;
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
            "server": "https://lb:6443", "certificate-authority-data": STANDARD.encode(&ca)}}]})
        .to_string();
        let signature = token.sign(&kubeconfig);
        Fixture {
            token,
            object: json!({"data": {"kubeconfig": kubeconfig, "jws-kubeconfig-abcdef": signature}}),
            hash: public_key_hash(&ca).unwrap(),
        }
    }

    fn cause(object: &Value, token: &Token, hash: &str) -> Cause {
        check(object, token, &[hash.to_owned()]).unwrap_err().cause
    }

    #[test]
    fn a_signed_and_pinned_cluster_is_believed() {
        let Fixture { token, object, hash } = fixture();
        let found = check(&object, &token, &[hash]).unwrap();
        assert_eq!(found.server, "https://lb:6443");
        assert!(found.ca_certificate.starts_with("-----BEGIN CERTIFICATE"));
    }

    #[test]
    fn each_mistake_has_its_own_cause() {
        let Fixture { token, object, hash } = fixture();
        let nothing = format!("sha256:{}", "0".repeat(64));
        assert_eq!(cause(&object, &token, &nothing), Cause::CaHashMismatch);
        let unknown = Token::parse(&Secret::new("zzzzzz.0123456789abcdef")).unwrap();
        assert_eq!(cause(&object, &unknown, &hash), Cause::TokenUnknown);
        assert_eq!(cause(&object, &unknown, &nothing), Cause::ForeignCluster);
        let wrong = Token::parse(&Secret::new("abcdef.fedcba9876543210")).unwrap();
        assert_eq!(cause(&object, &wrong, &hash), Cause::TokenRejected);
        assert_eq!(cause(&json!({}), &token, &hash), Cause::ApiServerNotReady);
    }
}
