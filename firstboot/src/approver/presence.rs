//! Whether a node is alive, by what it can't help showing while it is: its kubelet renews a lease every ten seconds.
//!
//! Nobody's clock but this machine's is believed. A Node counts as silent when the node controller has given it up
//! (`Ready` is `Unknown`: it has seen nothing for `timing.nodeGraceSeconds` by its own clock, and only it or the node
//! itself could write that), and when its lease did not change while this approver looked for [`QUIET`] more.
//!
//! The signed inventory has no say: it speaks of the machines of etcd, and one that is complete in that would call living
//! workers gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::node_name::NodeName;
use super::site::{Node, Site};
use crate::kubernetes::ApiError;

/// A kubelet that lives renews its lease twice in this time (`nodeLeaseDurationSeconds` 40, a quarter of it each time).
pub(super) const QUIET: Duration = Duration::from_secs(20);
/// Of a node that nobody has asked about for so long nothing is remembered.
const FORGET: Duration = Duration::from_secs(600);
/// More nodes are not looked at at one time.
const MAX_WATCHED: usize = 1024;

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// There is no Node.
    Absent,
    /// Its kubelet was heard, or may be.
    Alive,
    /// Its kubelet may have fallen silent: more is known after a while.
    Fading,
    /// Its kubelet is silent.
    Silent,
}

impl Presence {
    /// Whether another machine may take what was the node's.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Absent | Self::Silent)
    }
}

/// What was seen of nodes that somebody asked about.
#[derive(Debug, Default)]
pub(super) struct Watchman {
    seen: BTreeMap<NodeName, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Which Node, and which edition of its lease.
    sign: (String, Option<String>),
    since: Instant,
    asked: Instant,
}

impl Watchman {
    /// How the node called `name` stands at the moment `now`.
    pub(super) fn look(
        &mut self,
        site: &dyn Site,
        name: &NodeName,
        now: Instant,
    ) -> Result<Presence, ApiError> {
        let Some(node) = site.node(name)? else {
            self.seen.remove(name);
            return Ok(Presence::Absent);
        };
        self.look_at(site, name, &node, now)
    }

    fn look_at(
        &mut self,
        site: &dyn Site,
        name: &NodeName,
        node: &Node,
        now: Instant,
    ) -> Result<Presence, ApiError> {
        if node.ready.as_deref() != Some("Unknown") {
            self.seen.remove(name);
            return Ok(Presence::Alive);
        }
        let sign = (node.uid.clone(), site.heartbeat(name)?);
        self.seen
            .retain(|_, seen| now.duration_since(seen.asked) < FORGET);
        if !self.seen.contains_key(name) && self.seen.len() >= MAX_WATCHED {
            return Ok(Presence::Fading);
        }
        let seen = self.seen.entry(name.clone()).or_insert_with(|| Seen {
            sign: sign.clone(),
            since: now,
            asked: now,
        });
        seen.asked = now;
        if seen.sign != sign {
            (seen.sign, seen.since) = (sign, now);
        }
        let silent = now.duration_since(seen.since) >= QUIET;
        Ok(if silent {
            Presence::Silent
        } else {
            Presence::Fading
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approver::cluster::Fake;

    #[test]
    fn a_node_is_silent_when_the_controller_gave_it_up_and_its_lease_stands_still() {
        let (mut cluster, mut watchman, began) = (Fake::default(), Watchman::default(), Instant::now());
        let w1 = Fake::name("w1");
        let mut look = |cluster: &Fake, seconds| {
            let now = began + Duration::from_secs(seconds);
            watchman.look(cluster, &w1, now).unwrap()
        };
        assert_eq!(look(&cluster, 0), Presence::Absent);
        cluster.add("w1", "True", &[]);
        assert_eq!(look(&cluster, 1), Presence::Alive);
        cluster.nodes.get_mut("w1").unwrap().ready = None;
        assert_eq!(look(&cluster, 2), Presence::Alive);
        cluster.add("w1", "Unknown", &[]);
        assert_eq!(look(&cluster, 10), Presence::Fading);
        assert_eq!(look(&cluster, 29), Presence::Fading);
        cluster.leases.insert("w1".to_owned(), "8".to_owned());
        assert_eq!(look(&cluster, 31), Presence::Fading);
        assert_eq!(look(&cluster, 50), Presence::Fading);
        assert_eq!(look(&cluster, 51), Presence::Silent);
        // Another Node of the same name begins anew, and one that speaks again is alive.
        cluster.nodes.get_mut("w1").unwrap().uid = "other".to_owned();
        assert_eq!(look(&cluster, 52), Presence::Fading);
        cluster.add("w1", "False", &[]);
        assert_eq!(look(&cluster, 80), Presence::Alive);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut cluster, mut watchman, now) = (Fake::default(), Watchman::default(), Instant::now());
        for number in 0..=MAX_WATCHED {
            let name = format!("w{number}");
            cluster.add(&name, "Unknown", &[]);
            watchman.look(&cluster, &Fake::name(&name), now).unwrap();
        }
        assert_eq!(watchman.seen.len(), MAX_WATCHED);
        watchman.look(&cluster, &Fake::name("w0"), now + FORGET).unwrap();
        assert_eq!(watchman.seen.len(), 1);
    }
}
