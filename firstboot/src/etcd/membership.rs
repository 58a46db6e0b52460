//! Members come as learners, get their vote, and go: one change at a time, under a lock in etcd, never by guess.

use kimage_roles::cause::Cause;

use super::formation::{Formation, Settled, Step, foreign, waiting};
use super::world::{Launch, Local, Mark, Means, Outcome, World};
use super::{Id, Member, View};
use crate::inventory::Standing;
use crate::record::{Phase, Record, Version};

/// Adds this machine to the living cluster at `endpoints`, as a learner.
pub(super) fn join(
    formation: &Formation,
    world: &mut dyn World,
    endpoints: &[String],
    cluster: Option<Id>,
) -> Outcome<Step> {
    let identity = &formation.identity;
    let view = world.view(endpoints)?;
    if let Some(cluster) = cluster
        && view.cluster != cluster
    {
        return Err(foreign(cluster, view.cluster));
    }
    let Some(there) = view.at(&identity.peer_url) else {
        return add(formation, world, endpoints);
    };
    match view.owner(there) {
        Some(owner) if owner == identity.instance && !there.has_started() && there.learner => {
            world.mark(Some(&Mark::Joining {
                cluster: view.cluster,
                member: there.id,
            }))?;
            Ok(Step::Working)
        }
        // Its own earlier member, whose data is lost: it must not vote again with an empty log.
        Some(owner) if owner == identity.instance => {
            if remove(formation, world, endpoints, there.id)? {
                return Ok(Step::Working);
            }
            waiting(
                Cause::EtcdForming,
                "this machine's earlier member can't be removed before enough others are alive",
            )
        }
        Some(owner) if judge(world, &view, there)? == Standing::Gone => waiting(
            Cause::EtcdForming,
            format!(
                "member {} of instance {owner}, which is gone, is being removed",
                there.id
            ),
        ),
        owner => {
            let whose = owner.map_or("an unknown instance".to_owned(), |owner| {
                format!("instance {owner}")
            });
            let text = format!(
                "{} is member {} of {whose}, and no inventory says that it is gone",
                identity.peer_url, there.id
            );
            let cause = if world.is_alive(there) {
                Cause::EtcdForeign
            } else {
                Cause::EtcdForming
            };
            waiting(cause, text)
        }
    }
}

fn add(formation: &Formation, world: &mut dyn World, endpoints: &[String]) -> Outcome<Step> {
    let identity = &formation.identity;
    if !world.lock(endpoints, &identity.instance)? {
        return waiting(
            Cause::EtcdForming,
            "another machine is changing etcd's membership",
        );
    }
    // The claim comes first, so that a learner that never starts is known to be of this instance.
    let added = world
        .claim(endpoints, &identity.peer_url, &identity.instance)
        .and_then(|()| world.add_learner(endpoints, &identity.peer_url));
    // The lease gives the lock back if this doesn't.
    drop(world.unlock(endpoints, &identity.instance));
    added?;
    // The next step finds the member and notes its id.
    Ok(Step::Working)
}

/// Keeps a machine with data what it is: a running member, with a vote, in good company.
pub(super) fn keep(
    formation: &mut Formation,
    world: &mut dyn World,
    own: Option<Local>,
    record: Option<(Record, Version)>,
) -> Outcome<Step> {
    let mut endpoints = vec![formation.identity.client_url.clone()];
    match &formation.means {
        Means::List(peers) => endpoints.extend(peers.iter().map(|peer| peer.client_url.clone())),
        Means::Record => endpoints.extend(record.iter().flat_map(|(record, _)| record.endpoints.clone())),
    }
    let local = world.run(&Launch::Resume)?;
    let view = world.view(&endpoints);
    if let (Some(own), Ok(view)) = (own, &view)
        && view.cluster == own.cluster
        && view.member(own.member).is_none()
    {
        // A quorum says that this member was removed; its log is of no use any more.
        world.erase()?;
        world.mark(Some(&Mark::Known))?;
        return Ok(Step::Working);
    }
    let Some(local) = local else {
        return waiting(Cause::EtcdUnavailable, "the local etcd doesn't answer");
    };
    match own {
        Some(own) if own != local => return Err(foreign(own.cluster, local.cluster)),
        Some(_) => {}
        None => {
            let Local { cluster, member } = local;
            world.mark(Some(&Mark::Member { cluster, member }))?;
            return Ok(Step::Working);
        }
    }
    let view = view?;
    if view.cluster != local.cluster {
        return Err(foreign(local.cluster, view.cluster));
    }
    let Some(member) = view.member(local.member) else {
        return waiting(Cause::EtcdUnavailable, "the local etcd isn't a member");
    };
    let claim = view.claim(member).filter(|claim| claim.since.is_some());
    if claim.is_none_or(|claim| claim.instance != formation.identity.instance) {
        let identity = &formation.identity;
        world.claim(&endpoints, &identity.peer_url, &identity.instance)?;
        return Ok(Step::Working);
    }
    let voters = client_urls(&view);
    if member.learner {
        return match world.promote(&voters, local.member) {
            Ok(()) => Ok(Step::Working),
            Err(failure) => Ok(Step::Waiting(failure)),
        };
    }
    tend(formation, world, &view, local, voters, record)
}

/// What a voting member does for the others.
fn tend(
    formation: &Formation,
    world: &mut dyn World,
    view: &View,
    local: Local,
    voters: Vec<String>,
    record: Option<(Record, Version)>,
) -> Outcome<Step> {
    let mut notes = Vec::new();
    if let Some((record, version)) = record
        && record.phase == Phase::Formed
        && record.cluster == Some(local.cluster)
        && record.endpoints != voters
    {
        let fresh = Record {
            endpoints: voters.clone(),
            ..record
        };
        // Joining machines ask there. That the store doesn't answer is no fault of a member.
        if let Err(failure) = world.replace_record(&version, &fresh) {
            notes.push(format!("the record's endpoints are not up to date: {failure}"));
        }
    }
    for member in view.members.iter().filter(|member| member.id != local.member) {
        if world.is_alive(member) {
            continue;
        }
        match judge(world, view, member) {
            Ok(Standing::Gone) => match remove(formation, world, &voters, member.id) {
                Ok(true) => return Ok(Step::Working),
                Ok(false) => notes.push(format!(
                    "member {} is of an instance that is gone; it can't be removed now",
                    member.id
                )),
                Err(failure) => notes.push(format!("member {} can't be removed: {failure}", member.id)),
            },
            Ok(Standing::Present) => notes.push(format!(
                "member {} doesn't answer; the inventory says its instance exists",
                member.id
            )),
            Ok(Standing::Newer) => notes.push(format!(
                "member {} doesn't answer; its instance isn't on the inventory's list, which may be older than it",
                member.id
            )),
            Ok(Standing::Unknown) => notes.push(format!(
                "member {} doesn't answer and is never removed: no inventory speaks of its instance",
                member.id
            )),
            Err(failure) => notes.push(format!("member {} doesn't answer: {failure}", member.id)),
        }
    }
    Ok(Step::Settled(Settled {
        cluster: local.cluster,
        member: local.member,
        endpoints: voters,
        notes,
    }))
}

fn judge(world: &mut dyn World, view: &View, member: &Member) -> Outcome<Standing> {
    view.claim(member)
        .map_or(Ok(Standing::Unknown), |claim| world.standing(claim))
}

/// Removes one member of a gone instance, or this machine's own earlier one, if that leaves a living quorum. Everything
/// is looked at again under the lock. `false`: not now.
fn remove(formation: &Formation, world: &mut dyn World, endpoints: &[String], id: Id) -> Outcome<bool> {
    let instance = &formation.identity.instance;
    if !world.lock(endpoints, instance)? {
        return Ok(false);
    }
    let removed = remove_locked(instance, world, endpoints, id);
    // The lease gives the lock back if this doesn't.
    drop(world.unlock(endpoints, instance));
    removed
}

fn remove_locked(instance: &str, world: &mut dyn World, endpoints: &[String], id: Id) -> Outcome<bool> {
    let view = world.view(endpoints)?;
    let Some(member) = view.member(id) else {
        return Ok(true);
    };
    let own = view.owner(member) == Some(instance);
    if !own && judge(world, &view, member)? != Standing::Gone || world.is_alive(member) {
        return Ok(false);
    }
    let left: Vec<&Member> = view.voters().filter(|voter| voter.id != id).collect();
    let alive = left.iter().filter(|voter| world.is_alive(voter)).count();
    if alive <= left.len() / 2 {
        return Ok(false);
    }
    world.remove(endpoints, id)?;
    Ok(true)
}

/// Client URLs of the members that vote, sorted.
fn client_urls(view: &View) -> Vec<String> {
    let mut urls: Vec<String> = view
        .voters()
        .flat_map(|member| member.client_urls.clone())
        .collect();
    urls.sort();
    urls.dedup();
    urls
}
