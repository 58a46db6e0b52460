//! What the approver asks the cluster about, and what it writes there. Everything here was written by somebody: the
//! methods say by whom.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kimage_roles::node_config::Cidr;
use serde::Deserialize;
use serde_json::json;

use super::node_name::NodeName;
use super::pins::Pin;
use crate::kubernetes::{Api, ApiError, segment};

const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const API_SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const SERVICE_RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const EVENTS: &str = "/api/v1/namespaces/default/events";

/// The cluster.
pub(super) trait Site {
    /// The Node called `name`. Its addresses and its being ready are its own words; its label is not.
    fn node(&self, name: &NodeName) -> Result<Option<Node>, ApiError>;

    /// The resource version of the lease that the kubelet of `name` renews; only it can.
    fn heartbeat(&self, name: &NodeName) -> Result<Option<String>, ApiError>;

    /// Names of the Nodes but `node` that call one of `addresses` theirs, and which: their own words.
    fn claims(&self, addresses: &[IpAddr], node: &NodeName) -> Result<Vec<(String, IpAddr)>, ApiError>;

    /// Addresses that API servers are reached at, as they write themselves.
    fn api_addresses(&self) -> Result<BTreeSet<IpAddr>, ApiError>;

    /// Ranges of Services, as administrators have them.
    fn service_ranges(&self) -> Result<Vec<Cidr>, ApiError>;

    /// Addresses that are bound to `node`.
    fn pins_of(&self, node: &NodeName) -> Result<Vec<Pin>, ApiError>;

    /// Whom `address` is bound to, if it ever was to anybody.
    fn pin(&self, address: IpAddr) -> Result<Option<Pin>, ApiError>;

    /// Binds `pin.address` in place of `old`; `false` when somebody else was faster.
    fn bind(&self, pin: &Pin, old: Option<&Pin>) -> Result<bool, ApiError>;

    /// Binds an address to nobody, unless somebody has bound it anew.
    fn release(&self, pin: &Pin) -> Result<(), ApiError>;

    /// Tells whoever looks at the Node `name` something. What is told again is one event.
    fn tell(&self, name: &NodeName, reason: &str, text: &str) -> Result<(), ApiError>;
}

/// What is looked at of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Which of all Nodes that ever had the name.
    pub(super) uid: String,
    /// What its condition `Ready` says: its kubelet writes `True` and `False`; the node controller `Unknown`, when it
    /// has seen nothing of the kubelet for `timing.nodeGraceSeconds` by its own clock.
    pub(super) ready: Option<String>,
    /// Whether it is labelled as a control plane.
    pub(super) is_control_plane: bool,
    /// What it calls its addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Site for Api {
    fn node(&self, name: &NodeName) -> Result<Option<Node>, ApiError> {
        let found: Option<NodeObject> = self.read(&format!("{NODES}/{}", segment(name.as_str())))?;
        Ok(found.map(Node::from))
    }

    fn heartbeat(&self, name: &NodeName) -> Result<Option<String>, ApiError> {
        let found: Option<Bare> = self.read(&format!("{LEASES}/{}", segment(name.as_str())))?;
        Ok(found.map(|lease| lease.metadata.resource_version))
    }

    fn claims(&self, addresses: &[IpAddr], node: &NodeName) -> Result<Vec<(String, IpAddr)>, ApiError> {
        let mut claims = Vec::new();
        self.list(NODES, "", |other: NodeObject| {
            if other.metadata.name != node.as_str() {
                let theirs = other.status.addresses.iter().filter_map(Address::read);
                let ours = theirs.filter(|address| addresses.contains(address));
                claims.extend(ours.map(|address| (other.metadata.name.clone(), address)));
            }
            Ok(())
        })?;
        Ok(claims)
    }

    fn api_addresses(&self) -> Result<BTreeSet<IpAddr>, ApiError> {
        let slice: Option<Slice> = self.read(API_SLICE)?;
        let endpoints = slice
            .into_iter()
            .flat_map(|slice| slice.endpoints.unwrap_or_default());
        let addresses = endpoints.flat_map(|endpoint| endpoint.addresses);
        Ok(addresses.filter_map(|text| text.parse().ok()).collect())
    }

    fn service_ranges(&self) -> Result<Vec<Cidr>, ApiError> {
        let mut ranges = Vec::new();
        let listed = self.list(SERVICE_RANGES, "", |range: ServiceRange| {
            ranges.extend(
                range
                    .spec
                    .cidrs
                    .iter()
                    .filter_map(|text| text.parse::<Cidr>().ok()),
            );
            Ok(())
        });
        match listed {
            // Clusters before 1.33 have no such objects, and no other range than the NodeConfig's.
            Err(error) if error.code() == Some(404) => Ok(Vec::new()),
            listed => listed.map(|_| ranges),
        }
    }

    fn pins_of(&self, node: &NodeName) -> Result<Vec<Pin>, ApiError> {
        Pin::all_of(self, node)
    }

    fn pin(&self, address: IpAddr) -> Result<Option<Pin>, ApiError> {
        Pin::read(self, address)
    }

    fn bind(&self, pin: &Pin, old: Option<&Pin>) -> Result<bool, ApiError> {
        pin.write(self, old)
    }

    fn release(&self, pin: &Pin) -> Result<(), ApiError> {
        pin.free(self)
    }

    fn tell(&self, name: &NodeName, reason: &str, text: &str) -> Result<(), ApiError> {
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{name}\n{text}").as_bytes());
        let digest: String = digest.as_ref()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("kimage-{digest}"), "namespace": "default"},
            // The kubelet names its own Node so, too, and `kubectl describe node` looks for it.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name.as_str(), "uid": name.as_str()},
            "type": "Warning",
            "reason": reason,
            "message": text,
            "source": {"component": "kimage-approver"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        match self.create(EVENTS, &event) {
            Err(error) if error.code() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }
}

#[derive(Deserialize)]
struct NodeObject {
    metadata: NodeMetadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize)]
struct NodeMetadata {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: Labels,
}

/// Of a Node's labels one counts, which administrators and first boot set and no kubelet may (NodeRestriction).
#[derive(Deserialize, Default)]
struct Labels {
    #[serde(rename = "node-role.kubernetes.io/control-plane")]
    control_plane: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

impl Address {
    fn read(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl From<NodeObject> for Node {
    fn from(object: NodeObject) -> Self {
        let NodeStatus {
            addresses,
            conditions,
        } = object.status;
        let ready = conditions.into_iter().find(|condition| condition.kind == "Ready");
        Self {
            uid: object.metadata.uid,
            ready: ready.map(|condition| condition.status),
            is_control_plane: object.metadata.labels.control_plane.is_some(),
            addresses: addresses.iter().filter_map(Address::read).collect(),
        }
    }
}

#[derive(Deserialize)]
struct Bare {
    metadata: BareMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BareMetadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Slice {
    endpoints: Option<Vec<SliceEndpoint>>,
}

#[derive(Deserialize)]
struct SliceEndpoint {
    addresses: Vec<String>,
}

#[derive(Deserialize)]
struct ServiceRange {
    spec: ServiceRangeSpec,
}

#[derive(Deserialize)]
struct ServiceRangeSpec {
    cidrs: Vec<String>,
}
