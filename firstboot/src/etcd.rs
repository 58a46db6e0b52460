//! etcd on this machine: forming or joining the one cluster, keeping its membership, its configuration and client.
//!
//! [`formation`] decides, over a small trait, so that the simulation in this module's tests runs the very code of the
//! machine; [`site`] is that trait on a real machine.

use std::net::{IpAddr, SocketAddr};

use kimage_roles::cause::Cause;
use kimage_roles::node_config::{Formation as Config, StaticMember};
use serde::{Deserialize, Serialize};

use self::world::Means;
use crate::failure::Failure;
use crate::inventory::Claim;

pub mod client;
pub mod config;
pub mod formation;
pub mod leave;
pub mod membership;
#[cfg(test)]
mod simulation;
pub mod site;
pub mod world;

/// The id of a cluster or of a member: etcd writes it as sixteen hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(pub u64);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

/// Who this machine is for etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Instance id that the platform gives; what the inventory speaks of.
    pub instance: String,
    /// Name of the member: that of the fixed list, or the instance id.
    pub name: String,
    /// `https://10.0.0.5:2380`.
    pub peer_url: String,
    /// `https://10.0.0.5:2379`.
    pub client_url: String,
}

/// A member of a fixed list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name of the member.
    pub name: String,
    /// `https://10.0.0.5:2380`.
    pub peer_url: String,
    /// `https://10.0.0.5:2379`.
    pub client_url: String,
}

/// A member as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: Id,
    /// Its name; of a member that was added and never started: empty.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started once and said so to a quorum.
    pub client_urls: Vec<String>,
    /// Whether it has no vote yet.
    pub learner: bool,
}

impl Member {
    /// Whether it has ever run as a member.
    pub fn has_started(&self) -> bool {
        !self.client_urls.is_empty()
    }
}

/// What a quorum says about the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Id of the cluster.
    pub cluster: Id,
    /// All members.
    pub members: Vec<Member>,
    /// Peer URL to the instance that has (or is about to have) the member there.
    pub owners: std::collections::BTreeMap<String, Claim>,
}

impl View {
    /// The member with `id`.
    pub fn member(&self, id: Id) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member at `peer_url`.
    pub fn at(&self, peer_url: &str) -> Option<&Member> {
        let here = |member: &&Member| member.peer_urls.iter().any(|url| url == peer_url);
        self.members.iter().find(here)
    }

    /// Who said that `member` is theirs.
    pub fn claim(&self, member: &Member) -> Option<&Claim> {
        member.peer_urls.iter().find_map(|url| self.owners.get(url))
    }

    /// The instance that `member` runs on, if anybody knows.
    pub fn owner(&self, member: &Member) -> Option<&str> {
        self.claim(member).map(|claim| claim.instance.as_str())
    }

    /// Members with a vote.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.learner)
    }
}

/// Port of etcd's clients.
pub const CLIENT_PORT: u16 = 2379;
/// Port of etcd's peers.
pub const PEER_PORT: u16 = 2380;

fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", SocketAddr::new(address, port))
}

/// Who this machine is for etcd, and how it finds the others. Of a fixed list it is the member whose address it has;
/// with a record its name is the instance id, which no later machine has again.
///
/// # Errors
///
/// The list has no member, or more than one, with the address, or names a member or an address twice
/// ([`Cause::ConfigInvalid`]).
pub fn identify(config: &Config, instance: &str, address: IpAddr) -> Result<(Identity, Means), Failure> {
    let identity = |name: &str| Identity {
        instance: instance.to_owned(),
        name: name.to_owned(),
        peer_url: url(address, PEER_PORT),
        client_url: url(address, CLIENT_PORT),
    };
    let invalid =
        |text: String| Failure::because(Cause::ConfigInvalid, format!("etcd.formation.static: {text}"));
    let list = match config {
        Config::Record(_) => return Ok((identity(instance), Means::Record)),
        Config::Static(list) => list,
    };
    let doubles = |member: &&StaticMember| {
        let same = |other: &&StaticMember| other.name == member.name || other.address == member.address;
        list.iter().filter(same).count() > 1
    };
    if let Some(double) = list.iter().find(doubles) {
        return Err(invalid(format!(
            "`{}` ({}) stands there twice",
            double.name, double.address
        )));
    }
    let own = list.iter().find(|member| member.address == address);
    let own = own.ok_or_else(|| invalid(format!("no member has this machine's address {address}")))?;
    let peer = |member: &StaticMember| Peer {
        name: member.name.clone(),
        peer_url: url(member.address, PEER_PORT),
        client_url: url(member.address, CLIENT_PORT),
    };
    Ok((identity(&own.name), Means::List(list.iter().map(peer).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(members: &[(&str, &str)]) -> Config {
        let member = |(name, address): &(&str, &str)| StaticMember {
            name: (*name).to_owned(),
            address: address.parse().unwrap(),
        };
        Config::Static(members.iter().map(member).collect())
    }

    #[test]
    fn a_machine_is_the_member_whose_address_it_has() {
        let config = list(&[("a", "10.0.0.1"), ("b", "fd00::2")]);
        let (identity, means) = identify(&config, "i-1", "fd00::2".parse().unwrap()).unwrap();
        assert_eq!(
            (identity.name.as_str(), identity.peer_url.as_str()),
            ("b", "https://[fd00::2]:2380")
        );
        assert!(matches!(means, Means::List(peers) if peers.len() == 2));
    }

    #[test]
    fn a_list_without_this_machine_or_with_one_twice_is_refused() {
        let address = "10.0.0.1".parse().unwrap();
        let lists = [
            list(&[("a", "10.0.0.2")]),
            list(&[("a", "10.0.0.1"), ("b", "10.0.0.1")]),
            list(&[("a", "10.0.0.1"), ("a", "10.0.0.2")]),
        ];
        for config in lists {
            assert_eq!(
                identify(&config, "i-1", address).unwrap_err().cause,
                Cause::ConfigInvalid
            );
        }
    }
}
