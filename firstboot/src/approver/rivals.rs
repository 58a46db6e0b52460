//! Bindings of kubeadm, and of kimage before it approved clients itself, by which the controller manager approves the
//! certificate of any node for whoever holds a bootstrap token.

use serde_json::json;

use crate::kubernetes::{Api, ApiError, object};

/// The two ClusterRoleBindings. Who wants Kubernetes' own approver back binds its roles under other names.
const BINDINGS: [&str; 2] = [
    "kubeadm:node-autoapprove-bootstrap",
    "kubeadm:node-autoapprove-certificate-rotation",
];

/// Takes them away; says which there were. A control plane of an older version makes them again when it boots.
pub(super) fn remove(api: &Api) -> Result<Vec<&'static str>, ApiError> {
    let mut removed = Vec::new();
    for name in BINDINGS {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
        });
        let path = object(&binding).map_err(|what| api.broken(what))?;
        if api.delete(&path)? {
            removed.push(name);
        }
    }
    Ok(removed)
}
