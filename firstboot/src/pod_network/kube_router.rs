//! kube-router as a firewall only: it enforces NetworkPolicy and touches neither routes nor Services.

use std::net::IpAddr;

use kimage_roles::node_config::NodeConfig;

use crate::arguments::Arguments;
use crate::layout::{NODE_SERVICES_KUBECONFIG, environment as environment_of};
use crate::machine::Machine;
use crate::rendered::RenderedFile;

pub(super) fn environment(config: &NodeConfig, machine: &Machine) -> RenderedFile {
    RenderedFile::private(
        environment_of("kube-router"),
        arguments(config, machine).environment_file(),
    )
}

/// Arguments (kube-router's docs/user-guide.md).
pub fn arguments(config: &NodeConfig, machine: &Machine) -> Arguments {
    let six = matches!(config.cluster.pod_subnet.network(), IpAddr::V6(_));
    Arguments::new()
        .flag("run-firewall", "true")
        .flag("run-router", "false")
        .flag("run-service-proxy", "false")
        .flag("run-loadbalancer", "false")
        .flag("enable-cni", "false")
        .flag("enable-ipv4", (!six).to_string())
        .flag("enable-ipv6", six.to_string())
        .flag("kubeconfig", NODE_SERVICES_KUBECONFIG)
        .flag("hostname-override", machine.name.as_str())
        .flag(
            "service-cluster-ip-range",
            config.cluster.service_subnet.to_string(),
        )
        // Its health server listens on all addresses; systemd knows whether it lives.
        .flag("health-port", "0")
}
