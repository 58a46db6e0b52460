//! What `kube-public/cluster-info` says, and whether to believe it.
//!
//! The token signs all of it, and every worker of the cluster knows a token: so what is taken from it is bound to the
//! pinned hashes besides, and written anew. Of the authorities every one must be pinned: the kubelet (Go) believes all of
//! a file, so one more than was judged would be somebody else's authority. The server is an address in the one form
//! that Go's and our reader of URLs agree on. The signature needs no such care: nobody else reads it again, and its MAC is
//! over the header as it stands there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::cause::Cause;
use kimage_roles::certificate::public_key_hash_der;
use kimage_roles::node_config::Endpoint;
use kimage_roles::pem;
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

/// Believes a cluster-info ConfigMap when the token has signed it and all of its authorities have pinned hashes. What is
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
            "the cluster knows the token, but one of its authorities at least has no hash of join.caCertHashes",
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
    let endpoint = cluster.server.strip_prefix("https://");
    let endpoint: Option<Endpoint> = endpoint.and_then(|endpoint| endpoint.parse().ok());
    let endpoint = endpoint.ok_or_else(|| broken("its server is not https://HOST:PORT".to_owned()))?;
    let authority = STANDARD.decode(&cluster.authority).ok();
    let authority = authority.and_then(|bytes| String::from_utf8(bytes).ok());
    let authority = authority.ok_or_else(|| broken("its authority is not base64 of PEM".to_owned()))?;
    let authorities =
        pem::certificates(&authority).map_err(|what| broken(format!("its authority: {what}")))?;
    Ok(Discovered {
        server: endpoint.url(),
        ca_certificate: pem::encode_certificates(authorities.iter().map(Vec::as_slice)),
    })
}

/// Whether every authority is pinned.
fn is_pinned(bundle: &str, hashes: &[String]) -> Result<bool, Failure> {
    let broken = |what: String| {
        Failure::because(
            Cause::ApiServerNotReady,
            format!("cluster-info's authority: {what}"),
        )
    };
    for der in pem::certificates(bundle).map_err(broken)? {
        let hash = public_key_hash_der(&der).map_err(|error| broken(error.to_string()))?;
        if !hashes.iter().any(|pinned| pinned.eq_ignore_ascii_case(&hash)) {
            return Ok(false);
        }
    }
    Ok(true)
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

    fn authority() -> String {
        let pair = Authority::create("kubernetes", SystemTime::now());
        pair.unwrap().certificate
    }

    fn fixture() -> Fixture {
        let ca = authority();
        let (token, object) = signed("https://lb:6443", &ca);
        let hash = public_key_hash(&ca).unwrap();
        Fixture { token, object, hash }
    }

    /// A cluster-info that the token has signed.
    fn signed(server: &str, ca: &str) -> (Token, Value) {
        let token = Token::parse(&Secret::new("abcdef.0123456789abcdef")).unwrap();
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(ca)}}]})
        .to_string();
        let signature = token.sign(&kubeconfig);
        let object = json!({"data": {"kubeconfig": kubeconfig, "jws-kubeconfig-abcdef": signature}});
        (token, object)
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
    fn an_authority_beside_the_pinned_one_is_refused_in_whatever_order() {
        let (ours, other) = (authority(), authority());
        let hashes = [public_key_hash(&ours).unwrap()];
        for bundle in [
            format!("{ours}{other}"),
            format!("{other}{ours}"),
            // Go skips the first block and believes the second.
            format!("{}{other}", ours.replace("-----END CERTIFICATE", "-----END X")),
            format!(
                "{ours}{}",
                other.replace("CERTIFICATE-----", "TRUSTED CERTIFICATE-----")
            ),
        ] {
            let (token, object) = signed("https://lb:6443", &bundle);
            assert!(check(&object, &token, &hashes).is_err(), "{bundle}");
        }
        let both = [&ours, &other].map(|ca| public_key_hash(ca).unwrap());
        let (token, object) = signed("https://lb:6443", &format!("# old and new\n{ours}\n{other}"));
        let found = check(&object, &token, &both).unwrap();
        assert_eq!(found.ca_certificate, format!("{ours}{other}"));
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        let ca = authority();
        let hashes = [public_key_hash(&ca).unwrap()];
        for server in [
            "http://lb:6443",
            "https://lb:6443/path",
            "https://user@lb:6443",
            "https://lb:6443?x",
            "https://lb:6443#x",
            "https://lb",
            "https://lb:6443\\@evil:1",
            "https://lb:6443 ",
        ] {
            let (token, object) = signed(server, &ca);
            assert!(check(&object, &token, &hashes).is_err(), "{server}");
        }
        let (token, object) = signed("https://[fd00::5]:6443", &ca);
        assert_eq!(
            check(&object, &token, &hashes).unwrap().server,
            "https://[fd00::5]:6443"
        );
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
