//! What a machine is to its cluster, after metadata and NodeConfig were put together.

use std::net::{IpAddr, SocketAddr};

/// Port that every API server of kimage listens on.
pub const API_SERVER_PORT: u16 = 6443;

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Name of the Node, which is also the kernel's host name.
    pub name: String,
    /// Address that others reach this machine at.
    pub address: IpAddr,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `topology.kubernetes.io/region`.
    pub region: Option<String>,
    /// `spec.providerID` of the Node, where a cloud controller expects one.
    pub provider_id: Option<String>,
}

impl Machine {
    /// URL of this machine's own API server. What runs on a control plane uses this one and never the balancer: a
    /// balancer may refuse to lead a machine back to itself, and an outage of it must not stop a control plane.
    pub fn own_api_server(&self) -> String {
        format!("https://{}", SocketAddr::new(self.address, API_SERVER_PORT))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kimage_roles::node_config::NodeConfig;

    use super::Machine;

    /// A machine of tests.
    pub(crate) fn machine() -> Machine {
        Machine {
            name: "cp-1".into(),
            address: "10.0.0.5".parse().unwrap(),
            zone: Some("eu-1a".into()),
            region: Some("eu-1".into()),
            provider_id: Some("aws:///eu-1a/i-0123".into()),
        }
    }

    /// A NodeConfig of a stacked control plane.
    pub(crate) fn control_plane() -> NodeConfig {
        let document = r#"{"apiVersion": "kimage.dev/v1", "kind": "NodeConfig", "role": "control-plane",
            "cluster": {"name": "demo", "endpoint": "lb.example.com:6443", "apiNames": ["api.example.com"]},
            "etcd": {"layout": "stacked", "formation": {"static": [{"name": "cp-1", "address": "10.0.0.5"}]}},
            "secrets": {"etcdCa": {"certificate": "etcd", "key": "etcd-key"},
                "ca": {"certificate": "CA-PEM", "key": "ca-key"},
                "frontProxyCa": {"certificate": "front", "key": "front-key"},
                "serviceAccountKey": "sa-key",
                "encryptionKey": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                "bootstrapTokens": [{"token": "abcdef.0123456789abcdef", "expires": "2030-01-01T00:00:00Z"}]}}"#;
        serde_json::from_str(document).unwrap()
    }

    #[test]
    fn the_own_api_server_is_a_url_for_both_families() {
        let mut machine = machine();
        assert_eq!(machine.own_api_server(), "https://10.0.0.5:6443");
        machine.address = "fd00::5".parse().unwrap();
        assert_eq!(machine.own_api_server(), "https://[fd00::5]:6443");
    }
}
