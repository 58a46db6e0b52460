//! Pod Security of namespaces.

use serde_json::{Value, json};

/// kube-system is exempt in the API server's configuration; the labels say so to whoever looks at the namespace, and
/// keep it true behind an API server that was configured otherwise.
pub(super) fn kube_system() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "kube-system", "labels": {
            "pod-security.kubernetes.io/enforce": "privileged",
            "pod-security.kubernetes.io/audit": "privileged",
            "pod-security.kubernetes.io/warn": "privileged",
        }},
    })
}
