//! How machines join: the cluster's identity for everybody, bootstrap tokens, and what their holders may do (kubeadm's
//! phase bootstrap-token), but for the two bindings by which the controller manager approves kubelets' certificates: it
//! would give a token's holder the name of any node. [`crate::approver`] does that here.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::node_config::{BootstrapToken, NodeConfig};
use serde_json::{Value, json};

use super::{NODE_TOKEN_GROUP, config_map, rbac};

const PUBLIC: &str = "kube-public";

pub(super) fn objects(config: &NodeConfig, ca: &str) -> Vec<Value> {
    let tokens = [rbac::group(NODE_TOKEN_GROUP)];
    let mut objects = vec![
        rbac::cluster_role("kubeadm:get-nodes", &[rbac::rule("", &["nodes"], &["get"])]),
        rbac::cluster_role_binding("kubeadm:get-nodes", "kubeadm:get-nodes", &tokens),
        rbac::cluster_role_binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", &tokens),
        // Since 1.36.1 the API server's client certificate has no group: without this there are no logs and no exec.
        rbac::cluster_role_binding(
            "kubeadm:apiserver-kubelet-client",
            "system:kubelet-api-admin",
            &[rbac::user("kube-apiserver-kubelet-client")],
        ),
        cluster_info(config, ca),
    ];
    objects.extend(rbac::reads_config_map(
        PUBLIC,
        "kubeadm:bootstrap-signer-clusterinfo",
        "cluster-info",
        &[rbac::user("system:anonymous")],
    ));
    objects
}

/// The ConfigMap `kube-public/cluster-info`: where the cluster is and what its CA is (PEM). The controller manager adds
/// a signature with each token.
pub fn cluster_info(config: &NodeConfig, ca: &str) -> Value {
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {
            "certificate-authority-data": STANDARD.encode(ca),
            "server": config.cluster.endpoint.url(),
        }}],
        "contexts": null,
        "current-context": "",
        "users": null,
    });
    config_map(
        PUBLIC,
        "cluster-info",
        &json!({"kubeconfig": format!("{kubeconfig:#}\n")}),
    )
}

/// Whether a token is of no more use at the moment `now`.
pub(super) fn is_expired(token: &BootstrapToken, now: SystemTime) -> Result<bool> {
    let Some(expires) = &token.expires else {
        return Ok(false);
    };
    let expires: jiff::Timestamp = expires
        .parse()
        .context("secrets.bootstrapTokens: a token that expires at no time")?;
    Ok(SystemTime::from(expires) <= now)
}

/// The id of a bootstrap token and its Secret, which holds the token.
pub(super) fn token_secret(token: &BootstrapToken) -> Result<(String, Value)> {
    let (id, secret) = token
        .token
        .reveal()
        .split_once('.')
        .context("secrets.bootstrapTokens: a token without a dot")?;
    let is_id = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    ensure!(
        id.len() == 6 && secret.len() == 16 && (id.bytes().chain(secret.bytes())).all(is_id),
        "secrets.bootstrapTokens: a token that is not [a-z0-9]{{6}}.[a-z0-9]{{16}}"
    );
    let mut data = json!({
        "auth-extra-groups": STANDARD.encode(NODE_TOKEN_GROUP),
        "token-id": STANDARD.encode(id),
        "token-secret": STANDARD.encode(secret),
        "usage-bootstrap-authentication": STANDARD.encode("true"),
        "usage-bootstrap-signing": STANDARD.encode("true"),
    });
    if let Some(expires) = &token.expires {
        data["expiration"] = json!(STANDARD.encode(expires));
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "data": data,
    });
    Ok((id.to_owned(), secret))
}

#[cfg(test)]
mod tests {
    use kimage_roles::secret::Secret;

    use super::*;

    #[test]
    fn a_bad_token_is_refused_without_being_shown() {
        for bad in [
            "abcdef",
            "abcdef.short",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdeF",
        ] {
            let token = BootstrapToken {
                token: Secret::new(bad),
                expires: None,
            };
            let error = format!("{:#}", token_secret(&token).unwrap_err());
            assert!(!error.contains(bad), "{error}");
        }
    }
}
