//! CertificateSigningRequests as the API lists them: typed, and of each no more than is judged.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::pem::decode_canonical;
use serde::de::{IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};

use super::der::{self, Asked};
use crate::kubernetes::Versioned;

/// Longest text of a request that is looked at, in bytes of base64: a node's own has less than 2 KiB.
const MAX_TEXT: usize = 16 << 10;
/// Label of the PEM block.
const LABEL: &str = "CERTIFICATE REQUEST";

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signer {
    /// `kubernetes.io/kubelet-serving`: certificates that kubelets serve with.
    Serving,
    /// `kubernetes.io/kube-apiserver-client-kubelet`: certificates that make a kubelet a node.
    Client,
}

impl Signer {
    fn of(name: &str) -> Option<Self> {
        match name {
            "kubernetes.io/kubelet-serving" => Some(Self::Serving),
            "kubernetes.io/kube-apiserver-client-kubelet" => Some(Self::Client),
            _ => None,
        }
    }

    /// What the signer insists on (Kubernetes, `pkg/apis/certificates/helpers.go`): two usages, and a third with RSA keys.
    fn usages(self) -> [&'static str; 3] {
        match self {
            Self::Serving => ["digital signature", "server auth", "key encipherment"],
            Self::Client => ["digital signature", "client auth", "key encipherment"],
        }
    }
}

/// A CertificateSigningRequest (`certificates.k8s.io/v1`).
#[derive(Debug, Clone, Deserialize)]
pub struct Object {
    /// Which object it is.
    pub metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// Which object it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Which of all that ever had the name.
    pub uid: String,
    /// Which edition of it.
    pub resource_version: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    request: Text,
    #[serde(default)]
    signer_name: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    usages: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<IgnoredAny>,
    certificate: Option<IgnoredAny>,
}

impl Versioned for Object {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Object {
    /// Who is to sign it, if it waits for us: nobody has said yes or no.
    pub fn waits_for(&self) -> Option<Signer> {
        let waits = self.status.conditions.is_empty() && self.status.certificate.is_none();
        Signer::of(&self.spec.signer_name).filter(|_| waits)
    }

    /// Who asks, as the API server knows it.
    pub(super) fn user(&self) -> &str {
        &self.spec.username
    }

    /// Whether who asks is in `group`, as the API server knows it.
    pub(super) fn is_by(&self, group: &str) -> bool {
        self.spec.groups.iter().any(|known| known == group)
    }

    /// What is asked for. The bytes that are read are those that the API server keeps, the signer decodes and Go reads.
    pub(super) fn asked(&self, signer: Signer) -> Result<Asked, String> {
        let [first, second, more] = signer.usages();
        let usages: BTreeSet<&str> = self.spec.usages.iter().map(String::as_str).collect();
        let known = [
            BTreeSet::from([first, second]),
            BTreeSet::from([first, second, more]),
        ];
        if !known.contains(&usages) || usages.len() != self.spec.usages.len() {
            return Err(format!(
                "usages {:?} are not those of such a certificate",
                self.spec.usages
            ));
        }
        let Text(Some(text)) = &self.spec.request else {
            return Err(format!("its text has more than {MAX_TEXT} bytes"));
        };
        let pem = STANDARD
            .decode(text)
            .ok()
            .and_then(|pem| String::from_utf8(pem).ok());
        read(&pem.ok_or("its text is no base64 of text")?)
    }
}

/// What the PEM text of a request says, to every reader alike; otherwise it is refused.
pub fn read(pem: &str) -> Result<Asked, String> {
    der::read(&decode_canonical(LABEL, pem)?)
}

/// A text that is kept if it is short, and goes by if it is not.
#[derive(Debug, Clone)]
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Keeper)
    }
}

struct Keeper;

impl Visitor<'_> for Keeper {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text((text.len() <= MAX_TEXT).then(|| text.to_owned())))
    }
}

#[cfg(test)]
pub(super) mod tests;
