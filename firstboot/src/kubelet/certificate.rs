//! The certificate that makes a machine a node of its cluster: the request for it, and what the cluster answers
//! (TLS bootstrap, `pkg/kubelet/certificate/bootstrap` and `pkg/controller/certificates` of Kubernetes).
//!
//! The kubelet could ask for it by itself, but not before containerd serves; the token would have to be in a file; and
//! what a refusal says would be in the kubelet's journal only.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::certificate::{Profile, check_pair, public_key_pem, request};
use kimage_roles::node_config::KeyPair;
use kimage_roles::pem;
use kimage_roles::secret::Secret;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Where requests are.
pub(crate) const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// A request for the certificate of one node and one key.
#[derive(Debug)]
pub(crate) struct Request {
    /// The object for the API.
    pub(crate) object: Value,
    name: String,
    key: Secret,
}

/// What the cluster says to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet.
    Waits,
    /// This certificate, PEM.
    Signed(String),
    /// No, and why.
    Refused(String),
}

impl Request {
    /// The request of the machine called `node`. The same key makes the same request, so that asking again is harmless.
    pub(crate) fn new(node: &str, key: Secret) -> Result<Self, Failure> {
        let text = request(&Profile::kubelet_client(node), &key).map_err(Failure::internal)?;
        let public = public_key_pem(&key).map_err(Failure::internal)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, public.as_bytes());
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("node-csr-{digest}");
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": STANDARD.encode(text),
                "signerName": SIGNER,
                "usages": ["digital signature", "client auth"],
            },
        });
        Ok(Self { object, name, key })
    }

    /// Where the request is once it was made.
    pub(crate) fn path(&self) -> String {
        format!("{REQUESTS}/{}", self.name)
    }

    /// What stands in the cluster's copy of the request.
    pub(crate) fn answer(&self, found: &Value) -> Answer {
        let conditions = found.pointer("/status/conditions").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let refused =
            conditions.find(|condition| condition["type"] == "Denied" || condition["type"] == "Failed");
        if let Some(condition) = refused {
            let message = condition["message"].as_str().unwrap_or_default();
            return Answer::Refused(message.to_owned());
        }
        let certificate = found.pointer("/status/certificate").and_then(Value::as_str);
        let bytes = certificate.and_then(|text| STANDARD.decode(text).ok());
        match bytes.map(String::from_utf8) {
            Some(Ok(certificate)) if !certificate.is_empty() => self.checked(certificate),
            _ => Answer::Waits,
        }
    }

    /// The certificate, written anew: it is kept with the key in one file, which the kubelet reads from the beginning.
    fn checked(&self, certificate: String) -> Answer {
        let refused =
            |what: String| Answer::Refused(format!("the certificate is not what was asked for: {what}"));
        let certificate = match pem::certificates(&certificate) {
            Ok(chain) => pem::encode_certificates(chain.iter().map(Vec::as_slice)),
            Err(what) => return refused(what),
        };
        let pair = KeyPair {
            certificate,
            key: self.key.clone(),
        };
        match check_pair(&pair) {
            Ok(()) => Answer::Signed(pair.certificate),
            Err(error) => refused(error.to_string()),
        }
    }

    /// What the kubelet keeps: certificate and key in one file.
    pub(crate) fn kept(&self, certificate: &str) -> Secret {
        Secret::new(format!("{}\n{}", certificate.trim_end(), self.key.reveal()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use kimage_roles::certificate::{Authority, issue, new_key};

    use super::*;

    fn signed(pair: &KeyPair) -> Value {
        json!({"status": {"conditions": [{"type": "Approved", "message": "by a rule"}],
            "certificate": STANDARD.encode(&pair.certificate)}})
    }

    #[test]
    fn a_request_waits_until_it_is_signed_or_refused() {
        let ca = Authority::create("kubernetes", SystemTime::now()).unwrap();
        let ca = Authority::from_pair(&ca).unwrap();
        let day = Duration::from_secs(86_400);
        let pair = issue(&ca, &Profile::kubelet_client("w1"), SystemTime::now(), day).unwrap();
        let request = Request::new("w1", pair.key.clone()).unwrap();
        assert_eq!(request.answer(&request.object), Answer::Waits);
        assert_eq!(
            request.answer(&signed(&pair)),
            Answer::Signed(pair.certificate.clone())
        );
        let denied = json!({"status": {"conditions": [{"type": "Denied", "message": "not you"}]}});
        assert_eq!(request.answer(&denied), Answer::Refused("not you".to_owned()));
        let behind = KeyPair {
            certificate: format!("{}{}", pair.certificate, pair.key.reveal()),
            key: pair.key.clone(),
        };
        assert!(matches!(request.answer(&signed(&behind)), Answer::Refused(_)));
        let other = Request::new("w1", new_key().unwrap()).unwrap();
        assert!(matches!(other.answer(&signed(&pair)), Answer::Refused(_)));
        assert_ne!(request.path(), other.path());
    }

    #[test]
    fn the_same_key_asks_for_the_same_and_is_not_printed() {
        let key = new_key().unwrap();
        let request = Request::new("w1", key.clone()).unwrap();
        assert_eq!(request.path(), Request::new("w1", key.clone()).unwrap().path());
        let secret = key.reveal().lines().nth(1).unwrap();
        assert!(!format!("{request:?}").contains(secret));
        assert!(request.kept("CERTIFICATE").reveal().contains(secret));
    }
}
