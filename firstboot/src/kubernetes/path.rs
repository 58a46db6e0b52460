//! Where objects are: the API's own rules, for the kinds that kimage makes. Whatever stands in a path or a query went
//! through [`segment`]: a name from outside can't lead to another path.

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
        let namespace = segment(namespace);
        Ok(format!("/{group}/{version}/namespaces/{namespace}/{plural}"))
    } else {
        Ok(format!("/{group}/{version}/{plural}"))
    }
}

/// Path of `object` itself.
pub fn object(object: &Value) -> Result<String, String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = segment(name.ok_or("an object without name")?);
    Ok(format!("{}/{name}", collection(object)?))
}

/// `text` as one segment of a path or one value of a query (RFC 3986): everything but unreserved characters is
/// percent-encoded, and a text of dots only, which clients and servers would take for a step in the tree, is so too.
pub fn segment(text: &str) -> String {
    let steps = text.bytes().all(|byte| byte == b'.');
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || byte == b'.' && !steps;
        if plain {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_leaves_its_segment() {
        for (text, encoded) in [
            ("w1.example.com", "w1.example.com"),
            ("a b", "a%20b"),
            ("..", "%2E%2E"),
            ("../x", "..%2Fx"),
            ("%2F", "%252F"),
            ("ä#", "%C3%A4%23"),
            ("", ""),
        ] {
            assert_eq!(segment(text), encoded);
        }
    }

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
        let hostile = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1?watch=true/../x"}});
        assert_eq!(
            object(&hostile).unwrap(),
            "/api/v1/nodes/w1%3Fwatch%3Dtrue%2F..%2Fx"
        );
        assert!(of("v1", "ConfigMap", None).is_err());
        assert!(of("v1", "Unheard", None).is_err());
    }
}
