//! The machines, the record's store and the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kimage_roles::cause::Cause;
use kimage_roles::inventory::{Edition, InstanceList};

use super::Met;
use super::etcd::Cluster;
use super::lists::{BEGIN, LATE, SKEW};
use crate::etcd::world::{Disk, Glance, Launch, Local, Mark, Outcome, World};
use crate::etcd::{Id, Identity, Member, Peer, View};
use crate::failure::Failure;
use crate::inventory::{Claim, Standing};
use crate::record::{Phase, Record, Version, Written};

/// Deliberate faults of the algorithm, made by worlds that lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// The seed listens to all from its first moment.
    ServeBeforePublish,
    /// Whoever is silent counts as gone: takeover and removal by time alone.
    SilenceIsDeath,
    /// A record whose members don't answer counts as absent.
    FormWhenSilent,
    /// The store writes without comparing.
    StoreWithoutCompare,
    /// A member of the list with an empty disk goes on under its name.
    EmptyDiskKeepsVote,
    /// Marks are not kept.
    ForgetsMarks,
    /// Whoever isn't on a list is gone, however old the list is.
    ListsAreTimeless,
}

/// splitmix64: the same numbers for the same seed everywhere.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// True in so many of a hundred cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What etcd has on a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    pub(super) local: Local,
    /// An empty log under the name of a member that had started.
    pub(super) amnesiac: bool,
}

/// A running etcd.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) loopback: bool,
}

/// A machine.
pub(super) struct Machine {
    pub(super) identity: Identity,
    pub(super) exists: bool,
    /// When the inventory learns that it is gone.
    pub(super) gone_at: Duration,
    /// When the inventory learns that it is there.
    pub(super) named_at: Duration,
    /// So far its wall clock is ahead, in seconds.
    pub(super) wall_skew: i64,
    /// The newest list that it has seen; on its disk.
    pub(super) seen: Option<Edition>,
    /// Machines of one group reach each other.
    pub(super) group: usize,
    pub(super) skew: Duration,
    pub(super) mark: Option<Mark>,
    pub(super) data: Option<Data>,
    pub(super) process: Option<Process>,
    /// The process of first boot died in this step.
    pub(super) crashed: bool,
}

/// Everything there is.
pub(super) struct Net {
    pub(super) random: Random,
    pub(super) time: Duration,
    pub(super) faults: bool,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) has_inventory: bool,
    /// All lists that were ever signed; a server may give any of them.
    pub(super) lists: Vec<InstanceList>,
    pub(super) list: Option<Vec<Peer>>,
    pub(super) machines: Vec<Machine>,
    pub(super) clusters: BTreeMap<Id, Cluster>,
    /// All versions of the record; the last is the present one.
    history: Vec<Option<Record>>,
    served: BTreeSet<Id>,
    pub(super) violation: Option<String>,
    pub(super) met: Met,
}

fn identity(instance: usize, address: usize) -> Identity {
    Identity {
        instance: format!("i-{instance}"),
        name: format!("m{address}"),
        peer_url: format!("https://10.0.0.{address}:2380"),
        client_url: format!("https://10.0.0.{address}:2379"),
    }
}

/// FNV-1a.
pub(super) fn hash(text: &str) -> Id {
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    Id(text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

impl Net {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut random = Random(seed);
        let size = [1, 3, 3, 3, 5][random.below(5)];
        let list_wanted = match sabotage {
            Some(Sabotage::EmptyDiskKeepsVote) => true,
            Some(_) => false,
            None => random.chance(33),
        };
        let has_inventory = random.chance(90);
        let mut net = Self {
            random,
            time: Duration::ZERO,
            faults: true,
            sabotage,
            has_inventory,
            lists: Vec::new(),
            list: None,
            machines: Vec::new(),
            clusters: BTreeMap::new(),
            history: vec![None],
            served: BTreeSet::new(),
            violation: None,
            met: Met::default(),
        };
        for address in 0..size {
            net.boot(address);
        }
        net.sign_list();
        let peer = |machine: &Machine| Peer {
            name: machine.identity.name.clone(),
            peer_url: machine.identity.peer_url.clone(),
            client_url: machine.identity.client_url.clone(),
        };
        net.list = list_wanted.then(|| net.machines.iter().map(peer).collect());
        net
    }

    fn boot(&mut self, address: usize) -> usize {
        let number = self.machines.len();
        let delay = Duration::from_secs(self.random.below(LATE) as u64);
        let wall_skew = self.random.below(2 * SKEW) as i64 - SKEW as i64;
        self.machines.push(Machine {
            identity: identity(number, address),
            exists: true,
            gone_at: Duration::ZERO,
            named_at: self.time + delay,
            wall_skew,
            seen: None,
            group: 0,
            skew: Duration::ZERO,
            mark: None,
            data: None,
            process: None,
            crashed: false,
        });
        number
    }

    pub(super) fn existing(&self) -> Vec<usize> {
        (0..self.machines.len())
            .filter(|machine| self.machines[*machine].exists)
            .collect()
    }

    pub(super) fn partition(&mut self) {
        for machine in &mut self.machines {
            machine.group = self.random.below(2);
        }
    }

    pub(super) fn heal(&mut self) {
        for machine in &mut self.machines {
            machine.group = 0;
        }
    }

    /// Removes a machine for ever and boots another.
    pub(super) fn replace(&mut self, machine: usize) -> usize {
        let delay = Duration::from_secs(self.random.below(LATE) as u64);
        let old = &mut self.machines[machine];
        old.exists = false;
        old.process = None;
        old.data = None;
        old.gone_at = self.time + delay;
        let address = old.identity.name[1..].parse().unwrap();
        let same = self.list.is_some() || self.random.chance(50);
        let address = if same { address } else { 100 + self.machines.len() };
        self.boot(address)
    }

    /// The wall clock of a machine, in seconds since 1970.
    pub(super) fn wall(&self, machine: usize) -> u64 {
        (BEGIN + self.time.as_secs()).saturating_add_signed(self.machines[machine].wall_skew)
    }

    pub(super) fn present(&self) -> Option<&Record> {
        self.history.last().and_then(Option::as_ref)
    }

    /// Whether the cluster keeps a quorum of intact disks without this machine, and can know whose its member was.
    pub(super) fn can_spare(&self, machine: usize) -> bool {
        let cluster = match &self.list {
            None => self.present().and_then(|record| record.cluster),
            Some(_) => Some(Cluster::listed_id()),
        };
        let Some(cluster) = cluster.and_then(|cluster| self.clusters.get(&cluster)) else {
            return true;
        };
        if self.list.is_some() && !cluster.members.iter().any(Member::has_started) {
            return true;
        }
        let url = &self.machines[machine].identity.peer_url;
        let own = cluster
            .members
            .iter()
            .find(|member| member.peer_urls.contains(url));
        // The member has started and not yet claimed its address: nobody could say whose it was.
        if own.is_some_and(|own| own.has_started() && !cluster.owners.contains_key(url)) {
            return false;
        }
        let voters: Vec<Id> = cluster
            .members
            .iter()
            .filter(|member| !member.learner)
            .map(|member| member.id)
            .collect();
        let intact = |id: &&Id| {
            self.holder(**id)
                .is_some_and(|holder| holder != machine && self.machines[holder].exists)
        };
        voters.iter().filter(intact).count() > voters.len() / 2
    }

    /// The existing machine with the data of a member.
    pub(super) fn holder(&self, member: Id) -> Option<usize> {
        self.machines.iter().position(|machine| {
            let data = machine.data.filter(|data| !data.amnesiac);
            machine.exists && data.is_some_and(|data| data.local.member == member)
        })
    }

    /// Looks for two clusters that serve.
    pub(super) fn look(&mut self) {
        for machine in self.existing() {
            let (Some(process), Some(data)) = (self.machines[machine].process, self.machines[machine].data)
            else {
                continue;
            };
            if !process.loopback && self.has_quorum(machine) {
                self.served.insert(data.local.cluster);
            }
        }
        if self.served.len() > 1 && self.violation.is_none() {
            self.violation = Some(format!(
                "two clusters serve: {:?}\n{}",
                self.served,
                self.describe()
            ));
        }
    }

    /// Whether every machine is a voting member of the one cluster, nobody else is, and the record says so.
    pub(super) fn is_whole(&self) -> bool {
        let Some(cluster) = self.served.first().and_then(|id| self.clusters.get(id)) else {
            return false;
        };
        let urls: BTreeSet<&String> = self
            .existing()
            .iter()
            .map(|machine| &self.machines[*machine].identity.peer_url)
            .collect();
        let members: BTreeSet<&String> = cluster
            .members
            .iter()
            .filter(|member| !member.learner)
            .flat_map(|member| &member.peer_urls)
            .collect();
        let record = self.present().is_none_or(|record| {
            record.phase == Phase::Formed
                && record.cluster == self.served.first().copied()
                && record.endpoints.len() == members.len()
        });
        urls == members && cluster.members.len() == members.len() && record
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("record: {:?}\n", self.present());
        for machine in self.machines.iter().filter(|machine| machine.exists) {
            let Machine {
                identity,
                mark,
                data,
                process,
                group,
                ..
            } = machine;
            let Identity { instance, name, .. } = identity;
            text += &format!("{instance} at {name} (group {group}): {mark:?} {data:?} {process:?}\n");
        }
        for (id, cluster) in &self.clusters {
            text += &format!("cluster {id}: {:?} {:?}\n", cluster.members, cluster.owners);
        }
        text
    }

    fn is_gone(&self, instance: &str) -> bool {
        !self
            .machines
            .iter()
            .any(|machine| machine.exists && machine.identity.instance == instance)
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It never arrives.
    Lost,
    /// It has its effect and the answer is lost.
    Unanswered,
}

/// One machine's seat in the net.
pub(super) struct Seat<'a> {
    pub(super) net: &'a mut Net,
    pub(super) me: usize,
}

pub(super) fn lost() -> Failure {
    Failure::because(Cause::EtcdForming, "lost")
}

impl Seat<'_> {
    fn fate(&mut self) -> Fate {
        if self.net.machines[self.me].crashed {
            return Fate::Lost;
        }
        if !self.net.faults || !self.net.random.chance(4) {
            return Fate::Done;
        }
        self.net.machines[self.me].crashed = self.net.random.chance(50);
        if self.net.random.chance(50) {
            Fate::Lost
        } else {
            Fate::Unanswered
        }
    }

    fn call<T>(&mut self, act: impl FnOnce(&mut Net, usize) -> Outcome<T>) -> Outcome<T> {
        let fate = self.fate();
        if fate == Fate::Lost {
            return Err(lost());
        }
        let result = act(self.net, self.me);
        self.net.look();
        if fate == Fate::Unanswered {
            Err(lost())
        } else {
            result
        }
    }

    fn write(&mut self, version: Option<usize>, record: &Record) -> Outcome<Written> {
        let record = record.clone();
        self.call(|net, me| {
            let last = net.history.len() - 1;
            let expected = version.unwrap_or(0);
            let blind = match net.sabotage {
                Some(Sabotage::StoreWithoutCompare) => true,
                Some(Sabotage::FormWhenSilent) => {
                    version.is_none() && net.present().is_none_or(|present| present.token != record.token)
                }
                _ => false,
            };
            if expected != last && !blind {
                return Ok(Written::Conflict);
            }
            if let Some(before) = net.present()
                && record.generation > before.generation
                && before.seed != net.machines[me].identity.instance
            {
                net.met.takeovers += 1;
                let seed = net.present().map(|before| before.seed.clone()).unwrap();
                if !net.is_gone(&seed) {
                    net.violation = Some(format!("the formation of {seed}, which exists, was taken over"));
                }
            }
            net.history.push(Some(record));
            Ok(Written::Done)
        })
    }
}

impl World for Seat<'_> {
    fn uptime(&mut self) -> Duration {
        self.net.time + self.net.machines[self.me].skew
    }

    fn now(&mut self) -> String {
        let wall = i64::try_from(self.net.wall(self.me)).unwrap();
        jiff::Timestamp::from_second(wall).unwrap().to_string()
    }

    fn token(&mut self) -> Outcome<String> {
        Ok(format!("{:016x}", self.net.random.next()))
    }

    fn record(&mut self) -> Outcome<Option<(Record, Version)>> {
        self.call(|net, me| {
            let last = net.history.len() - 1;
            let old = net.faults && net.random.chance(15) && last > 0;
            let version = if old { net.random.below(last) } else { last };
            net.met.old_reads += usize::from(old);
            let record = net.history[version].clone();
            if net.sabotage == Some(Sabotage::FormWhenSilent)
                && record.as_ref().is_some_and(|record| {
                    record.phase == Phase::Formed && net.ask(me, &record.endpoints).is_none()
                })
                && net.machines[me].mark.is_none()
            {
                return Ok(None);
            }
            Ok(record.map(|record| (record, Version(version.to_string()))))
        })
    }

    fn create_record(&mut self, record: &Record) -> Outcome<Written> {
        self.write(None, record)
    }

    fn replace_record(&mut self, version: &Version, record: &Record) -> Outcome<Written> {
        self.write(Some(version.0.parse().unwrap_or(usize::MAX)), record)
    }

    fn disk(&mut self) -> Outcome<Disk> {
        self.call(|net, me| {
            let machine = &net.machines[me];
            Ok(Disk {
                mark: machine.mark.clone(),
                data: machine.data.is_some(),
            })
        })
    }

    fn mark(&mut self, mark: Option<&Mark>) -> Outcome<()> {
        let mark = mark.cloned();
        self.call(|net, me| {
            let forgets = net.sabotage == Some(Sabotage::ForgetsMarks);
            net.machines[me].mark = mark.filter(|mark| !forgets || matches!(mark, Mark::Seeding { .. }));
            Ok(())
        })
    }

    fn erase(&mut self) -> Outcome<()> {
        self.call(|net, me| {
            net.machines[me].process = None;
            net.machines[me].data = None;
            Ok(())
        })
    }

    fn run(&mut self, launch: &Launch) -> Outcome<Option<Local>> {
        self.call(|net, me| Ok(net.launch(me, launch)))
    }

    fn glance(&mut self, client_url: &str) -> Glance {
        if self.fate() != Fate::Done {
            return Glance::Silent;
        }
        self.net.glance(self.me, client_url)
    }

    fn view(&mut self, endpoints: &[String]) -> Outcome<View> {
        self.call(|net, me| net.view(me, endpoints))
    }

    fn is_alive(&mut self, member: &Member) -> bool {
        self.fate() == Fate::Done && self.net.reaches_member(self.me, member.id)
    }

    fn claim(&mut self, endpoints: &[String], peer_url: &str, instance: &str) -> Outcome<()> {
        let claim = Claim {
            instance: instance.to_owned(),
            since: Some(self.net.wall(self.me)),
        };
        self.call(|net, me| {
            let cluster = net.cluster(me, endpoints)?;
            cluster.owners.insert(peer_url.to_owned(), claim);
            Ok(())
        })
    }

    fn lock(&mut self, endpoints: &[String], instance: &str) -> Outcome<bool> {
        self.call(|net, me| {
            let now = net.time;
            // Leases end early or late.
            let until = now + Duration::from_secs(net.random.below(40) as u64);
            let cluster = net.cluster(me, endpoints)?;
            match &cluster.lock {
                Some((owner, until)) if owner != instance && *until > now => return Ok(false),
                _ => cluster.lock = Some((instance.to_owned(), until)),
            }
            Ok(true)
        })
    }

    fn unlock(&mut self, endpoints: &[String], instance: &str) -> Outcome<()> {
        self.call(|net, me| {
            let cluster = net.cluster(me, endpoints)?;
            if cluster.lock.as_ref().is_some_and(|(owner, _)| owner == instance) {
                cluster.lock = None;
            }
            Ok(())
        })
    }

    fn add_learner(&mut self, endpoints: &[String], peer_url: &str) -> Outcome<Id> {
        self.call(|net, me| net.add_learner(me, endpoints, peer_url))
    }

    fn promote(&mut self, endpoints: &[String], member: Id) -> Outcome<()> {
        self.call(|net, me| net.promote(me, endpoints, member))
    }

    fn hand_over(&mut self, _: &Member) -> Outcome<()> {
        // The model has no leader.
        self.call(|_, _| Ok(()))
    }

    fn remove(&mut self, endpoints: &[String], member: Id) -> Outcome<()> {
        self.call(|net, me| net.remove(me, endpoints, member))
    }

    fn standing(&mut self, claim: &Claim) -> Outcome<Standing> {
        let claim = claim.clone();
        self.call(|net, me| {
            if net.sabotage == Some(Sabotage::SilenceIsDeath) {
                return Ok(Standing::Gone);
            }
            if !net.has_inventory {
                return Ok(Standing::Unknown);
            }
            net.standing_by_list(me, &claim)
        })
    }
}
