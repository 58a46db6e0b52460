//! `etcd.yaml`, written as JSON (which YAML is): kubeadm's flags of etcd, TLS from 1.2 with AEAD suites, the NodeConfig's
//! timing, and where this start listens.

use std::path::PathBuf;

use kimage_roles::node_config::Timing;
use serde_json::{Map, Value, json};

use super::Identity;
use super::world::Launch;

/// Cipher suites of TLS 1.2, all AEAD with forward secrecy; TLS 1.3 has no others. Leaf keys are ECDSA.
const CIPHER_SUITES: [&str; 3] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// What doesn't change from start to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who this machine is.
    pub identity: Identity,
    /// `https://127.0.0.1:2379`.
    pub loopback_client_url: String,
    /// `https://127.0.0.1:2380`: where a seed listens for peers that it doesn't have.
    pub loopback_peer_url: String,
    /// `http://127.0.0.1:2381`.
    pub metrics_url: String,
    /// `/var/lib/etcd`.
    pub data: PathBuf,
    /// Folder with kubeadm's names: `ca.crt`, `server.crt`, `server.key`, `peer.crt`, `peer.key`.
    pub certificates: PathBuf,
    /// Name of the cluster: the token of a cluster of a fixed list.
    pub cluster: String,
    /// Heartbeat and election timeout.
    pub timing: Timing,
}

/// The file for a start as `launch` says.
pub fn render(settings: &Settings, launch: &Launch) -> String {
    let mut file = common(settings);
    let Identity {
        name,
        peer_url,
        client_url,
        ..
    } = &settings.identity;
    let (clients, peers) = match launch {
        Launch::Seed { .. } => (settings.loopback_client_url.clone(), &settings.loopback_peer_url),
        _ if settings.loopback_client_url == *client_url => (client_url.clone(), peer_url),
        _ => (format!("{},{client_url}", settings.loopback_client_url), peer_url),
    };
    file.insert("listen-client-urls".to_owned(), json!(clients));
    file.insert("listen-peer-urls".to_owned(), json!(peers));
    let own = format!("{name}={peer_url}");
    let (members, token, state) = match launch {
        Launch::Seed { token } => (own, token, "new"),
        Launch::Listed(list) => {
            let members: Vec<String> = list
                .iter()
                .map(|peer| format!("{}={}", peer.name, peer.peer_url))
                .collect();
            (members.join(","), &settings.cluster, "new")
        }
        Launch::Join(list) => {
            let members: Vec<String> = list.iter().map(|(name, url)| format!("{name}={url}")).collect();
            (members.join(","), &settings.cluster, "existing")
        }
        // Ignored: there is a log. Should it vanish in this moment, `existing` forms nothing.
        Launch::Resume => (own, &settings.cluster, "existing"),
    };
    file.insert("initial-cluster".to_owned(), json!(members));
    file.insert("initial-cluster-token".to_owned(), json!(token));
    file.insert("initial-cluster-state".to_owned(), json!(state));
    format!("{:#}\n", Value::Object(file))
}

fn common(settings: &Settings) -> Map<String, Value> {
    let path = |name: &str| settings.certificates.join(name).to_string_lossy().into_owned();
    let tls = |side: &str| {
        json!({
            "cert-file": path(&format!("{side}.crt")),
            "key-file": path(&format!("{side}.key")),
            "client-cert-auth": true,
            "trusted-ca-file": path("ca.crt"),
        })
    };
    let Identity {
        name,
        peer_url,
        client_url,
        ..
    } = &settings.identity;
    let file = json!({
        "name": name,
        "data-dir": settings.data.to_string_lossy(),
        "advertise-client-urls": client_url,
        "initial-advertise-peer-urls": peer_url,
        "listen-metrics-urls": settings.metrics_url,
        "client-transport-security": tls("server"),
        "peer-transport-security": tls("peer"),
        "tls-min-version": "TLS1.2",
        "cipher-suites": CIPHER_SUITES,
        "snapshot-count": 10000,
        "heartbeat-interval": settings.timing.etcd_heartbeat_milliseconds,
        "election-timeout": settings.timing.etcd_election_milliseconds,
        "strict-reconfig-check": true,
        "feature-gates": "InitialCorruptCheck=true",
        // Nanoseconds.
        "watch-progress-notify-interval": 5_000_000_000_u64,
        "logger": "zap",
        "log-level": "info",
    });
    match file {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Peer;
    use super::*;

    pub(in crate::etcd) fn settings() -> Settings {
        Settings {
            identity: Identity {
                instance: "i-1".to_owned(),
                name: "etcd-1".to_owned(),
                peer_url: "https://10.0.0.1:2380".to_owned(),
                client_url: "https://10.0.0.1:2379".to_owned(),
            },
            loopback_client_url: "https://127.0.0.1:2379".to_owned(),
            loopback_peer_url: "https://127.0.0.1:2380".to_owned(),
            metrics_url: "http://127.0.0.1:2381".to_owned(),
            data: "/var/lib/etcd".into(),
            certificates: "/etc/kubernetes/pki/etcd".into(),
            cluster: "prod".to_owned(),
            timing: Timing::default(),
        }
    }

    fn read(launch: &Launch) -> Value {
        serde_json::from_str(&render(&settings(), launch)).unwrap()
    }

    #[test]
    fn a_seed_listens_on_loopback_only_and_says_where_it_will_be() {
        let file = read(&Launch::Seed {
            token: "t".to_owned(),
        });
        assert_eq!(file["listen-client-urls"], "https://127.0.0.1:2379");
        assert_eq!(file["listen-peer-urls"], "https://127.0.0.1:2380");
        assert_eq!(file["initial-advertise-peer-urls"], "https://10.0.0.1:2380");
        assert_eq!(file["initial-cluster"], "etcd-1=https://10.0.0.1:2380");
        assert_eq!(
            (&file["initial-cluster-token"], &file["initial-cluster-state"]),
            (&json!("t"), &json!("new"))
        );
    }

    #[test]
    fn only_a_seed_and_the_list_make_new_clusters() {
        let peer = Peer {
            name: "etcd-1".to_owned(),
            peer_url: "https://10.0.0.1:2380".to_owned(),
            client_url: "https://10.0.0.1:2379".to_owned(),
        };
        assert_eq!(read(&Launch::Listed(vec![peer]))["initial-cluster-state"], "new");
        for launch in [
            Launch::Resume,
            Launch::Join(vec![("a".to_owned(), "https://10.0.0.1:2380".to_owned())]),
        ] {
            let file = read(&launch);
            assert_eq!(file["initial-cluster-state"], "existing");
            assert_eq!(
                file["listen-client-urls"],
                "https://127.0.0.1:2379,https://10.0.0.1:2379"
            );
        }
    }
}
