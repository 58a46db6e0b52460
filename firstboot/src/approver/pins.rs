//! Addresses, bound to the node that was the first to have a certificate for them.
//!
//! Each is a ConfigMap `kube-system/kimage-address.ADDRESS`, so that two approvers can't give one address to two nodes.
//! A node can't write it: the Node authorizer lets kubelets read ConfigMaps of their own pods and write none, and
//! deleting Nodes is not theirs either. What releases an address:
//!
//! - its Node is gone, or silent ([`super::presence`]), and a node asks for it that has no address yet;
//! - a machine takes the name of a node anew by a bootstrap token (which could as well have made a new node);
//! - a control plane says that it has the address: only its own agent, with the cluster's keys, writes that;
//! - the inventory says that another node has the address, or that its node has others ([`super::witness`]);
//! - a person deletes the ConfigMaps.
//!
//! Who makes machines and knows their addresses beforehand says them in the inventory's list.
//!
//! So a node that was stolen keeps the addresses that it had, whatever it writes into its Node, until whoever may make
//! nodes says otherwise.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::json;

use super::node_name::NodeName;
use crate::kubernetes::{Api, ApiError, segment};

const COLLECTION: &str = "/api/v1/namespaces/kube-system/configmaps";
const PREFIX: &str = "kimage-address.";
/// Label with the name of the node.
const LABEL: &str = "kimage.dev/node";
/// A label's value is not longer; neither is the name of a Node, which its kubelet writes into one.
const MAX_LABEL: usize = 63;

/// An address and the node that it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) address: IpAddr,
    /// Empty when it is bound to nobody any more.
    pub(super) node: String,
    /// Whether a control plane's own agent has said so.
    pub(super) by_control_plane: bool,
    /// Resource version of the object; empty while there is none.
    version: String,
}

impl Pin {
    /// `address` is `node`'s; not written yet.
    pub(super) fn new(address: IpAddr, node: &NodeName, by_control_plane: bool) -> Self {
        Self {
            address,
            node: node.as_str().to_owned(),
            by_control_plane,
            version: String::new(),
        }
    }

    /// What a person does so that `node` may have other addresses.
    pub(super) fn remedy(node: &NodeName) -> String {
        format!("kubectl --namespace kube-system delete configmap --selector {LABEL}={node}")
    }

    /// Refuses a node whose name can't be written down.
    pub(super) fn check_name(node: &NodeName) -> Result<(), String> {
        if node.as_str().len() > MAX_LABEL {
            return Err(format!(
                "the name of Node {node} has more than {MAX_LABEL} characters"
            ));
        }
        Ok(())
    }

    /// The same address, bound to nobody.
    fn freed(&self) -> Self {
        Self {
            node: String::new(),
            by_control_plane: false,
            ..self.clone()
        }
    }

    pub(super) fn all_of(api: &Api, node: &NodeName) -> Result<Vec<Self>, ApiError> {
        let mut pins = Vec::new();
        let query = format!("labelSelector={}", segment(&format!("{LABEL}={node}")));
        api.list(COLLECTION, &query, |object: Object| {
            pins.extend(object.address().map(|address| object.pin(address)));
            Ok(())
        })?;
        pins.retain(|pin| pin.node == node.as_str());
        Ok(pins)
    }

    pub(super) fn read(api: &Api, address: IpAddr) -> Result<Option<Self>, ApiError> {
        let found: Option<Object> = api.read(&path(address))?;
        Ok(found.map(|object| object.pin(address)))
    }

    /// Writes the pin in place of `old`; `false` when that is not what is there.
    pub(super) fn write(&self, api: &Api, old: Option<&Self>) -> Result<bool, ApiError> {
        let labels = match self.node.as_str() {
            "" => json!({}),
            node => json!({LABEL: node}),
        };
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name(self.address), "namespace": "kube-system", "labels": labels},
            "data": {
                "address": self.address.to_string(),
                "node": self.node,
                "by-control-plane": self.by_control_plane.to_string(),
            },
        });
        let written = match old {
            None => api.create(COLLECTION, &object),
            Some(old) => {
                object["metadata"]["resourceVersion"] = json!(old.version);
                api.replace(&path(self.address), &object)
            }
        };
        match written {
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            written => written.map(|_| true),
        }
    }

    /// Binds the address to nobody, unless an approver elsewhere has just bound it anew.
    pub(super) fn free(&self, api: &Api) -> Result<(), ApiError> {
        self.freed().write(api, Some(self)).map(drop)
    }
}

/// `kimage-address.10.0.0.7`, `kimage-address.fd00-0000-0000-0000-0000-0000-0000-0007`: names of objects hold no colon.
fn name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{PREFIX}{address}"),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            format!("{PREFIX}{}", groups.join("-"))
        }
    }
}

fn path(address: IpAddr) -> String {
    format!("{COLLECTION}/{}", segment(&name(address)))
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Data {
    address: String,
    node: String,
    #[serde(rename = "by-control-plane")]
    by_control_plane: String,
}

impl Object {
    fn address(&self) -> Option<IpAddr> {
        self.data.as_ref()?.address.parse().ok()
    }

    /// What it says about `address`. One that a person has emptied binds it to nobody.
    fn pin(self, address: IpAddr) -> Pin {
        let data = self.data.unwrap_or_default();
        Pin {
            address,
            node: data.node,
            by_control_plane: data.by_control_plane == "true",
            version: self.metadata.resource_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_an_object_of_its_own_with_a_name_of_dns() {
        let of = |text: &str| name(text.parse().unwrap());
        assert_eq!(of("10.0.0.7"), "kimage-address.10.0.0.7");
        assert_eq!(
            of("fd00::"),
            "kimage-address.fd00-0000-0000-0000-0000-0000-0000-0000"
        );
        assert_eq!(of("fd00::7"), of("fd00:0:0::0007"));
        for address in ["10.0.0.7", "::", "2001:db8::1"] {
            assert!(kimage_roles::node_config::is_dns_name(&of(address)));
        }
    }

    #[test]
    fn a_name_that_is_no_labels_value_is_refused() {
        let named = |length: usize| NodeName::parse(&format!("a{}", ".a".repeat(length))).unwrap();
        assert!(Pin::check_name(&named(31)).is_ok());
        assert!(Pin::check_name(&named(32)).is_err());
    }
}
