//! A model of etcd: as much of it as formation touches, with the guards that etcd 3.6 has.

use std::collections::BTreeMap;
use std::time::Duration;

use kimage_roles::cause::Cause;

use super::net::{Data, Machine, Net, Process, Sabotage, hash};
use crate::etcd::world::{Glance, Launch, Local, Mark, Outcome};
use crate::etcd::{Id, Member, View};
use crate::failure::Failure;
use crate::inventory::Claim;

/// What a cluster has agreed on.
#[derive(Debug, Clone, Default)]
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    pub(super) owners: BTreeMap<String, Claim>,
    pub(super) lock: Option<(String, Duration)>,
}

impl Cluster {
    /// Id of the cluster of the fixed list.
    pub(super) fn listed_id() -> Id {
        hash("list")
    }
}

fn refused(text: &str) -> Failure {
    Failure::because(Cause::EtcdForming, text)
}

fn silent() -> Failure {
    Failure::because(Cause::EtcdUnavailable, "no quorum")
}

fn member(name: &str, peer_url: &str, id: Id) -> Member {
    Member {
        id,
        name: name.to_owned(),
        peer_urls: vec![peer_url.to_owned()],
        client_urls: Vec::new(),
        learner: false,
    }
}

impl Net {
    fn local(&self, machine: usize) -> Option<Local> {
        self.machines[machine].process?;
        let data = self.machines[machine].data.filter(|data| !data.amnesiac)?;
        Some(data.local)
    }

    /// Whether two machines' etcds (or a machine and another's etcd) reach each other.
    fn reaches(&self, from: usize, to: usize) -> bool {
        let open = |machine: usize| {
            self.machines[machine]
                .process
                .is_some_and(|process| !process.loopback)
        };
        let (a, b) = (&self.machines[from], &self.machines[to]);
        from == to || a.exists && b.exists && a.group == b.group && open(to)
    }

    /// Whether the etcd of `machine` is in touch with a quorum.
    pub(super) fn has_quorum(&self, machine: usize) -> bool {
        let Some(local) = self.local(machine) else {
            return false;
        };
        let Some(cluster) = self.clusters.get(&local.cluster) else {
            return false;
        };
        if !cluster.members.iter().any(|member| member.id == local.member) {
            return false;
        }
        let voters: Vec<&Member> = cluster.members.iter().filter(|member| !member.learner).collect();
        let connected = voters
            .iter()
            .filter(|voter| self.connected(machine, voter.id))
            .count();
        connected > voters.len() / 2
    }

    fn connected(&self, machine: usize, member: Id) -> bool {
        let holder = self
            .holder(member)
            .filter(|holder| self.machines[*holder].process.is_some());
        holder.is_some_and(|holder| self.reaches(machine, holder) && self.reaches(holder, machine))
    }

    pub(super) fn reaches_member(&self, from: usize, member: Id) -> bool {
        self.holder(member)
            .is_some_and(|holder| self.machines[holder].process.is_some() && self.reaches(from, holder))
    }

    fn at(&self, client_url: &str) -> Option<usize> {
        self.machines
            .iter()
            .position(|machine| machine.exists && machine.identity.client_url == client_url)
    }

    /// The first machine of `endpoints` that answers for a quorum.
    pub(super) fn ask(&self, me: usize, endpoints: &[String]) -> Option<usize> {
        let own = self.machines[me].identity.client_url.clone();
        let endpoints = if endpoints.is_empty() {
            std::slice::from_ref(&own)
        } else {
            endpoints
        };
        let mut machines = endpoints.iter().filter_map(|url| self.at(url));
        machines.find(|machine| {
            let learner = self.local(*machine).is_some_and(|local| {
                let cluster = &self.clusters[&local.cluster];
                cluster
                    .members
                    .iter()
                    .any(|member| member.id == local.member && member.learner)
            });
            self.reaches(me, *machine) && self.has_quorum(*machine) && !learner
        })
    }

    pub(super) fn cluster(&mut self, me: usize, endpoints: &[String]) -> Outcome<&mut Cluster> {
        let local = self
            .ask(me, endpoints)
            .and_then(|machine| self.local(machine))
            .ok_or_else(silent)?;
        self.clusters.get_mut(&local.cluster).ok_or_else(silent)
    }

    pub(super) fn view(&mut self, me: usize, endpoints: &[String]) -> Outcome<View> {
        let local = self
            .ask(me, endpoints)
            .and_then(|machine| self.local(machine))
            .ok_or_else(silent)?;
        let Cluster { members, owners, .. } = self.clusters[&local.cluster].clone();
        Ok(View {
            cluster: local.cluster,
            members,
            owners,
        })
    }

    pub(super) fn glance(&self, me: usize, client_url: &str) -> Glance {
        let Some(machine) = self.at(client_url) else {
            return Glance::Silent;
        };
        if self.machines[machine].group != self.machines[me].group {
            return Glance::Silent;
        }
        // etcd opens its client port once it has met a quorum.
        let Some(local) = self.local(machine).filter(|_| self.reaches(me, machine)) else {
            return Glance::Refused;
        };
        let mut members = self.clusters[&local.cluster].members.clone();
        let own = members.iter().find(|member| member.id == local.member);
        if own.is_none_or(|own| !own.has_started()) {
            return Glance::Refused;
        }
        if self.sabotage == Some(Sabotage::EmptyDiskKeepsVote) {
            members.iter_mut().for_each(|member| member.client_urls.clear());
        }
        Glance::Answer(local.cluster, members)
    }

    pub(super) fn launch(&mut self, me: usize, launch: &Launch) -> Option<Local> {
        if self.machines[me].data.is_none() {
            let data = self.first_start(me, launch)?;
            self.machines[me].data = Some(data);
        }
        let hidden = matches!(launch, Launch::Seed { .. });
        let loopback = hidden && self.sabotage != Some(Sabotage::ServeBeforePublish);
        self.machines[me].process = Some(Process { loopback });
        let data = self.machines[me].data?;
        if data.amnesiac || !self.has_quorum(me) {
            return None;
        }
        if self.faults && self.random.chance(20) {
            return None;
        }
        let url = self.machines[me].identity.client_url.clone();
        let cluster = self.clusters.get_mut(&data.local.cluster)?;
        let own = cluster
            .members
            .iter_mut()
            .find(|member| member.id == data.local.member)?;
        own.client_urls = vec![url];
        Some(data.local)
    }

    fn first_start(&mut self, me: usize, launch: &Launch) -> Option<Data> {
        let identity = self.machines[me].identity.clone();
        let fresh = |cluster, member| Data {
            local: Local { cluster, member },
            amnesiac: false,
        };
        match launch {
            Launch::Resume => None,
            Launch::Seed { token } => {
                let (cluster, id) = (hash(token), hash(&format!("{token} {}", identity.peer_url)));
                let members = vec![member(&identity.name, &identity.peer_url, id)];
                self.clusters.entry(cluster).or_insert(Cluster {
                    members,
                    ..Cluster::default()
                });
                Some(fresh(cluster, id))
            }
            Launch::Listed(peers) => {
                let members = peers
                    .iter()
                    .map(|peer| member(&peer.name, &peer.peer_url, hash(&peer.peer_url)));
                let id = Cluster::listed_id();
                let cluster = self.clusters.entry(id).or_insert(Cluster {
                    members: members.collect(),
                    ..Cluster::default()
                });
                let own = hash(&identity.peer_url);
                let started = cluster
                    .members
                    .iter()
                    .find(|member| member.id == own)
                    .map(Member::has_started);
                let urls: Vec<String> = peers.iter().map(|peer| peer.client_url.clone()).collect();
                let known = |url: &&String| {
                    self.at(url).is_some_and(|peer| {
                        peer != me && self.reaches(me, peer) && self.local(peer).is_some()
                    })
                };
                // "member has already been bootstrapped": etcd's own guard, if it meets anybody who knows.
                if started != Some(false) && urls.iter().any(|url| known(&url)) {
                    if self.sabotage == Some(Sabotage::EmptyDiskKeepsVote) {
                        self.violation = Some(format!("an empty log takes up the vote of {own}"));
                    }
                    return None;
                }
                let amnesiac = started != Some(false);
                Some(Data {
                    amnesiac,
                    ..fresh(id, own)
                })
            }
            Launch::Join(list) => {
                let view = {
                    let found = self.clusters.iter().find(|(_, cluster)| {
                        let own = |member: &Member| {
                            member.peer_urls.contains(&identity.peer_url) && !member.has_started()
                        };
                        cluster.members.iter().any(own) && cluster.members.len() == list.len()
                    });
                    found.map(|(id, cluster)| (*id, cluster.members.clone()))
                };
                let (cluster, members) = view?;
                let own = members
                    .iter()
                    .find(|member| member.peer_urls.contains(&identity.peer_url))?;
                Some(fresh(cluster, own.id))
            }
        }
    }

    pub(super) fn add_learner(&mut self, me: usize, endpoints: &[String], peer_url: &str) -> Outcome<Id> {
        let through = self.ask(me, endpoints).ok_or_else(silent)?;
        let id = hash(&format!(
            "{peer_url} {:?} {}",
            self.time,
            self.random.below(1 << 30)
        ));
        let members = self.cluster(me, endpoints)?.members.clone();
        if members.iter().any(|member| member.learner) {
            return Err(refused("too many learner members in cluster"));
        }
        if members
            .iter()
            .any(|member| member.peer_urls.iter().any(|url| url == peer_url))
        {
            return Err(refused("peer URL exists"));
        }
        if !members.iter().all(|member| self.connected(through, member.id)) {
            return Err(refused("unhealthy cluster"));
        }
        let learner = Member {
            learner: true,
            ..member("", peer_url, id)
        };
        self.cluster(me, endpoints)?.members.push(learner);
        Ok(id)
    }

    pub(super) fn promote(&mut self, me: usize, endpoints: &[String], member: Id) -> Outcome<()> {
        let through = self.ask(me, endpoints).ok_or_else(silent)?;
        let in_sync = self.connected(through, member) && !(self.faults && self.random.chance(30));
        let cluster = self.cluster(me, endpoints)?;
        let learner = cluster
            .members
            .iter_mut()
            .find(|known| known.id == member && known.learner);
        let learner = learner.ok_or_else(|| refused("member is not a learner"))?;
        if !in_sync {
            return Err(refused("learner not in sync with leader"));
        }
        learner.learner = false;
        Ok(())
    }

    pub(super) fn remove(&mut self, me: usize, endpoints: &[String], id: Id) -> Outcome<()> {
        let cluster = self.cluster(me, endpoints)?.clone();
        let Some(member) = cluster.members.iter().find(|member| member.id == id) else {
            return Err(refused("member not found"));
        };
        let left: Vec<Id> = cluster
            .members
            .iter()
            .filter(|member| member.id != id && !member.learner)
            .map(|member| member.id)
            .collect();
        let url = &member.peer_urls[0];
        let owner = cluster.owners.get(url).map(|claim| claim.instance.clone());
        let owner = owner.unwrap_or_default();
        let exists = |machine: &Machine| machine.exists && machine.identity.instance == owner;
        let holder = self.machines.iter().position(exists);
        let own_and_empty = holder == Some(me) && self.holder(id).is_none();
        let leaves = holder == Some(me)
            && matches!(self.machines[me].mark, Some(Mark::Leaving { member, .. }) if member == id);
        if holder.is_some() && !own_and_empty && !leaves {
            self.violation = Some(format!("member {id} of {owner}, which exists, was removed"));
        }
        let intact = left.iter().filter(|voter| self.holder(**voter).is_some()).count();
        if intact <= left.len() / 2 {
            self.violation = Some(format!("removing {id} leaves {intact} of {} voters", left.len()));
        }
        self.met.removals += 1;
        self.cluster(me, endpoints)?
            .members
            .retain(|member| member.id != id);
        Ok(())
    }
}
