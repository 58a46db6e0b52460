//! Who a control plane is to others: its leaf certificates and the kubeconfigs of its own clients, by file.

use kimage_roles::certificate::Profile;
use kimage_roles::node_config::{EtcdLayout, NodeConfig};

use crate::layout::{CONTROLLER_MANAGER_KUBECONFIG, KUBELET_KUBECONFIG, SCHEDULER_KUBECONFIG, pki};
use crate::machine::Machine;

/// kubeconfig of administrators.
pub const ADMIN_KUBECONFIG: &str = "/etc/kubernetes/admin.conf";

/// Whose key signs a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// `secrets.ca`.
    Kubernetes,
    /// `secrets.frontProxyCa`.
    FrontProxy,
    /// `secrets.etcdCa`.
    Etcd,
}

/// A certificate and its key, in two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Path of the certificate, without `.crt`; the key's ends in `.key`.
    pub path: String,
    /// Who signs it.
    pub signer: Signer,
    /// What it says.
    pub profile: Profile,
}

/// Leaf certificates below `/etc/kubernetes/pki`, named as kubeadm names them.
pub fn certificates(config: &NodeConfig, machine: &Machine) -> Vec<Leaf> {
    let leaf = |name: &str, signer: Signer, profile: Profile| Leaf {
        path: pki(name),
        signer,
        profile,
    };
    let (name, address) = (machine.name.as_str(), machine.address);
    let mut leaves = vec![
        leaf(
            "apiserver",
            Signer::Kubernetes,
            Profile::api_server(&config.cluster, name, address),
        ),
        leaf(
            "apiserver-kubelet-client",
            Signer::Kubernetes,
            Profile::api_server_kubelet_client(),
        ),
        leaf(
            "front-proxy-client",
            Signer::FrontProxy,
            Profile::front_proxy_client(),
        ),
        leaf(
            "apiserver-etcd-client",
            Signer::Etcd,
            Profile::api_server_etcd_client(),
        ),
    ];
    let stacked = |etcd: &kimage_roles::node_config::Etcd| etcd.layout == EtcdLayout::Stacked;
    if config.etcd.as_ref().is_some_and(stacked) {
        leaves.extend(etcd_certificates(machine));
    }
    leaves
}

/// Leaf certificates of a member of etcd.
pub fn etcd_certificates(machine: &Machine) -> [Leaf; 3] {
    let leaf = |name: &str, profile: Profile| Leaf {
        path: pki(name),
        signer: Signer::Etcd,
        profile,
    };
    let (name, address) = (machine.name.as_str(), machine.address);
    [
        leaf("etcd/server", Profile::etcd_server(name, address)),
        leaf("etcd/peer", Profile::etcd_peer(name, address)),
        leaf("etcd/healthcheck-client", Profile::etcd_healthcheck_client()),
    ]
}

/// A kubeconfig with a client certificate in it, signed by `secrets.ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Path of the kubeconfig.
    pub path: &'static str,
    /// Where it leads.
    pub server: String,
    /// Name of the cluster in it; the user's name in it is the certificate's common name.
    pub cluster: String,
    /// Who it is.
    pub profile: Profile,
}

/// kubeconfigs of a control plane: all lead to its own API server. `super-admin.conf` is not among them: whoever
/// applies the first objects has that certificate in memory only.
pub fn kubeconfigs(config: &NodeConfig, machine: &Machine) -> Vec<Client> {
    let client = |path: &'static str, profile: Profile| Client {
        path,
        server: machine.own_api_server(),
        cluster: config.cluster.name.clone(),
        profile,
    };
    vec![
        client(ADMIN_KUBECONFIG, Profile::admin()),
        client(CONTROLLER_MANAGER_KUBECONFIG, Profile::controller_manager()),
        client(SCHEDULER_KUBECONFIG, Profile::scheduler()),
        // What a kubelet starts with; it renews its certificate in a file of its own.
        client(KUBELET_KUBECONFIG, Profile::kubelet_client(&machine.name)),
    ]
}
