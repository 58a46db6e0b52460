//! Rights of the services of hosts that make the pod network. They act as nodes ([`crate::pod_network`]).

use kimage_roles::node_config::{KubeProxy, NetworkPlugin, NetworkPolicy, NodeConfig};
use serde_json::Value;

use super::{NODES_GROUP, rbac};

pub(super) fn objects(config: &NodeConfig) -> Vec<Value> {
    let mut objects = Vec::new();
    if config.network.kube_proxy != KubeProxy::None {
        objects.push(rbac::cluster_role_binding(
            "kimage:node-proxier",
            "system:node-proxier",
            &[rbac::group(NODES_GROUP)],
        ));
    }
    if config.network.plugin == NetworkPlugin::Flannel {
        objects.extend(role("kimage:flannel", &flannel()));
    }
    if config.network.network_policy == NetworkPolicy::KubeRouter {
        objects.extend(role("kimage:kube-router", &kube_router()));
    }
    objects
}

fn role(name: &str, rules: &[Value]) -> [Value; 2] {
    [
        rbac::cluster_role(name, rules),
        rbac::cluster_role_binding(name, name, &[rbac::group(NODES_GROUP)]),
    ]
}

/// Rules of upstream's manifest (Documentation/kube-flannel.yml) but for pods, which only a flannel in a pod reads.
/// NodeRestriction still lets a node patch the status of itself only.
fn flannel() -> [Value; 2] {
    [
        rbac::rule("", &["nodes"], &["get", "list", "watch"]),
        rbac::rule("", &["nodes/status"], &["patch"]),
    ]
}

/// Rules of upstream's manifest (daemonset/kubeadm-kuberouter.yaml) that reading needs. The firewall writes nothing.
fn kube_router() -> [Value; 3] {
    let read = ["get", "list", "watch"];
    [
        rbac::rule(
            "",
            &["endpoints", "namespaces", "nodes", "pods", "services"],
            &read,
        ),
        rbac::rule("networking.k8s.io", &["networkpolicies"], &read),
        rbac::rule("discovery.k8s.io", &["endpointslices"], &read),
    ]
}
