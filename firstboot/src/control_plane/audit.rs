//! What the audit log keeps: who did what, never the content of secrets, and not the machinery's own chatter.

use serde_json::{Value, json};

/// Where the policy is.
pub const PATH: &str = "/etc/kubernetes/audit-policy.json";
/// The log. It lies on the state partition and is rotated.
pub const LOG: &str = "/var/log/kubernetes/audit/audit.log";

/// `Policy` (`audit.k8s.io/v1`). The first rule that fits decides.
pub fn policy() -> Value {
    let core = |resources: &[&str]| json!({"group": "", "resources": resources});
    let group = |name: &str, resources: &[&str]| json!({"group": name, "resources": resources});
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {
                "level": "None",
                "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi*"],
            },
            {"level": "None", "resources": [
                core(&["events"]),
                group("events.k8s.io", &["events"]),
                group("coordination.k8s.io", &["leases"]),
            ]},
            // Bodies of these hold secrets or lead to them.
            {"level": "Metadata", "resources": [
                core(&["secrets", "configmaps", "serviceaccounts/token"]),
                group("authentication.k8s.io", &["tokenreviews"]),
                group("certificates.k8s.io", &["certificatesigningrequests"]),
            ]},
            {
                "level": "None",
                "userGroups": ["system:nodes"],
                "verbs": ["get", "list", "watch"],
            },
            {
                "level": "None",
                "users": [
                    "system:apiserver",
                    "system:kube-controller-manager",
                    "system:kube-scheduler",
                ],
                "verbs": ["get", "list", "watch"],
            },
            {
                "level": "None",
                "userGroups": ["system:serviceaccounts:kube-system"],
                "verbs": ["get", "list", "watch"],
            },
            // Heartbeats of nodes.
            {
                "level": "None",
                "userGroups": ["system:nodes"],
                "verbs": ["update", "patch"],
                "resources": [core(&["nodes/status", "pods/status"])],
            },
            {
                "level": "RequestResponse",
                "verbs": ["create", "update", "patch", "delete", "deletecollection"],
                "resources": [{"group": "rbac.authorization.k8s.io"}],
            },
            {"level": "Metadata"},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_before_the_one_for_secrets_hides_them_and_none_logs_their_bodies() {
        let policy = policy();
        let rules = policy["rules"].as_array().unwrap();
        let about_secrets = |rule: &&Value| {
            rule.to_string().contains("\"secrets\"")
                || (rule.get("resources").is_none() && rule.get("nonResourceURLs").is_none())
        };
        let first = rules.iter().find(about_secrets).unwrap();
        assert_eq!(first["level"], "Metadata");
        assert_eq!(rules.last().unwrap(), &json!({"level": "Metadata"}));
    }
}
