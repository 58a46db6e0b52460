//! What formation touches, as one trait: the machine is one, the simulation's machines are others.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Id, Member, Peer, View};
use crate::failure::Failure;
use crate::inventory::{Claim, Standing};
use crate::record::{Record, Version, Written};

/// What a call to the world gives.
pub type Outcome<T> = Result<T, Failure>;

/// How the members find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// By the record in a store.
    Record,
    /// By a fixed list, this machine included.
    List(Vec<Peer>),
}

/// What the disk says this machine was about to do or has done. Written before the act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum Mark {
    /// Claims `generation` of the record; data, if any, is a seed's that nobody else has seen.
    Seeding {
        /// The claimed generation.
        generation: u64,
        /// Token of the cluster that is being made.
        token: String,
    },
    /// Begins as a member of the fixed list.
    Listed,
    /// Was added as a learner and hasn't run as such yet.
    Joining {
        /// Id of the cluster.
        cluster: Id,
        /// Id of the own member.
        member: Id,
    },
    /// Is a member.
    Member {
        /// Id of the cluster.
        cluster: Id,
        /// Id of the own member.
        member: Id,
    },
    /// Gives its vote back: the member is being removed, and nothing else happens on this disk any more.
    Leaving {
        /// Id of the cluster.
        cluster: Id,
        /// Id of the own member.
        member: Id,
    },
    /// Has left. The machine is of no more use to etcd.
    Left,
    /// The cluster knows (or has known) this machine, and its data is gone: it comes back as a learner or not at all.
    Known,
}

/// The own disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What was noted last.
    pub mark: Option<Mark>,
    /// Whether etcd has a log there.
    pub data: bool,
}

/// How the local etcd is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// As the only member of a new cluster, on loopback only.
    Seed {
        /// Makes the cluster's id unlike any other's.
        token: String,
    },
    /// As a member of a new cluster of the fixed list.
    Listed(Vec<Peer>),
    /// As a member that was added to a living cluster: name and peer URL of all.
    Join(Vec<(String, String)>),
    /// From the data on the disk.
    Resume,
}

/// The local etcd once it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Id of its cluster.
    pub cluster: Id,
    /// Id of the member it is.
    pub member: Id,
}

/// What one machine of a fixed list says when it is asked alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Glance {
    /// A member answers: its cluster and the members it knows of (perhaps not the newest).
    Answer(Id, Vec<Member>),
    /// The machine is there; no etcd listens.
    Refused,
    /// Nothing comes back.
    Silent,
    /// Somebody answers who is not of our cluster.
    Foreign(String),
}

/// All that formation touches. Any call may fail with or without having had its effect.
pub trait World {
    /// Time since some moment of this boot; never goes back.
    fn uptime(&mut self) -> Duration;
    /// The wall clock as RFC 3339.
    fn now(&mut self) -> String;
    /// A fresh random token.
    fn token(&mut self) -> Outcome<String>;

    /// Reads the record; may be an older one.
    fn record(&mut self) -> Outcome<Option<(Record, Version)>>;
    /// Writes the record if there is none.
    fn create_record(&mut self, record: &Record) -> Outcome<Written>;
    /// Writes the record if it is still at `version`.
    fn replace_record(&mut self, version: &Version, record: &Record) -> Outcome<Written>;

    /// The own disk.
    fn disk(&mut self) -> Outcome<Disk>;
    /// Notes a mark (or that there is none) so that a power cut can't lose it.
    fn mark(&mut self, mark: Option<&Mark>) -> Outcome<()>;
    /// Stops the local etcd and removes its data.
    fn erase(&mut self) -> Outcome<()>;
    /// Makes the local etcd run; nothing as long as it doesn't answer.
    fn run(&mut self, launch: &Launch) -> Outcome<Option<Local>>;

    /// Asks one machine alone.
    fn glance(&mut self, client_url: &str) -> Glance;
    /// Asks a quorum, through the first of `endpoints` that can. The own loopback when there are none.
    fn view(&mut self, endpoints: &[String]) -> Outcome<View>;
    /// Whether a member answers now.
    fn is_alive(&mut self, member: &Member) -> bool;
    /// Notes in etcd which instance has the member at a peer URL, and what its wall clock says.
    fn claim(&mut self, endpoints: &[String], peer_url: &str, instance: &str) -> Outcome<()>;
    /// Takes the lock of membership for a while, or renews it; `false` when another has it.
    fn lock(&mut self, endpoints: &[String], instance: &str) -> Outcome<bool>;
    /// Gives the lock back.
    fn unlock(&mut self, endpoints: &[String], instance: &str) -> Outcome<()>;
    /// Adds a learner and gives its id.
    fn add_learner(&mut self, endpoints: &[String], peer_url: &str) -> Outcome<Id>;
    /// Gives a learner its vote; fails until it has caught up.
    fn promote(&mut self, endpoints: &[String], member: Id) -> Outcome<()>;
    /// Makes `heir` the leader if the own member is it; otherwise nothing.
    fn hand_over(&mut self, heir: &Member) -> Outcome<()>;
    /// Removes a member.
    fn remove(&mut self, endpoints: &[String], member: Id) -> Outcome<()>;

    /// What the inventory says about the instance that made a claim.
    fn standing(&mut self, claim: &Claim) -> Outcome<Standing>;
}
