//! kube-router as a firewall only: it enforces NetworkPolicy and touches neither routes nor Services.
//!
//! v2.1.0 of 2024 is the newest that Go's module proxy has. Its published flaws are in the Service proxy
//! (GHSA-phqm-jgc3-qf8g, GO-2026-4724: addresses of Services are not checked) and in the router (GHSA-v5mh-h5hx-7v92: pods
//! reach GoBGP's port; and those of GoBGP itself), neither of which runs here. Later releases have had worse for a
//! firewall: 2.6.1 stopped updating the sets of IPv6 policies.
//!
//! sigs.k8s.io/kube-network-policies (v0.8.0 there) is better kept and has been weighed. It decides each new connection in
//! its own process, over a queue of the kernel: when it dies, pods with policies get no new connections, or everything with
//! `--fail-open`; when it is stopped in order, as by a restart, it removes its rules and all is open until it is back; and
//! it needs a kernel with `nft_queue`. kube-router's rules stay in the kernel and go on as they are in all three cases,
//! which is worth more to a node than what is new in the other.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{control_plane, machine};

    #[test]
    fn nothing_runs_but_the_firewall_and_nobody_listens() {
        let text = environment(&control_plane(), &machine()).content;
        for flag in [
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            "--run-loadbalancer=false",
            "--health-port=0",
        ] {
            assert!(text.contains(flag), "{flag}: {text}");
        }
    }
}
