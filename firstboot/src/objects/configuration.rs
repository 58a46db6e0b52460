//! What kubeadm keeps of a cluster's configuration, and who may read it (phases upload-config and addon kube-proxy).

use kimage_roles::node_config::NodeConfig;
use serde_json::{Value, json};

use super::{KUBERNETES_VERSION, NODE_TOKEN_GROUP, NODES_GROUP, config_map, dns, rbac, service_account};
use crate::layout::{PKI, pki};
use crate::{kubelet, pod_network};

const NAMESPACE: &str = "kube-system";
/// Where kubeadm's kube-proxy DaemonSet mounts its ConfigMap.
const PROXY_KUBECONFIG: &str = "/var/lib/kube-proxy/kubeconfig.conf";

pub(super) fn objects(config: &NodeConfig, etcd: &[String]) -> Vec<Value> {
    let joining = [rbac::group(NODE_TOKEN_GROUP), rbac::group(NODES_GROUP)];
    let text = |value: &Value| format!("{value:#}\n");
    let kubeadm = json!({"ClusterConfiguration": text(&cluster_configuration(config, etcd))});
    let kubelet = json!({"kubelet": text(&kubelet::cluster_configuration(config))});
    let proxy = pod_network::kube_proxy::cluster_configuration(config, PROXY_KUBECONFIG);
    let proxy = json!({
        "config.conf": text(&proxy),
        "kubeconfig.conf": text(&proxy_kubeconfig(&config.cluster.endpoint.url())),
    });
    let mut objects = vec![config_map(NAMESPACE, "kubeadm-config", &kubeadm)];
    objects.extend(rbac::reads_config_map(
        NAMESPACE,
        "kubeadm:nodes-kubeadm-config",
        "kubeadm-config",
        &joining,
    ));
    objects.push(config_map(NAMESPACE, "kubelet-config", &kubelet));
    objects.extend(rbac::reads_config_map(
        NAMESPACE,
        "kubeadm:kubelet-config",
        "kubelet-config",
        &[rbac::group(NODES_GROUP), rbac::group(NODE_TOKEN_GROUP)],
    ));
    objects.push(service_account("kube-proxy"));
    objects.push(rbac::cluster_role_binding(
        "kubeadm:node-proxier",
        "system:node-proxier",
        &[rbac::service_account("kube-proxy")],
    ));
    objects.extend(rbac::reads_config_map(
        NAMESPACE,
        "kube-proxy",
        "kube-proxy",
        &[rbac::group(NODE_TOKEN_GROUP)],
    ));
    let mut proxy = config_map(NAMESPACE, "kube-proxy", &proxy);
    proxy["metadata"]["labels"] = json!({"app": "kube-proxy"});
    objects.push(proxy);
    objects
}

/// `ClusterConfiguration` (`kubeadm.k8s.io/v1beta4`) that describes this cluster to a real kubeadm. etcd is external
/// to it even where it is stacked: it has no static pods that kubeadm could find.
pub(super) fn cluster_configuration(config: &NodeConfig, etcd: &[String]) -> Value {
    let cluster = &config.cluster;
    let mut api_server = json!({});
    if !cluster.api_names.is_empty() {
        api_server["certSANs"] = json!(cluster.api_names);
    }
    json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "apiServer": api_server,
        "caCertificateValidityPeriod": "87600h0m0s",
        "certificateValidityPeriod": "8760h0m0s",
        "certificatesDir": PKI,
        "clusterName": cluster.name,
        "controlPlaneEndpoint": cluster.endpoint.to_string(),
        "controllerManager": {},
        "dns": {"imageTag": dns::tag()},
        "encryptionAlgorithm": "ECDSA-P256",
        "etcd": {"external": {
            "caFile": pki("etcd/ca.crt"),
            "certFile": pki("apiserver-etcd-client.crt"),
            "endpoints": etcd,
            "httpEndpoints": etcd,
            "keyFile": pki("apiserver-etcd-client.key"),
        }},
        "imageRepository": "registry.k8s.io",
        "kubernetesVersion": KUBERNETES_VERSION,
        "networking": {
            "dnsDomain": cluster.dns_domain,
            "podSubnet": cluster.pod_subnet.to_string(),
            "serviceSubnet": cluster.service_subnet.to_string(),
        },
        // kube-proxy is a service of the hosts.
        "proxy": {"disabled": true},
        "scheduler": {},
    })
}

/// kubeconfig of a kube-proxy in a pod.
fn proxy_kubeconfig(server: &str) -> Value {
    const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {
            "certificate-authority": format!("{ACCOUNT}/ca.crt"),
            "server": server,
        }}],
        "contexts": [{
            "name": "default",
            "context": {"cluster": "default", "namespace": "default", "user": "default"},
        }],
        "current-context": "default",
        "users": [{"name": "default", "user": {"tokenFile": format!("{ACCOUNT}/token")}}],
    })
}
