//! Where objects are: the API's own rules, for the kinds that kimage makes.

use serde_json::Value;

/// Kinds, their plural in paths, and whether they live in a namespace.
const KINDS: &[(&str, &str, bool)] = &[
    ("CertificateSigningRequest", "certificatesigningrequests", false),
    ("ClusterRole", "clusterroles", false),
    ("ClusterRoleBinding", "clusterrolebindings", false),
    ("ConfigMap", "configmaps", true),
    ("DaemonSet", "daemonsets", true),
    ("Deployment", "deployments", true),
    ("Lease", "leases", true),
    ("Namespace", "namespaces", false),
    ("NetworkPolicy", "networkpolicies", true),
    ("Node", "nodes", false),
    ("Pod", "pods", true),
    ("PodDisruptionBudget", "poddisruptionbudgets", true),
    ("PriorityClass", "priorityclasses", false),
    ("Role", "roles", true),
    ("RoleBinding", "rolebindings", true),
    ("Secret", "secrets", true),
    ("Service", "services", true),
    ("ServiceAccount", "serviceaccounts", true),
];

/// Path of the collection that `object` belongs to: `/apis/apps/v1/namespaces/kube-system/deployments`.
pub fn collection(object: &Value) -> Result<String, String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").ok_or("an object without apiVersion")?;
    let kind = text("/kind").ok_or("an object without kind")?;
    let known = KINDS.iter().find(|(name, _, _)| *name == kind);
    let (_, plural, namespaced) = known.ok_or_else(|| format!("no path is known for kind {kind}"))?;
    let group = if version.contains('/') { "apis" } else { "api" };
    if *namespaced {
        let namespace = text("/metadata/namespace").ok_or_else(|| format!("a {kind} without namespace"))?;
        Ok(format!("/{group}/{version}/namespaces/{namespace}/{plural}"))
    } else {
        Ok(format!("/{group}/{version}/{plural}"))
    }
}

/// Path of `object` itself. Names with a colon (`kubeadm:node-proxier`) are escaped.
pub fn object(object: &Value) -> Result<String, String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.ok_or("an object without name")?.replace(':', "%3A");
    Ok(format!("{}/{name}", collection(object)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_where_the_api_keeps_them() {
        let of = |version: &str, kind: &str, namespace: Option<&str>| {
            let metadata = match namespace {
                Some(namespace) => json!({"name": "a:b", "namespace": namespace}),
                None => json!({"name": "a:b"}),
            };
            object(&json!({"apiVersion": version, "kind": kind, "metadata": metadata}))
        };
        assert_eq!(
            of("v1", "ConfigMap", Some("kube-system")).unwrap(),
            "/api/v1/namespaces/kube-system/configmaps/a%3Ab"
        );
        assert_eq!(
            of("rbac.authorization.k8s.io/v1", "ClusterRole", None).unwrap(),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/a%3Ab"
        );
        assert!(of("v1", "ConfigMap", None).is_err());
        assert!(of("v1", "Unheard", None).is_err());
    }
}
