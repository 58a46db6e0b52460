//! Roles and who has them.

use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const VERSION: &str = "rbac.authorization.k8s.io/v1";

/// Everybody in a group.
pub(super) fn group(name: &str) -> Value {
    json!({"apiGroup": GROUP, "kind": "Group", "name": name})
}

/// One user, who may be a certificate's common name.
pub(super) fn user(name: &str) -> Value {
    json!({"apiGroup": GROUP, "kind": "User", "name": name})
}

/// A service account of kube-system.
pub(super) fn service_account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
}

/// What may be done with resources of one API group.
pub(super) fn rule(api_group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [api_group], "resources": resources, "verbs": verbs})
}

/// Rights in the whole cluster.
pub(super) fn cluster_role(name: &str, rules: &[Value]) -> Value {
    json!({"apiVersion": VERSION, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
}

/// Gives the rights of a ClusterRole.
pub(super) fn cluster_role_binding(name: &str, role: &str, subjects: &[Value]) -> Value {
    json!({
        "apiVersion": VERSION,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// The right to read one ConfigMap, and who has it: a Role and a RoleBinding of one name.
pub(super) fn reads_config_map(
    namespace: &str,
    name: &str,
    config_map: &str,
    subjects: &[Value],
) -> [Value; 2] {
    let metadata = json!({"name": name, "namespace": namespace});
    let mut rule = rule("", &["configmaps"], &["get"]);
    rule["resourceNames"] = json!([config_map]);
    [
        json!({"apiVersion": VERSION, "kind": "Role", "metadata": metadata, "rules": [rule]}),
        json!({
            "apiVersion": VERSION,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": name},
            "subjects": subjects,
        }),
    ]
}
