//! What both benches can do with a machine of a cluster.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use kimage_roles::status::{Phase, Status};

use crate::namespaces::network::Network;

/// A machine that is made from a built image and keeps its disk while it is off. Dropping it switches it off and scraps
/// the disk.
pub trait Machine: Sized {
    /// What a cluster of such machines has beside them.
    type Site: Site;

    /// Its host name.
    fn name(&self) -> &str;

    /// Its address in the network.
    fn address(&self) -> Ipv4Addr;

    /// The platform's id of it.
    fn instance(&self) -> &str;

    /// Switches it on.
    fn start(&mut self) -> Result<()>;

    /// Cuts its power: what it has not flushed may be lost. One that is off stays so.
    fn kill(&mut self) -> Result<()>;

    /// Waits until first boot has come to `phase` or beyond.
    ///
    /// # Errors
    ///
    /// It failed for good, the machine ended, or `deadline` passed; with the end of what the machine said.
    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status>;

    /// What it has done since it was switched on, in order, and how long each took.
    fn phases(&mut self) -> Vec<(String, Duration)>;

    /// Scraps it and makes a fresh one with the same image, name and address that is another `instance`.
    fn renew(self, network: &Network, site: &Self::Site, instance: &str) -> Result<Self>;
}

/// The surroundings of a cluster's machines.
pub trait Site {
    /// From now on machines find this signed list of instances.
    fn publish(&self, document: &[u8]) -> Result<()>;
}

/// What of first boot's reports tells how long a phase took: each that is done, and at the end the sum.
pub(crate) fn durations(reports: impl Iterator<Item = Status>) -> impl Iterator<Item = (String, Duration)> {
    use kimage_roles::status::Outcome;
    let done = reports.filter(|status| status.outcome == Outcome::Done);
    done.map(|status| match status.phase {
        Phase::InService => (
            "in all".to_owned(),
            Duration::from_millis(status.total_milliseconds),
        ),
        phase => (
            phase.as_str().to_owned(),
            Duration::from_millis(status.duration_milliseconds),
        ),
    })
}
