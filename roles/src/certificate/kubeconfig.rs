//! The text of kubeconfigs. JSON is YAML, and kubectl, client-go and kubeadm read it as such.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::node_config::KeyPair;
use crate::secret::Secret;

/// How a client reaches a cluster and who it is there.
#[derive(Debug, Clone, Copy)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster: kubeadm's is `kubernetes`.
    pub cluster: &'a str,
    /// `https://host:port`.
    pub server: &'a str,
    /// PEM of the authorities that sign the server.
    pub ca_certificate: &'a str,
    /// Name of the user: the context is `<user>@<cluster>`.
    pub user: &'a str,
    /// How the user proves itself.
    pub credentials: Credentials<'a>,
}

/// How a user proves itself.
#[derive(Debug, Clone, Copy)]
pub enum Credentials<'a> {
    /// A client certificate inside the kubeconfig.
    Certificate(&'a KeyPair),
    /// A client certificate in files, which are read again when they change.
    Files {
        /// Path of the certificate.
        certificate: &'a str,
        /// Path of the key; may be the same.
        key: &'a str,
    },
    /// A bearer token: a bootstrap token.
    Token(&'a Secret),
}

impl Kubeconfig<'_> {
    /// The text, with a final newline. It holds the credentials.
    pub fn to_json(&self) -> Secret {
        let user = match self.credentials {
            Credentials::Certificate(pair) => json!({
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(pair.key.reveal()),
            }),
            Credentials::Files { certificate, key } => {
                json!({ "client-certificate": certificate, "client-key": key })
            }
            Credentials::Token(token) => json!({ "token": token.reveal() }),
        };
        let context = format!("{}@{}", self.user, self.cluster);
        let document: Value = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": self.cluster,
                "cluster": {
                    "certificate-authority-data": STANDARD.encode(self.ca_certificate),
                    "server": self.server,
                },
            }],
            "users": [{ "name": self.user, "user": user }],
            "contexts": [{
                "name": context,
                "context": { "cluster": self.cluster, "user": self.user },
            }],
            "current-context": context,
        });
        Secret::new(format!("{document:#}\n"))
    }
}

/// The client certificate and key inside a kubeconfig of [`Kubeconfig::to_json`]; `None` if it holds none.
pub fn certificate_in(text: &str) -> Option<KeyPair> {
    let document: Value = serde_json::from_str(text).ok()?;
    let user = document.pointer("/users/0/user")?;
    let data = |key: &str| {
        let bytes = STANDARD.decode(user[key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    Some(KeyPair {
        certificate: data("client-certificate-data")?,
        key: Secret::new(data("client-key-data")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_gives_back_the_certificate_that_was_put_in() {
        let pair = KeyPair {
            certificate: "CERTIFICATE".to_owned(),
            key: Secret::new("KEY"),
        };
        let config = |credentials| Kubeconfig {
            cluster: "prod",
            server: "https://lb:6443",
            ca_certificate: "CA",
            user: "admin",
            credentials,
        };
        let text = config(Credentials::Certificate(&pair)).to_json();
        assert_eq!(certificate_in(text.reveal()).as_ref(), Some(&pair));
        let token = Secret::new("token");
        let text = config(Credentials::Token(&token)).to_json();
        assert_eq!(certificate_in(text.reveal()), None);
        assert_eq!(certificate_in("{"), None);
    }
}
