//! The real kubeadm, and what it would write on a machine.

use std::path::Path;

use kimage_firstboot::machine::Machine;
use kimage_qemu_tests::kubeadm::Kubeadm;
use kimage_roles::node_config::NodeConfig;
use serde_json::Value;

/// The machine that both sides make files for.
pub(crate) fn machine() -> Machine {
    Machine {
        name: "cp-1".into(),
        address: "10.0.0.5".parse().unwrap(),
        zone: Some("eu-1a".into()),
        region: Some("eu-1".into()),
        provider_id: Some("aws:///eu-1a/i-0123".into()),
    }
}

/// Token that both sides put into the cluster.
pub(crate) const TOKEN: &str = "abcdef.0123456789abcdef";

/// NodeConfig of a stacked control plane. The authorities are `pem`s of the caller.
pub(crate) fn node_config(secrets: &Value) -> NodeConfig {
    let document = serde_json::json!({
        "apiVersion": "kimage.dev/v1",
        "kind": "NodeConfig",
        "role": "control-plane",
        "cluster": {"name": "demo", "endpoint": "lb.example.com:6443", "apiNames": ["api.example.com"]},
        "etcd": {"layout": "stacked", "formation": {"static": [{"name": "cp-1", "address": "10.0.0.5"}]}},
        "secrets": secrets,
    });
    NodeConfig::from_yaml(document.to_string().as_bytes()).unwrap()
}

/// The same as kubeadm's configuration; `etcd` is its section of that name.
fn configuration(etcd: &str) -> String {
    format!(
        r#"apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: 10.0.0.5, bindPort: 6443}}
nodeRegistration: {{name: cp-1, criSocket: "unix:///run/containerd/containerd.sock"}}
bootstrapTokens: [{{token: {TOKEN}, ttl: 0s}}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: demo
controlPlaneEndpoint: lb.example.com:6443
kubernetesVersion: v1.36.3
encryptionAlgorithm: ECDSA-P256
networking: {{podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/12, dnsDomain: cluster.local}}
apiServer: {{certSANs: [api.example.com]}}
dns: {{imageTag: v1.14.7}}
etcd: {etcd}
"#
    )
}

/// kubeadm for the machine and cluster above; `etcd` is `{local: {}}` or `{external: ...}`.
pub(crate) fn kubeadm(etcd: &str) -> Kubeadm {
    Kubeadm::new(&configuration(etcd)).unwrap()
}

/// The same, after a dry run of all phases that write files.
pub(crate) fn kubeadm_with_files() -> Kubeadm {
    let kubeadm = kubeadm("{local: {}}");
    for phase in [
        "certs all",
        "kubeconfig all",
        "control-plane all",
        "kubelet-start",
    ] {
        kubeadm.phase(phase, &["--dry-run"]).unwrap();
    }
    kubeadm
}

/// A YAML file.
pub(crate) fn yaml(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}
