//! Who may ask without saying who they are: balancers about health, and machines that join about the cluster's
//! identity. Everybody else is refused before authorization is even asked.

use serde_json::{Value, json};

/// Where the configuration is.
pub const PATH: &str = "/etc/kubernetes/authentication.json";

/// The only paths that anonymous requests reach. The last is what kubeadm's discovery by token reads.
pub const ANONYMOUS_PATHS: [&str; 4] = [
    "/livez",
    "/readyz",
    "/healthz",
    "/api/v1/namespaces/kube-public/configmaps/cluster-info",
];

/// `AuthenticationConfiguration` (`apiserver.config.k8s.io/v1`, since Kubernetes 1.34).
pub fn configuration() -> Value {
    let conditions: Vec<Value> = ANONYMOUS_PATHS.iter().map(|path| json!({"path": path})).collect();
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "anonymous": {"enabled": true, "conditions": conditions},
    })
}
