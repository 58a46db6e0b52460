//! flannel with subnets from Kubernetes (`--kube-subnet-mgr`), and the CNI configuration that uses it.

use std::net::IpAddr;

use kimage_roles::node_config::{FlannelBackend, NodeConfig};
use serde_json::{Value, json};

use crate::arguments::{Arguments, assignment};
use crate::layout::{NODE_SERVICES_KUBECONFIG, environment};
use crate::machine::Machine;
use crate::rendered::RenderedFile;

const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";
const CNI: &str = "/etc/cni/net.d/10-flannel.conflist";

pub(super) fn files(config: &NodeConfig, machine: &Machine) -> Vec<RenderedFile> {
    let mut service = arguments(machine).environment_file();
    service.push_str(&assignment("NODE_NAME", &machine.name));
    vec![
        RenderedFile::json(NET_CONF, &net_conf(config)),
        RenderedFile::json(CNI, &cni()),
        RenderedFile::private(environment("flanneld"), service),
    ]
}

/// flannel's own configuration (its Documentation/configuration.md).
fn net_conf(config: &NodeConfig) -> Value {
    let backend = match config.network.backend {
        FlannelBackend::Vxlan => "vxlan",
        FlannelBackend::HostGw => "host-gw",
    };
    let pods = config.cluster.pod_subnet;
    // With nftables it programs the kernel once; with iptables it would call programs every five seconds.
    match pods.network() {
        IpAddr::V4(_) => {
            json!({"Network": pods.to_string(), "Backend": {"Type": backend}, "EnableNFTables": true})
        }
        IpAddr::V6(_) => json!({
            "EnableIPv4": false,
            "EnableIPv6": true,
            "IPv6Network": pods.to_string(),
            "Backend": {"Type": backend},
            "EnableNFTables": true,
        }),
    }
}

/// Upstream's list with `bandwidth` besides. CNI 1.1 has STATUS: the node stays NotReady until flanneld has its subnet.
fn cni() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
}

fn arguments(machine: &Machine) -> Arguments {
    Arguments::new()
        .flag("kube-subnet-mgr", "true")
        .flag("kubeconfig-file", NODE_SERVICES_KUBECONFIG)
        .flag("ip-masq", "true")
        // The address that others use, whatever port has the default route.
        .flag("iface", machine.address.to_string())
}
