//! Admission: plug-ins beyond the API server's own defaults, and the configuration of those that want one.

use serde_json::{Value, json};

/// Where the configuration is.
pub const PATH: &str = "/etc/kubernetes/admission.json";

/// NodeRestriction is kubeadm's; CIS 1.2.9 asks for EventRateLimit, CIS 1.2.3 for DenyServiceExternalIPs.
pub const PLUGINS: [&str; 3] = ["NodeRestriction", "EventRateLimit", "DenyServiceExternalIPs"];

/// `AdmissionConfiguration` (`apiserver.config.k8s.io/v1`) of PodSecurity and EventRateLimit.
pub fn configuration() -> Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [
            {"name": "PodSecurity", "configuration": pod_security()},
            {"name": "EventRateLimit", "configuration": event_rate_limit()},
        ],
    })
}

/// Baseline is enforced, restricted is warned about and audited; what runs the cluster itself is exempt.
fn pod_security() -> Value {
    json!({
        "apiVersion": "pod-security.admission.config.k8s.io/v1",
        "kind": "PodSecurityConfiguration",
        "defaults": {
            "enforce": "baseline", "enforce-version": "latest",
            "audit": "restricted", "audit-version": "latest",
            "warn": "restricted", "warn-version": "latest",
        },
        "exemptions": {"usernames": [], "runtimeClasses": [], "namespaces": ["kube-system"]},
    })
}

/// Rates that a large healthy cluster stays far below; a controller in a loop does not.
fn event_rate_limit() -> Value {
    json!({
        "apiVersion": "eventratelimit.admission.k8s.io/v1alpha1",
        "kind": "Configuration",
        "limits": [
            {"type": "Server", "qps": 500, "burst": 2000},
            {"type": "Namespace", "qps": 100, "burst": 500, "cacheSize": 4096},
            {"type": "SourceAndObject", "qps": 10, "burst": 50, "cacheSize": 4096},
        ],
    })
}
