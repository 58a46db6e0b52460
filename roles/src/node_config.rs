//! `kimage.dev/v1 NodeConfig`: the one document that a machine gets from its platform's user-data. YAML 1.2 (so JSON
//! too), strict: an unknown key, a wrong type or an impossible value is refused with the path of the key.
//!
//! One document serves all machines of a group: what differs from machine to machine (name, address, zone, instance
//! id) comes from the platform, and a key of `node` overrides it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

mod check;
mod network;
mod read;

pub use check::{is_token, is_url};
pub use network::{Cidr, Endpoint, is_dns_label, is_dns_name};
pub use read::{MAX_NODE_CONFIG, NodeConfigError};

/// `apiVersion` of the document.
pub const API_VERSION: &str = "kimage.dev/v1";
/// `kind` of the document.
pub const KIND: &str = "NodeConfig";

/// The whole document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeConfig {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Must be the image's role.
    pub role: NodeRole,
    /// What all machines of the cluster share.
    pub cluster: Cluster,
    /// What the platform can't know or says wrongly.
    #[serde(default)]
    pub node: Node,
    /// Pod network.
    #[serde(default)]
    pub network: Network,
    /// Where etcd is and how its members find each other. Required on `etcd` and `control-plane`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<Etcd>,
    /// How a kubelet proves itself. Required on `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// Certificate authorities and keys. Required on `etcd` and `control-plane`, refused on `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
    /// Who says which instances are gone. Without it no member of etcd is ever removed by kimage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// Knobs for slow machines and networks.
    #[serde(default)]
    pub timing: Timing,
    /// Certificates that the cluster issues. The same on all machines of the cluster.
    #[serde(default, skip_serializing_if = "Certificates::is_default")]
    pub certificates: Certificates,
}

/// The three roles of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// API server, controllers, scheduler, kubelet; etcd when stacked.
    ControlPlane,
    /// Member of a separate etcd cluster.
    Etcd,
    /// Runs pods.
    Worker,
}

impl NodeRole {
    /// The name as it stands in `role.json` and in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Etcd => "etcd",
            Self::Worker => "worker",
        }
    }
}

/// What all machines of the cluster share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cluster {
    /// Name in kubeconfigs; a DNS label.
    pub name: String,
    /// The load balancer: `lb.example.com:6443`.
    pub endpoint: Endpoint,
    /// More names and addresses that the API server's certificate is valid for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_names: Vec<String>,
    /// Addresses of Services. The first is the API's, the tenth the DNS server's.
    #[serde(default = "Cidr::services")]
    pub service_subnet: Cidr,
    /// Addresses of pods; each node gets a part of it.
    #[serde(default = "Cidr::pods")]
    pub pod_subnet: Cidr,
    /// `cluster.local`.
    #[serde(default = "cluster_local")]
    pub dns_domain: String,
}

/// What the platform can't know or says wrongly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Node {
    /// Name of the Node and of the etcd member; otherwise the platform's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Address that others reach this machine at; otherwise the platform's, otherwise the one with the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// `topology.kubernetes.io/zone`; otherwise the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `topology.kubernetes.io/region`; otherwise the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// More labels of the Node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints the Node registers with: `key=value:Effect`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
}

/// Pod network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Network {
    /// Who connects pods.
    pub plugin: NetworkPlugin,
    /// How flannel carries packets between nodes.
    pub backend: FlannelBackend,
    /// Who makes Services work.
    pub kube_proxy: KubeProxy,
    /// Whether kube-router's firewall enforces NetworkPolicy.
    pub network_policy: NetworkPolicy,
    /// Whether pods reach the platform's metadata service.
    pub pod_metadata: PodMetadata,
}

/// Who connects pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPlugin {
    /// The baked flannel, as a service of the host.
    #[default]
    Flannel,
    /// Somebody installs a plugin into the cluster.
    None,
}

/// How flannel carries packets between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlannelBackend {
    /// Works over any IP network.
    #[default]
    Vxlan,
    /// Faster; all nodes must be on one segment.
    HostGw,
}

/// Who makes Services work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KubeProxy {
    /// The baked service, unless the cluster has a kube-proxy DaemonSet of its own.
    #[default]
    Auto,
    /// The baked service.
    Systemd,
    /// Somebody else.
    None,
}

/// Whether NetworkPolicy is enforced by this image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicy {
    /// By the baked kube-router, firewall only.
    #[default]
    KubeRouter,
    /// By somebody else or not at all.
    None,
}

/// Whether pods reach the platform's metadata service, which hands this very document to whoever asks it. On a worker
/// that is a bootstrap token, on a control plane every key of the cluster.
///
/// ```yaml
/// network: {podMetadata: allowed}
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodMetadata {
    /// The machine forwards nothing but questions of DNS to it. What the machine sends itself, pods on the host's network
    /// included, gets there.
    #[default]
    Blocked,
    /// Pods reach it as the machine does.
    Allowed,
}

/// Where etcd is and how its members find each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Etcd {
    /// On the control planes or on machines of its own.
    pub layout: EtcdLayout,
    /// How the members find each other; control planes of an external etcd find it the same way.
    pub formation: Formation,
}

/// Where etcd runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcdLayout {
    /// On every control plane.
    Stacked,
    /// On machines of role `etcd`.
    External,
}

/// How the members of etcd find each other. Exactly one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Formation {
    /// A fixed list: every machine is the member whose address it has.
    Static(Vec<StaticMember>),
    /// A record in a store with compare-and-swap says who began and whom to ask.
    Record(RecordStore),
}

/// A member of a fixed list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StaticMember {
    /// Name of the member.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// Where the record of a formation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum RecordStore {
    /// An object in an S3-compatible bucket (conditional PUT).
    S3 {
        /// `https://s3.eu-central-1.amazonaws.com` or that of another vendor.
        endpoint: String,
        /// `eu-central-1`.
        region: String,
        /// Name of the bucket.
        bucket: String,
        /// Key of the object.
        key: String,
        /// Fixed credentials; otherwise those of the instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credentials: Option<Credentials>,
    },
    /// A key in some other etcd (transaction on its JSON gateway).
    Etcd {
        /// `https://10.0.0.5:2379`, one or more.
        endpoints: Vec<String>,
        /// The key.
        key: String,
        /// PEM of the CA that signed the servers; otherwise the system's roots.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca_certificate: Option<String>,
    },
    /// A resource on a web server that honours `If-None-Match: *` and `If-Match`.
    Http {
        /// Where it is.
        url: String,
        /// Sent as `Authorization: Bearer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Secret>,
    },
    /// A file that all members see (NFS, virtiofs).
    File {
        /// Absolute path.
        path: String,
    },
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Credentials {
    /// Public half.
    pub access_key_id: String,
    /// Secret half.
    pub secret_access_key: Secret,
}

/// How a kubelet proves itself: kubeadm's discovery by token with a pinned CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Join {
    /// `[a-z0-9]{6}.[a-z0-9]{16}`.
    pub token: Secret,
    /// `sha256:<hex>` over the DER SubjectPublicKeyInfo of a CA; one must match.
    pub ca_cert_hashes: Vec<String>,
}

/// Certificate authorities and keys of a cluster. A `kimage cluster new` folder holds the same, a file each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Secrets {
    /// Signs etcd's servers, peers and clients.
    pub etcd_ca: KeyPair,
    /// Signs everything of Kubernetes. Absent on `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<KeyPair>,
    /// Signs the client of aggregated API servers. Absent on `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_proxy_ca: Option<KeyPair>,
    /// PEM of the key that signs service-account tokens. Absent on `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_key: Option<Secret>,
    /// Base64 of the 32 bytes that encrypt Secrets in etcd (secretbox). Absent on `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key: Option<Secret>,
    /// Bootstrap tokens that control planes keep in the cluster, with their expiry (RFC 3339) if any. Absent on `etcd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bootstrap_tokens: Vec<BootstrapToken>,
}

/// A certificate and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyPair {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: Secret,
}

/// A bootstrap token that control planes keep in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BootstrapToken {
    /// `[a-z0-9]{6}.[a-z0-9]{16}`.
    pub token: Secret,
    /// RFC 3339; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// Who says which instances are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Inventory {
    /// The instances that exist when the NodeConfig is written, by id, this machine's own too; others that were there
    /// before this machine are gone.
    Static(Vec<String>),
    /// A signed list on a web server ([`crate::inventory`]).
    Http {
        /// Where it is.
        url: String,
        /// PEM of the Ed25519 key that signs it.
        public_key: String,
    },
    /// A signed list in a file.
    File {
        /// Absolute path.
        path: String,
        /// PEM of the Ed25519 key that signs it.
        public_key: String,
    },
}

/// Knobs for slow machines and networks. Milliseconds and seconds as the names say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Timing {
    /// etcd's heartbeat.
    pub etcd_heartbeat_milliseconds: u32,
    /// etcd's election timeout; at least five heartbeats.
    pub etcd_election_milliseconds: u32,
    /// Lease of leader elections of controller manager and scheduler; deadline and retry follow from it.
    pub leader_lease_seconds: u32,
    /// How long a silent node counts as alive.
    pub node_grace_seconds: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            etcd_heartbeat_milliseconds: 100,
            etcd_election_milliseconds: 1000,
            leader_lease_seconds: 15,
            node_grace_seconds: 50,
        }
    }
}

/// Certificates that the cluster issues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Certificates {
    /// How long a certificate lives, in seconds: those that control planes and members of etcd issue to themselves, and
    /// those that the controller manager signs for kubelets. Each is renewed before its end (kubeadm's
    /// `certificateValidityPeriod`).
    pub lifetime_seconds: u32,
}

impl Certificates {
    /// Whether it says what it says by default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Certificates {
    /// kubeadm's year.
    fn default() -> Self {
        Self {
            lifetime_seconds: 31_536_000,
        }
    }
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}
