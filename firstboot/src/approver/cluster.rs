//! A cluster of tests: what the approver would find, in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kimage_roles::node_config::Cidr;

use super::node_name::NodeName;
use super::pins::Pin;
use super::site::{Node, Site};
use crate::kubernetes::ApiError;

#[derive(Default)]
pub(super) struct Fake {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) leases: BTreeMap<String, String>,
    pub(super) pins: RefCell<BTreeMap<IpAddr, Pin>>,
    pub(super) events: RefCell<Vec<String>>,
    pub(super) servers: BTreeSet<IpAddr>,
    pub(super) ranges: Vec<Cidr>,
}

impl Fake {
    pub(super) fn name(name: &str) -> NodeName {
        NodeName::parse(name).unwrap()
    }

    pub(super) fn add(&mut self, name: &str, ready: &str, addresses: &[&str]) {
        let node = Node {
            uid: format!("uid-{name}"),
            ready: Some(ready.to_owned()),
            is_control_plane: false,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        self.nodes.insert(name.to_owned(), node);
    }

    /// Who has `address`.
    pub(super) fn holder(&self, address: &str) -> Option<String> {
        let pins = self.pins.borrow();
        pins.get(&address.parse().unwrap()).map(|pin| pin.node.clone())
    }
}

impl Site for Fake {
    fn node(&self, name: &NodeName) -> Result<Option<Node>, ApiError> {
        Ok(self.nodes.get(name.as_str()).cloned())
    }

    fn heartbeat(&self, name: &NodeName) -> Result<Option<String>, ApiError> {
        Ok(self.leases.get(name.as_str()).cloned())
    }

    fn claims(&self, addresses: &[IpAddr], node: &NodeName) -> Result<Vec<(String, IpAddr)>, ApiError> {
        let others = self.nodes.iter().filter(|(name, _)| *name != node.as_str());
        let theirs =
            others.flat_map(|(name, node)| node.addresses.iter().map(|address| (name.clone(), *address)));
        Ok(theirs
            .filter(|(_, address)| addresses.contains(address))
            .collect())
    }

    fn api_addresses(&self) -> Result<BTreeSet<IpAddr>, ApiError> {
        Ok(self.servers.clone())
    }

    fn service_ranges(&self) -> Result<Vec<Cidr>, ApiError> {
        Ok(self.ranges.clone())
    }

    fn pins_of(&self, node: &NodeName) -> Result<Vec<Pin>, ApiError> {
        let pins = self.pins.borrow();
        Ok(pins
            .values()
            .filter(|pin| pin.node == node.as_str())
            .cloned()
            .collect())
    }

    fn pin(&self, address: IpAddr) -> Result<Option<Pin>, ApiError> {
        Ok(self.pins.borrow().get(&address).cloned())
    }

    fn bind(&self, pin: &Pin, old: Option<&Pin>) -> Result<bool, ApiError> {
        let mut pins = self.pins.borrow_mut();
        if pins.get(&pin.address) != old {
            return Ok(false);
        }
        pins.insert(pin.address, pin.clone());
        Ok(true)
    }

    fn release(&self, pin: &Pin) -> Result<(), ApiError> {
        self.pins.borrow_mut().remove(&pin.address);
        Ok(())
    }

    fn tell(&self, name: &NodeName, reason: &str, text: &str) -> Result<(), ApiError> {
        self.events.borrow_mut().push(format!("{name} {reason}: {text}"));
        Ok(())
    }
}
