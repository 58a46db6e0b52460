//! etcd on this machine: forming or joining the one cluster, keeping its membership, its configuration and client.
//!
//! [`formation`] decides, over a small trait, so that the simulation in this module's tests runs the very code of the
//! machine; [`site`] is that trait on a real machine.

use serde::{Deserialize, Serialize};

pub mod client;
pub mod config;
pub mod formation;
pub mod membership;
#[cfg(test)]
mod simulation;
pub mod site;

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
    /// Peer URL to the instance id that has (or is about to have) the member there.
    pub owners: std::collections::BTreeMap<String, String>,
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

    /// The instance that `member` runs on, if anybody knows.
    pub fn owner(&self, member: &Member) -> Option<&str> {
        let owner = |url| self.owners.get(url).map(String::as_str);
        member.peer_urls.iter().find_map(owner)
    }

    /// Members with a vote.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.learner)
    }
}
