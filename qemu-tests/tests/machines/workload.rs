//! What runs in the cluster: the only images that machines bring are CoreDNS and pause, so a server that answers
//! questions about one name stands on one node, and a client that passes questions on stands on the other.

use kimage_firstboot::objects::DNS_IMAGE;
use serde_json::{Value, json};

/// The name that the server knows.
pub(crate) const NAME: &str = "who.bench.test";
/// What it says about it.
pub(crate) const WORDS: &str = "the server on the other node";
/// The client's port.
pub(crate) const PORT: u16 = 5353;

/// A Deployment of one server, which goes where no taint is, and its Service.
pub(crate) fn server() -> Vec<Value> {
    let corefile = format!(
        ".:{PORT} {{\n  health :8080\n  log\n  errors\n  template IN TXT {NAME} {{\n    answer \"{{{{ .Name }}}} 0 IN TXT \\\"{WORDS}\\\"\"\n  }}\n}}\n"
    );
    let labels = json!({"app": "server"});
    vec![
        configuration("server", &corefile),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "server", "namespace": "default"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod("server")},
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "default"},
            "spec": {"selector": labels, "ports": [{"port": 53, "protocol": "TCP", "targetPort": PORT}]},
        }),
    ]
}

/// A pod on `node` that asks the Service at `service` about [`NAME`] and the cluster's DNS about all else.
pub(crate) fn client(node: &str, service: &str, dns: &str) -> Vec<Value> {
    // Without health checks: an address that was blocked is asked again at once. No connection is kept: a policy is about
    // new ones.
    let forward = |to: &str| {
        format!("errors\n  forward . {to} {{\n    force_tcp\n    max_fails 0\n    expire 100ms\n  }}\n}}\n")
    };
    let corefile = format!(
        "{NAME}:{PORT} {{\n  {}.:{PORT} {{\n  health :8080\n  {}",
        forward(service),
        forward(dns)
    );
    let mut spec = pod("client");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    spec["tolerations"] = json!([{"operator": "Exists"}]);
    vec![
        configuration("client", &corefile),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "client", "namespace": "default", "labels": {"app": "client"}},
            "spec": spec,
        }),
    ]
}

/// Nobody may talk to the server.
pub(crate) fn nobody_may() -> Value {
    policy("nobody", &json!([]))
}

/// The client may.
pub(crate) fn the_client_may() -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    policy(
        "client",
        &json!([{"from": from, "ports": [{"port": PORT, "protocol": "TCP"}]}]),
    )
}

fn policy(name: &str, ingress: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    })
}

fn configuration(name: &str, corefile: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"},
        "data": {"Corefile": corefile},
    })
}

/// A pod that even the restricted profile of Pod Security lets in.
fn pod(configuration: &str) -> Value {
    json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "coredns",
            "image": DNS_IMAGE,
            "imagePullPolicy": "Never",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 5},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
            },
            "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns", "readOnly": true}],
        }],
        "volumes": [{"name": "configuration", "configMap": {"name": configuration}}],
    })
}
