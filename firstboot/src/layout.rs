//! Where things are on a machine. All but kimage's own names are kubeadm's (`cmd/kubeadm/app/constants`), because
//! documents and tools look there.

/// Certificates and keys.
pub const PKI: &str = "/etc/kubernetes/pki";
/// The cluster's CA.
pub const CA_CERTIFICATE: &str = "/etc/kubernetes/pki/ca.crt";
/// kubeconfig of the kubelet.
pub const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
/// kubeconfig that a kubelet has before it has a certificate; kubeadm's kubelets start with it, ours never need it.
pub const BOOTSTRAP_KUBECONFIG: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
/// kubeconfig of kube-controller-manager.
pub const CONTROLLER_MANAGER_KUBECONFIG: &str = "/etc/kubernetes/controller-manager.conf";
/// kubeconfig of kube-scheduler.
pub const SCHEDULER_KUBECONFIG: &str = "/etc/kubernetes/scheduler.conf";
/// Certificate and key that the kubelet renews, in one PEM file.
pub const KUBELET_CLIENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
/// Certificate and key that the kubelet serves with, and renews.
pub const KUBELET_SERVER: &str = "/var/lib/kubelet/pki/kubelet-server-current.pem";
/// Where the kubelet keeps its certificates.
pub const KUBELET_PKI: &str = "/var/lib/kubelet/pki";
/// Configuration of the kubelet.
pub const KUBELET_CONFIGURATION: &str = "/var/lib/kubelet/config.yaml";
/// What of the kubelet's configuration is this machine's own.
pub const KUBELET_INSTANCE: &str = "/var/lib/kubelet/instance-config.yaml";
/// Flags of the kubelet that kubeadm decides.
pub const KUBELET_FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";

/// kubeconfig of kube-proxy, flannel and kube-router as services of the host.
pub const NODE_SERVICES_KUBECONFIG: &str = "/etc/kubernetes/node-services.conf";
/// Configuration of kube-proxy.
pub const KUBE_PROXY_CONFIGURATION: &str = "/etc/kubernetes/kube-proxy.json";
/// The newest lists of instances that this machine has seen ([`crate::inventory`]).
pub const SEEN_LISTS: &str = "/var/lib/kimage/inventory.json";
/// Socket of containerd.
pub const CONTAINERD: &str = "unix:///run/containerd/containerd.sock";

/// File in [`PKI`].
pub(crate) fn pki(name: &str) -> String {
    format!("{PKI}/{name}")
}

/// Environment of the unit `name.service`.
pub(crate) fn environment(name: &str) -> String {
    format!("/etc/kubernetes/{name}.env")
}
