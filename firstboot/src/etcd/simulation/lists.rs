//! The inventory: real lists of instances, issued by somebody who learns of machines late and served in any order by
//! somebody hostile.

use std::time::{Duration, SystemTime};

use kimage_roles::inventory::{CLOCK_SKEW, Expected, Instance, InstanceList, InstanceState, MAX_VALIDITY};

use super::net::{Machine, Net, Sabotage, lost};
use crate::etcd::world::Outcome;
use crate::inventory::{Claim, Standing};

/// The moment at which schedules begin, in seconds since 1970.
pub(super) const BEGIN: u64 = 1_795_000_000;
const CLUSTER: &str = "simulated";
/// Seconds between two lists.
const PERIOD: u64 = 30;
/// So many seconds after a machine comes or goes the inventory knows it, at most.
pub(super) const LATE: usize = 90;
/// So far the wall clocks of machines are from the inventory's, in seconds. Clocks and lateness together stay within
/// [`CLOCK_SKEW`].
pub(super) const SKEW: usize = 200;
const _: () = assert!((LATE + SKEW) as u64 <= CLOCK_SKEW.as_secs());

impl Net {
    /// Whoever makes the machines signs what it knows, if the last list is old enough.
    pub(super) fn sign_list(&mut self) {
        let issued_at = BEGIN + self.time.as_secs();
        if self
            .lists
            .last()
            .is_some_and(|list| issued_at < list.issued_at + PERIOD)
        {
            return;
        }
        let known = |machine: &&Machine| {
            machine.exists && machine.named_at <= self.time || !machine.exists && machine.gone_at > self.time
        };
        let instance =
            |machine: &Machine| Instance::new(machine.identity.instance.clone(), InstanceState::Running);
        let list = InstanceList {
            cluster: CLUSTER.to_owned(),
            sequence: self.lists.len() as u64,
            issued_at,
            expires_at: issued_at + MAX_VALIDITY.as_secs(),
            complete: true,
            instances: self.machines.iter().filter(known).map(instance).collect(),
        };
        self.lists.push(list);
    }

    /// A list that the server gives: the last one or any other that hasn't expired.
    fn served_list(&mut self) -> &InstanceList {
        let last = self.lists.len() - 1;
        let old = self.faults && last > 0 && self.random.chance(50);
        self.met.old_lists += usize::from(old);
        let number = if old { self.random.below(last) } else { last };
        &self.lists[number]
    }

    /// What the list that is served says to a machine, which notes what it has seen.
    pub(super) fn standing_by_list(&mut self, me: usize, claim: &Claim) -> Outcome<Standing> {
        let expected = Expected {
            cluster: CLUSTER,
            public_key: "",
            seen: self.machines[me].seen,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(self.wall(me)),
        };
        let timeless = self.sabotage == Some(Sabotage::ListsAreTimeless);
        let list = self.served_list();
        list.believe(&expected).map_err(|_| lost())?;
        let since = if timeless { Some(0) } else { claim.since };
        let (standing, edition) = (list.standing(&claim.instance, since), list.edition());
        self.machines[me].seen = Some(edition);
        Ok(standing)
    }
}
