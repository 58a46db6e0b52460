//! Arguments of kube-scheduler.

use kimage_roles::node_config::NodeConfig;

use super::{leader_election, tls};
use crate::arguments::Arguments;
use crate::layout::SCHEDULER_KUBECONFIG;

/// All arguments: kubeadm's, then what CIS and [`kimage_roles::node_config::Timing`] add.
pub fn arguments(config: &NodeConfig) -> Arguments {
    let kubeadm = Arguments::new()
        .flag("authentication-kubeconfig", SCHEDULER_KUBECONFIG)
        .flag("authorization-kubeconfig", SCHEDULER_KUBECONFIG)
        .flag("bind-address", "127.0.0.1")
        .flag("kubeconfig", SCHEDULER_KUBECONFIG)
        .flag("leader-elect", "true");
    tls(leader_election(kubeadm, config.timing.leader_lease_seconds)).flag("profiling", "false")
}
