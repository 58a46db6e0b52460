//! Signs off the certificates of kubelets: those that they serve with, which nobody in Kubernetes does, and those that
//! make them nodes, for which Kubernetes' own approver asks too little.
//!
//! Whoever asks is hostile until proven: a worker may be stolen, a token may be stolen, and every text is anybody's. So
//! what is judged is the very bytes that are signed ([`der`]), what a node says about itself counts for nothing
//! ([`serving`], [`client`]), a request that makes no sense is one line and the next request's turn, and no number of
//! requests, however large, takes more than a little memory.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use kimage_roles::node_config::NodeConfig;
use serde_json::json;

use crate::inventory::Inventory;
use crate::kubernetes::{Api, ApiError, segment};

mod client;
#[cfg(test)]
mod cluster;
mod der;
mod node_name;
mod pins;
mod presence;
mod request;
mod reserved;
mod rivals;
mod serving;
mod site;
mod tally;
mod verdict;
mod watch;
mod witness;

pub use der::Asked;
pub use node_name::NodeName;
pub use request::{Metadata, Object, Signer, read};

use pins::Pin;
use presence::{QUIET, Watchman};
use reserved::Reserved;
use site::Site;
use tally::Tally;
use verdict::Verdict;
use witness::Witness;

/// Where requests are.
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// All kubelets.
const NODES: &str = crate::objects::NODES_GROUP;
/// More requests than this are not remembered to be looked at again: of each node, one for each signer.
const MAX_WAITING: usize = 4096;
/// How often it is seen whether there is something else to do.
const PULSE: Duration = Duration::from_secs(1);

/// The approver of one control plane.
pub struct Approver {
    reserved: Reserved,
    node: String,
    address: IpAddr,
    witness: Witness,
    watchman: Watchman,
    /// Requests that are not to be approved now: of each node the newest for each signer, and those that could not be
    /// judged, by their own names.
    waiting: BTreeMap<(Whose, Signer), Waiting>,
    tally: Tally,
}

/// By what a request that waits is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// The node that asks.
    Node(NodeName),
    /// The request's own name.
    Request(String),
}

/// A request that is not to be approved now.
struct Waiting {
    name: String,
    why: String,
    /// When it is looked at again.
    when: Instant,
}

impl fmt::Debug for Approver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approver")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Approver {
    /// The approver of the control plane called `node` at `address`, as its platform says. `inventory` may say where other
    /// nodes are.
    pub fn new(config: &NodeConfig, node: &str, address: IpAddr, inventory: Box<dyn Inventory>) -> Self {
        Self {
            reserved: Reserved::of(config),
            node: node.to_owned(),
            address,
            witness: Witness::new(inventory),
            watchman: Watchman::default(),
            waiting: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// Looks at all requests that wait, then at each that comes, until `is_over` or something fails; it begins anew then.
    /// `say` tells people what was approved and what wasn't.
    pub fn work(
        &mut self,
        api: &Api,
        say: &dyn Fn(&str),
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), ApiError> {
        for name in rivals::remove(api)? {
            say(&format!(
                "removed ClusterRoleBinding {name}: certificates of clients are approved here"
            ));
        }
        self.claim_own_address(api)?;
        self.waiting.clear();
        let requests = watch::start(api.clone());
        while !is_over() {
            let waits = !self.look_again(api, Instant::now());
            match requests.recv_timeout(if waits { PULSE } else { Duration::ZERO }) {
                Ok(Ok(request)) => self.look_at(api, &request),
                Ok(Err(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Some(text) = self.tally.due(Instant::now()) {
                say(&text);
            }
        }
        Ok(())
    }

    /// Binds this control plane's address to it, whoever has it: this machine's platform is the witness, and who holds the
    /// cluster's keys needs no certificate of ours.
    fn claim_own_address(&self, api: &Api) -> Result<(), ApiError> {
        let broken = || api.broken(format!("`{}` is no name of a Node", self.node));
        let node = NodeName::parse(&self.node).ok_or_else(broken)?;
        let own = Pin::new(self.address, &node, true);
        let old = api.pin(self.address)?;
        let known = old
            .as_ref()
            .is_some_and(|old| old.node == own.node && old.by_control_plane);
        if !known && !api.bind(&own, old.as_ref())? {
            return Err(api.broken(format!("somebody else binds {} just now", self.address)));
        }
        // What the machine was called or had before.
        for pin in api
            .pins_of(&node)?
            .iter()
            .filter(|pin| pin.address != self.address)
        {
            api.release(pin)?;
        }
        Ok(())
    }

    fn look_at(&mut self, api: &Api, request: &Object) {
        let Some(signer) = request.waits_for() else {
            return;
        };
        let now = Instant::now();
        let name = &request.metadata.name;
        let unjudged = (Whose::Request(name.clone()), signer);
        self.waiting.remove(&unjudged);
        match self.judge(request, signer, api, now) {
            Ok(Verdict::Approve(node, why)) => match approve(api, &request.metadata, why) {
                Ok(approved) => {
                    self.waiting.remove(&(Whose::Node(node.clone()), signer));
                    // If not, another control plane was faster.
                    if approved {
                        self.tally.add(now, &format!("approved {name}: {node}: {why}"));
                    }
                }
                Err(error) => self.later(unjudged, name, error.to_string(), now, PULSE),
            },
            Ok(Verdict::Never(why)) => self.tally.add(now, &format!("not approved {name}: {why}")),
            Ok(Verdict::Later { node, again, why }) => {
                self.later((Whose::Node(node), signer), name, why, now, again);
            }
            // The cluster could not be asked about this one; the next one may be about something else.
            Err(error) => self.later(unjudged, name, error.to_string(), now, PULSE),
        }
    }

    fn judge(
        &mut self,
        request: &Object,
        signer: Signer,
        site: &dyn Site,
        now: Instant,
    ) -> Result<Verdict, ApiError> {
        if signer == Signer::Serving
            && request.is_by(NODES)
            && let Ok(node) = NodeName::of_user(request.user())
            && let Ok(asked) = request.asked(signer)
            && let Some(why) = self.witness.bind(&node, &asked.addresses, site, now)?
        {
            return Ok(Verdict::later(&node, QUIET, why));
        }
        let judge = match signer {
            Signer::Serving => serving::judge,
            Signer::Client => client::judge,
        };
        judge(request, site, &self.reserved, &mut self.watchman, now)
    }

    /// The newest request of each node is looked at again: a kubelet that is refused makes another one after a while.
    fn later(&mut self, key: (Whose, Signer), name: &str, why: String, now: Instant, again: Duration) {
        let known = self.waiting.get(&key);
        if known.is_none() && self.waiting.len() >= MAX_WAITING {
            return self
                .tally
                .add(now, &format!("not approved {name}: too many wait"));
        }
        if known.is_none_or(|known| known.why != why) {
            self.tally.add(now, &format!("not approved {name}: {why}"));
        }
        let (name, when) = (name.to_owned(), now + again);
        self.waiting.insert(key, Waiting { name, why, when });
    }

    /// Looks again at the request that has been due longest, if there is one: new ones have their turn between.
    fn look_again(&mut self, api: &Api, now: Instant) -> bool {
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.when <= now);
        let first = due.min_by_key(|(_, waiting)| waiting.when);
        let Some((key, name)) = first.map(|(key, waiting)| (key.clone(), waiting.name.clone())) else {
            return false;
        };
        match api.read::<Object>(&format!("{REQUESTS}/{}", segment(&name))) {
            Ok(Some(request)) => self.look_at(api, &request),
            Ok(None) => {}
            Err(error) => self.later(key.clone(), &name, error.to_string(), now, PULSE),
        }
        // What has come of it is no longer a reason to wait.
        if self.waiting.get(&key).is_some_and(|waiting| waiting.when <= now) {
            self.waiting.remove(&key);
        }
        true
    }
}

/// Approves just the edition of the request that was judged; `false` when there is another by now.
fn approve(api: &Api, request: &Metadata, why: &str) -> Result<bool, ApiError> {
    let patch = json!({
        "metadata": {"uid": request.uid, "resourceVersion": request.resource_version},
        "status": {"conditions": [{
            "type": "Approved",
            "status": "True",
            "reason": "KimageApproved",
            "message": why,
        }]},
    });
    match api.merge(&format!("{REQUESTS}/{}/approval", segment(&request.name)), &patch) {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Refuses a certificate that says it is somebody else than the node.
fn same(node: &NodeName, common_name: &str, organization: &str) -> Result<(), String> {
    if common_name == node.user() && organization == NODES {
        return Ok(());
    }
    Err(format!(
        "Node {node} asks for a certificate of {common_name:?} in {organization:?}"
    ))
}
