//! Forms or joins the one cluster of etcd, and never a second.
//!
//! Every step looks at the world anew (the mark on the own disk, the record or the fixed list, the members), does at most
//! one thing that others can see, and may be cut off anywhere: the next step, of this process or of the one after a power
//! cut, goes on from what it finds. What keeps it safe, in short:
//!
//! - A seed listens on loopback only until its record says `formed` ("publish before serve"). Every generation of the
//!   record is claimed by one compare-and-swap, so of two seeds at most one ever publishes, whoever believed what.
//! - The mark is written before the act it speaks of, and says which generation, token or member the data belongs to.
//! - Own data is erased only after something that can't be undone: a later generation of the record, or a quorum's word
//!   that the member is removed.
//! - An empty disk never takes up the vote of a member that has started: it is removed and comes back as a learner.

use std::collections::BTreeMap;
use std::time::Duration;

use kimage_roles::cause::Cause;

use super::leave::Departure;
use super::membership;
use super::world::{Glance, Launch, Local, Mark, Means, Outcome, World};
use super::{Id, Identity, Member, Peer, View};
use crate::failure::Failure;
use crate::inventory::Standing;
use crate::record::{Phase, Record, Version, Written};

/// How a step ended.
#[derive(Debug)]
pub enum Step {
    /// Something was done; the next step can follow at once.
    Working,
    /// Nothing to do but to wait for others; try again in a second or so.
    Waiting(Failure),
    /// This machine is a voting member.
    Settled(Settled),
}

/// What a settled member knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Id of the cluster.
    pub cluster: Id,
    /// Id of the own member.
    pub member: Id,
    /// Client URLs of the voting members, sorted.
    pub endpoints: Vec<String>,
    /// What a person should know: dead members that nobody removes, and why.
    pub notes: Vec<String>,
}

/// How long to watch before acting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A record must have said `forming` without a change for so long, and the inventory that its seed is gone. The
    /// compare-and-swap is what makes a takeover safe; this only spares needless ones.
    pub takeover: Duration,
    /// Machines of a fixed list that are silent (not: refuse) are waited for so long.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            takeover: Duration::from_secs(60),
            silence: Duration::from_secs(60),
        }
    }
}

/// The formation of one machine. What it holds besides its identity are only stopwatches.
#[derive(Debug)]
pub struct Formation {
    pub(super) identity: Identity,
    pub(super) means: Means,
    patience: Patience,
    /// The claim that is being watched, and since when.
    watched: Option<(u64, String, Duration)>,
    /// Since when machines of the list are silent.
    silence: Option<Duration>,
}

pub(super) fn waiting(cause: Cause, text: impl std::fmt::Display) -> Outcome<Step> {
    Ok(Step::Waiting(Failure::because(cause, text)))
}

impl Formation {
    /// Formation of the machine `identity`.
    pub fn new(identity: Identity, means: Means, patience: Patience) -> Self {
        Self {
            identity,
            means,
            patience,
            watched: None,
            silence: None,
        }
    }

    /// Goes one step on. An error is a fault of the moment unless its cause is lasting: call again.
    pub fn step(&mut self, world: &mut dyn World) -> Outcome<Step> {
        let disk = world.disk()?;
        match disk.mark {
            Some(Mark::Seeding { generation, token }) => self.seed(world, disk.data, generation, &token),
            Some(Mark::Listed) => self.listed(world, disk.data),
            Some(Mark::Joining { cluster, member }) => {
                self.joining(world, disk.data, Local { cluster, member })
            }
            Some(Mark::Member { cluster, member }) if disk.data => {
                self.member(world, Some(Local { cluster, member }))
            }
            Some(Mark::Leaving { .. } | Mark::Left) => self.departing(world),
            // etcd's own disk was replaced: the machine is known to the cluster, so it must not begin anew.
            Some(Mark::Member { .. }) => self.fresh(world, false),
            // With the mark `known`, somebody put the data there by hand.
            Some(Mark::Known) | None if disk.data => self.member(world, None),
            Some(Mark::Known) => self.fresh(world, false),
            None => self.fresh(world, true),
        }
    }

    /// A machine that began to leave ends by leaving, and stays out.
    fn departing(&mut self, world: &mut dyn World) -> Outcome<Step> {
        match self.leave(world)? {
            Departure::Working => Ok(Step::Working),
            Departure::Waiting(failure) => Ok(Step::Waiting(failure)),
            Departure::Gone => Err(Failure::because(
                Cause::EtcdLeft,
                "this machine's member left etcd, as it was told to",
            )),
        }
    }

    /// Where a quorum may be asked: what the list or the record names.
    pub(super) fn endpoints(&self, world: &mut dyn World) -> Outcome<Vec<String>> {
        match &self.means {
            Means::List(peers) => Ok(peers.iter().map(|peer| peer.client_url.clone()).collect()),
            Means::Record => {
                let record = world.record()?.map(|(record, _)| record);
                Ok(record.map(|record| record.endpoints).unwrap_or_default())
            }
        }
    }

    /// No data: `may_form` when the disk has no mark either.
    fn fresh(&mut self, world: &mut dyn World, may_form: bool) -> Outcome<Step> {
        match self.means.clone() {
            Means::Record => self.fresh_by_record(world, may_form),
            Means::List(peers) => self.fresh_by_list(world, &peers, may_form),
        }
    }

    fn fresh_by_record(&mut self, world: &mut dyn World, may_form: bool) -> Outcome<Step> {
        let Some((record, _)) = world.record()? else {
            if !may_form {
                return waiting(
                    Cause::EtcdUnavailable,
                    "this machine was a member, its data is lost and the record is gone: restore the record",
                );
            }
            return self.claim_generation(world, 1);
        };
        match record.phase {
            Phase::Formed => {
                let cluster = record.cluster;
                membership::join(self, world, &record.endpoints, cluster)
            }
            Phase::Restoring => waiting(Cause::EtcdForming, "etcd is being restored from a snapshot"),
            Phase::Forming if self.may_take_over(world, &record)? => {
                self.claim_generation(world, record.generation.saturating_add(1))
            }
            Phase::Forming => {
                let (seed, since) = (&record.seed, &record.since);
                waiting(
                    Cause::EtcdForming,
                    format!("instance {seed} has been forming etcd since {since}"),
                )
            }
        }
    }

    fn claim_generation(&mut self, world: &mut dyn World, generation: u64) -> Outcome<Step> {
        let token = world.token()?;
        world.mark(Some(&Mark::Seeding { generation, token }))?;
        Ok(Step::Working)
    }

    /// Whether the seed of `record` is this instance, or is gone by the inventory's word after a while without a change.
    fn may_take_over(&mut self, world: &mut dyn World, record: &Record) -> Outcome<bool> {
        if record.seed == self.identity.instance {
            return Ok(true);
        }
        let now = world.uptime();
        let since = match &self.watched {
            Some((generation, token, since))
                if *generation == record.generation && *token == record.token =>
            {
                *since
            }
            _ => {
                self.watched = Some((record.generation, record.token.clone(), now));
                now
            }
        };
        if now.saturating_sub(since) < self.patience.takeover {
            return Ok(false);
        }
        Ok(world.standing(&record.claim())? == Standing::Gone)
    }

    /// Claims a generation of the record, makes the cluster on loopback, publishes it, and only then serves.
    fn seed(&mut self, world: &mut dyn World, data: bool, generation: u64, token: &str) -> Outcome<Step> {
        let claim = Record {
            phase: Phase::Forming,
            generation,
            seed: self.identity.instance.clone(),
            token: token.to_owned(),
            cluster: None,
            endpoints: Vec::new(),
            since: world.now(),
        };
        let Some((record, version)) = world.record()? else {
            // Absent, or an old read: only the store can say.
            world.create_record(&claim)?;
            return Ok(Step::Working);
        };
        if (record.generation, record.token.as_str()) == (generation, token) {
            return match record.phase {
                Phase::Forming => self.publish(world, &record, &version),
                Phase::Formed => {
                    let Some(local) = world.run(&Launch::Seed {
                        token: token.to_owned(),
                    })?
                    else {
                        return waiting(Cause::EtcdForming, "the local etcd doesn't answer yet");
                    };
                    let Local { cluster, member } = local;
                    world.mark(Some(&Mark::Member { cluster, member }))?;
                    Ok(Step::Working)
                }
                Phase::Restoring => waiting(Cause::EtcdForming, "etcd is being restored from a snapshot"),
            };
        }
        if record.generation >= generation {
            // A generation belongs to one claim for ever, and later ones end earlier ones: this seed has lost.
            world.erase()?;
            world.mark(None)?;
            return Ok(Step::Working);
        }
        if data {
            // There is data only after the record said this generation: what was read now is old.
            return waiting(Cause::EtcdForming, "the record's store gives an old record");
        }
        let next = record.generation.checked_add(1) == Some(generation);
        if next && record.phase == Phase::Forming && self.may_take_over(world, &record)? {
            world.replace_record(&version, &claim)?;
        } else {
            world.mark(None)?;
        }
        Ok(Step::Working)
    }

    fn publish(&mut self, world: &mut dyn World, record: &Record, version: &Version) -> Outcome<Step> {
        let launch = Launch::Seed {
            token: record.token.clone(),
        };
        let Some(local) = world.run(&launch)? else {
            return waiting(Cause::EtcdForming, "the local etcd doesn't answer yet");
        };
        // A store that ignores conditions could publish two clusters: it must refuse the record that it already has, and
        // one that replaces what never was.
        let never = Version("\"kimage-never\"".to_owned());
        if world.create_record(record)? == Written::Done
            || world.replace_record(&never, record)? == Written::Done
        {
            return Err(Failure::because(
                Cause::EtcdForming,
                "the record's store writes without comparing: no cluster can be formed with it",
            ));
        }
        // Before anybody can see the cluster it knows whose its first member is.
        world.claim(&[], &self.identity.peer_url, &self.identity.instance)?;
        let formed = Record {
            phase: Phase::Formed,
            cluster: Some(local.cluster),
            endpoints: vec![self.identity.client_url.clone()],
            since: world.now(),
            ..record.clone()
        };
        // Whatever the answer: the next step reads what the record says now.
        world.replace_record(version, &formed)?;
        Ok(Step::Working)
    }

    /// No data, and a fixed list: a member of a new cluster only if nobody knows this member as started.
    fn fresh_by_list(&mut self, world: &mut dyn World, peers: &[Peer], may_form: bool) -> Outcome<Step> {
        let survey = self.survey(world, peers)?;
        if let Some((cluster, members)) = survey.found {
            let here = |member: &&Member| member.peer_urls.contains(&self.identity.peer_url);
            let own = members.iter().find(here);
            if may_form && own.is_some_and(|own| !own.has_started() && !own.learner) {
                world.mark(Some(&Mark::Listed))?;
                return Ok(Step::Working);
            }
            let endpoints = self.endpoints(world)?;
            return membership::join(self, world, &endpoints, Some(cluster));
        }
        if !may_form {
            return waiting(
                Cause::EtcdUnavailable,
                "this machine was a member, its data is lost and no other member answers",
            );
        }
        let now = world.uptime();
        let since = *self.silence.get_or_insert(now);
        let silent = peers.len().saturating_sub(survey.up);
        if survey.up <= peers.len() / 2 && now.saturating_sub(since) < self.patience.silence {
            return waiting(
                Cause::EtcdForming,
                format!("{silent} of {} etcd machines are silent", peers.len()),
            );
        }
        world.mark(Some(&Mark::Listed))?;
        Ok(Step::Working)
    }

    fn survey(&self, world: &mut dyn World, peers: &[Peer]) -> Outcome<Survey> {
        let mut survey = Survey { up: 1, found: None };
        for peer in peers
            .iter()
            .filter(|peer| peer.peer_url != self.identity.peer_url)
        {
            match world.glance(&peer.client_url) {
                Glance::Silent => {}
                Glance::Refused => survey.up += 1,
                Glance::Foreign(why) => {
                    let text = format!("{} at {}: {why}", peer.name, peer.client_url);
                    return Err(Failure::because(Cause::EtcdForeign, text));
                }
                Glance::Answer(cluster, members) => {
                    survey.up += 1;
                    match &mut survey.found {
                        Some((other, _)) if *other != cluster => {
                            let text = format!(
                                "{} at {} is of cluster {cluster}, others of the list are of {other}",
                                peer.name, peer.client_url
                            );
                            return Err(Failure::because(Cause::EtcdForeign, text));
                        }
                        Some((_, known)) => merge(known, members),
                        None => survey.found = Some((cluster, members)),
                    }
                }
            }
        }
        Ok(survey)
    }

    /// Began as a member of the fixed list and isn't known to have got there.
    fn listed(&mut self, world: &mut dyn World, data: bool) -> Outcome<Step> {
        let Means::List(peers) = self.means.clone() else {
            return Err(Failure::because(
                Cause::ConfigChanged,
                "this machine began by a fixed list, and its NodeConfig now names a record",
            ));
        };
        if !data {
            let survey = self.survey(world, &peers)?;
            let own = |member: &Member| member.peer_urls.contains(&self.identity.peer_url);
            let started = |member: &Member| own(member) && member.has_started();
            let known = survey.found.map(|(_, members)| members);
            if known.is_some_and(|members| !members.iter().any(own) || members.iter().any(started)) {
                world.mark(Some(&Mark::Known))?;
                return Ok(Step::Working);
            }
        }
        let local = world.run(&Launch::Listed(peers))?;
        let endpoints = self.endpoints(world)?;
        let Ok(view) = world.view(&endpoints) else {
            return waiting(
                Cause::EtcdForming,
                "waiting for a quorum of the etcd machines of the list",
            );
        };
        // A member claims its address only after its mark says `member`: this claim is of an earlier disk or instance.
        if view.owners.contains_key(&self.identity.peer_url) {
            world.erase()?;
            world.mark(Some(&Mark::Known))?;
            return Ok(Step::Working);
        }
        match local {
            Some(local) if local.cluster != view.cluster => Err(foreign(local.cluster, view.cluster)),
            Some(Local { cluster, member }) if view.member(member).is_some_and(Member::has_started) => {
                world.mark(Some(&Mark::Member { cluster, member }))?;
                Ok(Step::Working)
            }
            _ => waiting(Cause::EtcdForming, "the local etcd isn't a member yet"),
        }
    }

    /// Was added as a learner: starts, until the cluster knows it as started.
    fn joining(&mut self, world: &mut dyn World, data: bool, own: Local) -> Outcome<Step> {
        let endpoints = self.endpoints(world)?;
        let view = match world.view(&endpoints) {
            Ok(view) => view,
            Err(failure) => {
                if data {
                    world.run(&Launch::Resume)?;
                }
                return Ok(Step::Waiting(failure));
            }
        };
        if view.cluster != own.cluster {
            return Err(foreign(own.cluster, view.cluster));
        }
        let member = view.member(own.member);
        if member.is_none_or(|member| !data && member.has_started()) {
            // Removed meanwhile, or its disk is gone: what is left here is of no use to anybody.
            world.erase()?;
            world.mark(Some(&Mark::Known))?;
            return Ok(Step::Working);
        }
        let local = world.run(&Launch::Join(self.initial_cluster(&view)))?;
        if local.is_some_and(|local| local == own) && member.is_some_and(Member::has_started) {
            let Local { cluster, member } = own;
            world.mark(Some(&Mark::Member { cluster, member }))?;
            return Ok(Step::Working);
        }
        waiting(Cause::EtcdForming, "the local etcd isn't a member yet")
    }

    /// Names don't matter to etcd here (it matches by URL) but must differ, and the own one must be right.
    fn initial_cluster(&self, view: &View) -> Vec<(String, String)> {
        let mut names = BTreeMap::new();
        for member in &view.members {
            let own = member.peer_urls.contains(&self.identity.peer_url);
            let name = if own {
                self.identity.name.clone()
            } else {
                member.id.to_string()
            };
            for url in &member.peer_urls {
                names.insert(url.clone(), name.clone());
            }
        }
        names.into_iter().map(|(url, name)| (name, url)).collect()
    }

    /// Has data: runs from it, whatever the record says, unless the record names another cluster.
    fn member(&mut self, world: &mut dyn World, own: Option<Local>) -> Outcome<Step> {
        let record = if self.means == Means::Record {
            world.record().ok().flatten()
        } else {
            None
        };
        if let (Some(own), Some((record, _))) = (own, &record)
            && let Some(cluster) = record.cluster
            && cluster != own.cluster
        {
            let text = format!(
                "the disk belongs to etcd cluster {}, the record names {cluster}",
                own.cluster
            );
            return Err(Failure::because(Cause::StateForeign, text));
        }
        membership::keep(self, world, own, record)
    }
}

/// What the machines of a fixed list say.
struct Survey {
    /// Machines that are there, this one included.
    up: usize,
    found: Option<(Id, Vec<Member>)>,
}

/// A member has started if anybody knows so: a lagging answer must not hide it.
fn merge(known: &mut Vec<Member>, members: Vec<Member>) {
    for member in members {
        match known.iter_mut().find(|other| other.id == member.id) {
            Some(other) if !other.has_started() => *other = member,
            Some(_) => {}
            None => known.push(member),
        }
    }
}

pub(super) fn foreign(own: Id, other: Id) -> Failure {
    let text = format!("cluster {other} answers where {own} should be");
    Failure::because(Cause::EtcdForeign, text)
}
