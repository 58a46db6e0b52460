//! The network of pods, from services of the host: flannel connects nodes, kube-proxy makes Services work, kube-router
//! enforces NetworkPolicy.
//!
//! They act as the node (its kubelet's certificate), so nothing needs a token before the network works. The rights of
//! that are bound in [`crate::objects`]; a DaemonSet would leave a token with the same rights on every node.

use kimage_roles::node_config::{KubeProxy, NetworkPlugin, NetworkPolicy, NodeConfig};

use crate::kubelet::node_kubeconfig;
use crate::layout::NODE_SERVICES_KUBECONFIG;
use crate::machine::Machine;
use crate::rendered::RenderedFile;

pub mod flannel;
pub mod kube_proxy;
pub mod kube_router;

/// What is true of the cluster and not of its configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cluster {
    /// It has a DaemonSet `kube-system/kube-proxy`, which would fight with the baked kube-proxy over ports and rules.
    pub has_kube_proxy: bool,
}

/// Files of the services that run here; a service whose environment file is not among them stays quiet. `server` is
/// the API server they talk to: a control plane's own, the balancer on a worker.
pub fn files(config: &NodeConfig, machine: &Machine, server: &str, cluster: Cluster) -> Vec<RenderedFile> {
    let mut files = Vec::new();
    if config.network.plugin == NetworkPlugin::Flannel {
        files.extend(flannel::files(config, machine));
    }
    if runs_kube_proxy(config, cluster) {
        files.extend(kube_proxy::files(config, machine));
    }
    if config.network.network_policy == NetworkPolicy::KubeRouter {
        files.push(kube_router::environment(config, machine));
    }
    if !files.is_empty() {
        files.insert(0, node_kubeconfig(NODE_SERVICES_KUBECONFIG, server));
    }
    files
}

/// Whether the baked kube-proxy runs.
pub fn runs_kube_proxy(config: &NodeConfig, cluster: Cluster) -> bool {
    match config.network.kube_proxy {
        KubeProxy::Auto => !cluster.has_kube_proxy,
        KubeProxy::Systemd => true,
        KubeProxy::None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{control_plane, machine};

    fn names(config: &NodeConfig, has_kube_proxy: bool) -> Vec<String> {
        files(
            config,
            &machine(),
            "https://10.0.0.5:6443",
            Cluster { has_kube_proxy },
        )
        .into_iter()
        .map(|file| file.path)
        .collect()
    }

    #[test]
    fn each_service_has_files_exactly_when_it_is_chosen() {
        let mut config = control_plane();
        assert_eq!(
            names(&config, false),
            [
                "/etc/kubernetes/node-services.conf",
                "/etc/kube-flannel/net-conf.json",
                "/etc/cni/net.d/10-flannel.conflist",
                "/etc/kubernetes/flanneld.env",
                "/etc/kubernetes/kube-proxy.json",
                "/etc/kubernetes/kube-proxy.env",
                "/etc/kubernetes/kube-router.env",
            ]
        );
        assert!(
            !names(&config, true)
                .iter()
                .any(|name| name.contains("kube-proxy"))
        );
        config.network.plugin = NetworkPlugin::None;
        config.network.network_policy = NetworkPolicy::None;
        config.network.kube_proxy = KubeProxy::Systemd;
        assert_eq!(names(&config, true).len(), 3);
        config.network.kube_proxy = KubeProxy::None;
        assert!(names(&config, false).is_empty());
    }
}
