//! Arguments of kube-controller-manager.

use kimage_roles::node_config::{Certificates, NodeConfig};

use super::{leader_election, tls};
use crate::arguments::Arguments;
use crate::layout::{CA_CERTIFICATE, CONTROLLER_MANAGER_KUBECONFIG};

/// CIS 1.3.1: finished pods that are kept before the oldest go.
const FINISHED_PODS: &str = "1000";

/// All arguments: kubeadm's, then what CIS and [`kimage_roles::node_config::Timing`] add.
pub fn arguments(config: &NodeConfig) -> Arguments {
    let cluster = &config.cluster;
    let kubeadm = Arguments::new()
        .flag("allocate-node-cidrs", "true")
        .flag("authentication-kubeconfig", CONTROLLER_MANAGER_KUBECONFIG)
        .flag("authorization-kubeconfig", CONTROLLER_MANAGER_KUBECONFIG)
        .flag("bind-address", "127.0.0.1")
        .flag("client-ca-file", CA_CERTIFICATE)
        .flag("cluster-cidr", cluster.pod_subnet.to_string())
        .flag("cluster-name", cluster.name.as_str())
        .flag("cluster-signing-cert-file", CA_CERTIFICATE)
        .pki("cluster-signing-key-file", "ca.key")
        .flag("controllers", "*,bootstrapsigner,tokencleaner")
        .flag("kubeconfig", CONTROLLER_MANAGER_KUBECONFIG)
        .flag("leader-elect", "true")
        .pki("requestheader-client-ca-file", "front-proxy-ca.crt")
        .flag("root-ca-file", CA_CERTIFICATE)
        .pki("service-account-private-key-file", "sa.key")
        .flag("service-cluster-ip-range", cluster.service_subnet.to_string())
        .flag("use-service-account-credentials", "true");
    let timing = &config.timing;
    tls(leader_election(
        signing_duration(kubeadm, &config.certificates),
        timing.leader_lease_seconds,
    ))
    .flag(
        "node-monitor-grace-period",
        format!("{}s", timing.node_grace_seconds),
    )
    .flag("profiling", "false")
    .flag("terminated-pod-gc-threshold", FINISHED_PODS)
}

/// How long certificates of kubelets live; the controller manager's own default is ours.
fn signing_duration(arguments: Arguments, certificates: &Certificates) -> Arguments {
    if *certificates == Certificates::default() {
        return arguments;
    }
    arguments.flag(
        "cluster-signing-duration",
        format!("{}s", certificates.lifetime_seconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::control_plane;

    #[test]
    fn kubelets_get_certificates_of_the_length_that_is_asked_for_and_kubeadms_by_default() {
        let mut config = control_plane();
        let flag = "--cluster-signing-duration";
        assert!(!arguments(&config).environment_file().contains(flag));
        config.certificates.lifetime_seconds = 3600;
        let file = arguments(&config).environment_file();
        assert!(file.contains("--cluster-signing-duration=3600s"), "{file}");
    }
}
