//! Leaving etcd in good order: the member gives its vote back while the others are able to go on, and its machine never
//! takes a vote up again. This is what happens to a machine that is about to be destroyed on purpose; of one that was
//! destroyed without notice the others remove the member by the inventory's word ([`super::membership`]).

use kimage_roles::cause::Cause;

use super::formation::{Formation, foreign};
use super::world::{Launch, Local, Mark, Outcome, World};
use super::{Identity, Member, View};
use crate::failure::Failure;

/// How a step of leaving ended.
#[derive(Debug)]
pub enum Departure {
    /// Something was done; the next step can follow at once.
    Working,
    /// The member can't leave now; try again in a second or so.
    Waiting(Failure),
    /// This machine is no member and has no data of one.
    Gone,
}

fn waiting(text: impl std::fmt::Display) -> Outcome<Departure> {
    Ok(Departure::Waiting(Failure::because(Cause::EtcdUnavailable, text)))
}

impl Formation {
    /// Goes one step towards leaving. Like [`Formation::step`] it may be cut off anywhere; once the member is being
    /// removed only leaving goes on, after a power cut too.
    pub fn leave(&mut self, world: &mut dyn World) -> Outcome<Departure> {
        let disk = world.disk()?;
        let noted = match disk.mark {
            Some(Mark::Left) if disk.data => {
                world.erase()?;
                return Ok(Departure::Working);
            }
            Some(Mark::Left) => return Ok(Departure::Gone),
            Some(
                Mark::Member { cluster, member }
                | Mark::Joining { cluster, member }
                | Mark::Leaving { cluster, member },
            ) => Some(Local { cluster, member }),
            Some(Mark::Known) => None,
            _ => return waiting("this machine isn't a member of etcd: it has nothing to leave"),
        };
        let endpoints = self.others(world)?;
        let view = match world.view(&endpoints) {
            Ok(view) => view,
            Err(failure) => {
                // After a power cut the others may need this very member for the quorum that lets it go.
                if disk.data {
                    world.run(&Launch::Resume)?;
                }
                return Ok(Departure::Waiting(failure));
            }
        };
        if let Some(Local { cluster, .. }) = noted
            && cluster != view.cluster
        {
            return Err(foreign(cluster, view.cluster));
        }
        let Some(member) = self.own_member(&view, noted) else {
            // A quorum says so: the log is of no more use. The mark comes first; without it an empty disk could come back.
            world.mark(Some(&Mark::Left))?;
            return Ok(Departure::Working);
        };
        let Identity {
            instance, peer_url, ..
        } = self.identity.clone();
        let own = Local {
            cluster: view.cluster,
            member: member.id,
        };
        if view.owner(member) != Some(&instance) {
            // A machine of the fixed list that comes after this one must see that the address was somebody's.
            world.claim(&endpoints, &peer_url, &instance)?;
            return Ok(Departure::Working);
        }
        if !world.lock(&endpoints, &instance)? {
            return waiting("another machine is changing etcd's membership");
        }
        let left = leave_locked(world, &endpoints, own);
        // The lease gives the lock back if this doesn't.
        drop(world.unlock(&endpoints, &instance));
        left
    }

    /// The member that the mark names, or one that was added for this instance and isn't noted yet.
    fn own_member<'a>(&self, view: &'a View, noted: Option<Local>) -> Option<&'a Member> {
        let noted = noted.and_then(|noted| view.member(noted.member));
        noted.or_else(|| {
            let there = view.at(&self.identity.peer_url);
            there.filter(|there| view.owner(there) == Some(&self.identity.instance))
        })
    }

    /// The endpoints to ask, the own last: it stops answering when its member is removed.
    fn others(&self, world: &mut dyn World) -> Outcome<Vec<String>> {
        let own = &self.identity.client_url;
        let mut endpoints = self.endpoints(world)?;
        endpoints.retain(|url| url != own);
        endpoints.push(own.clone());
        Ok(endpoints)
    }
}

fn leave_locked(world: &mut dyn World, endpoints: &[String], own: Local) -> Outcome<Departure> {
    let Local { cluster, member } = own;
    let view = world.view(endpoints)?;
    let heir = match heir(world, &view, own) {
        Ok(heir) => heir,
        Err(why) => return waiting(why),
    };
    world.mark(Some(&Mark::Leaving { cluster, member }))?;
    // A leader that is removed makes the others elect a new one first: a second or so without writes, no harm.
    drop(world.hand_over(&heir));
    world.remove(endpoints, member)?;
    Ok(Departure::Working)
}

/// A living voter among the others, if a majority of them is alive without this member.
fn heir(world: &mut dyn World, view: &View, own: Local) -> Result<Member, String> {
    let others: Vec<&Member> = view.voters().filter(|voter| voter.id != own.member).collect();
    if others.is_empty() {
        return Err("this is the last member: etcd would end with it".to_owned());
    }
    let alive: Vec<&&Member> = others.iter().filter(|voter| world.is_alive(voter)).collect();
    match alive.first() {
        Some(first) if alive.len() > others.len() / 2 => Ok((**first).clone()),
        _ => Err(format!(
            "{} of the {} other voting members answer; without this one they would have no quorum",
            alive.len(),
            others.len()
        )),
    }
}
