//! kube-proxy on nftables.

use std::net::{IpAddr, SocketAddr};

use kimage_roles::node_config::NodeConfig;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::layout::{KUBE_PROXY_CONFIGURATION, NODE_SERVICES_KUBECONFIG, environment};
use crate::machine::Machine;
use crate::rendered::RenderedFile;

/// Where kube-proxy says whether its rules are written and fresh (`healthzBindAddress`, all addresses unless told).
const HEALTH_PORT: u16 = 10256;

/// The URL of that on the machine at `address`.
pub fn health(address: IpAddr) -> String {
    format!("http://{}/healthz", SocketAddr::new(address, HEALTH_PORT))
}

pub(super) fn files(config: &NodeConfig, machine: &Machine) -> Vec<RenderedFile> {
    let mut configuration = cluster_configuration(config, NODE_SERVICES_KUBECONFIG);
    configuration["hostnameOverride"] = json!(machine.name);
    let arguments = Arguments::new().flag("config", KUBE_PROXY_CONFIGURATION);
    vec![
        RenderedFile::json(KUBE_PROXY_CONFIGURATION, &configuration),
        RenderedFile::private(environment("kube-proxy"), arguments.environment_file()),
    ]
}

/// `KubeProxyConfiguration`: kubeadm's (`componentconfigs/kubeproxy.go`), nftables, and no hand on the size of the
/// table of connections: the image's sysctls set it, and only the host of a network namespace could.
pub fn cluster_configuration(config: &NodeConfig, kubeconfig: &str) -> Value {
    let pods = config.cluster.pod_subnet;
    let any = match pods.network() {
        IpAddr::V4(_) => "0.0.0.0",
        IpAddr::V6(_) => "::",
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": any,
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": pods.to_string(),
        "conntrack": {"maxPerCore": 0, "min": 0},
        "mode": "nftables",
    })
}
