//! Turns: what control planes do one after the other. Whose turn it is stands in a Lease (`coordination.k8s.io/v1`) of
//! `kube-system`.
//!
//! As in client-go's `tools/leaderelection`, no machine believes another one's clock. `renewTime` is only compared for
//! change: a Lease is free once this machine has seen the same words in it for as long as the Lease lasts, by this
//! machine's own monotonic clock. A process that has just begun has seen nothing, and waits for that long; a Lease that
//! was given back is free at once. Every write names the version that was read, so of two that take a free Lease one
//! gets it.
//!
//! ```text
//! let mut turns = Turns::default();               // one for as long as the process lives
//! let lease = turns.take(&api, &RESTART, "cp-1")?; // an error: not now, try again in a second
//! …                                               // lease.renew(&api)? where it takes longer than RESTART.duration
//! lease.give_back(&api);
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::kubernetes::{Api, ApiError};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// What a Lease may say of its own length. Beyond this it is taken for this long, or one wrong number would hold up all
/// control planes for ever.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Longest name of a holder that is repeated in a message.
const SHOWN: usize = 100;

/// Whoever has it applies the cluster's objects.
pub const INIT: Turn = Turn {
    name: "kimage-init",
    duration: Duration::from_secs(30),
    what: "applies the cluster's objects",
};
/// Whoever has it restarts services of its control plane.
pub const RESTART: Turn = Turn {
    name: "kimage-restart",
    duration: Duration::from_secs(150),
    what: "restarts its API server",
};

/// Something that control planes do one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Name of its Lease.
    pub name: &'static str,
    /// So long it is nobody else's turn when its holder has gone away. Whole seconds.
    pub duration: Duration,
    /// What its holder does, for messages: `restarts its API server`.
    pub what: &'static str,
}

/// What this process has seen of Leases, and when. Keep one for as long as the process lives: a Lease whose holder has
/// gone away is free only for who has watched it.
#[derive(Debug, Default)]
pub struct Turns {
    seen: BTreeMap<&'static str, Seen>,
}

/// What a Lease said when this machine saw it change last.
#[derive(Debug)]
struct Seen {
    spec: Value,
    at: Instant,
}

/// The two clocks of this machine. What is decided is decided by the monotonic one.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    monotonic: Instant,
    /// For people, and so that every renewal differs from the one before.
    wall: jiff::Timestamp,
}

impl Clocks {
    fn read() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: jiff::Timestamp::now(),
        }
    }

    /// As the API's `MicroTime` is written.
    fn micro_time(&self) -> String {
        self.wall.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    }
}

/// A turn that this machine has.
#[derive(Debug)]
pub struct Lease {
    turn: Turn,
    /// The object as the server has it since the last write.
    object: Value,
    /// Until then nobody else takes it. Counted from before the last write was sent.
    until: Instant,
}

impl Turns {
    /// Takes the turn for `holder` (the machine's name) if nobody has it, or `holder` itself has had it. An error of
    /// cause [`Cause::ApiServerNotReady`] means: not now; call again after a pause.
    pub fn take(&mut self, api: &Api, turn: &Turn, holder: &str) -> Result<Lease, Failure> {
        self.take_at(api, turn, holder, Clocks::read())
    }

    fn take_at(&mut self, api: &Api, turn: &Turn, holder: &str, clocks: Clocks) -> Result<Lease, Failure> {
        let taken = match api.get(&path(turn)).map_err(|error| failed(turn, error))? {
            None => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": turn.name, "namespace": "kube-system"},
                    "spec": spec(&Value::Null, turn, holder, clocks),
                });
                api.create(LEASES, &lease)
            }
            Some(mut lease) => {
                if let Some(other) = self.living_holder(turn, &lease["spec"], holder, clocks.monotonic) {
                    return Err(held(turn, &other));
                }
                lease["spec"] = spec(&lease["spec"], turn, holder, clocks);
                api.replace(&path(turn), &lease)
            }
        };
        let object = taken.map_err(|error| lost_or_failed(turn, error))?;
        Ok(Lease::new(*turn, object, clocks))
    }

    /// Whose turn it is, unless it is `holder`'s own or its time is over by this machine's clock.
    fn living_holder(&mut self, turn: &Turn, spec: &Value, holder: &str, now: Instant) -> Option<String> {
        let other = spec["holderIdentity"].as_str().unwrap_or_default();
        if other.is_empty() || other == holder {
            self.seen.remove(turn.name);
            return None;
        }
        let fresh = Seen {
            spec: spec.clone(),
            at: now,
        };
        let seen = self.seen.entry(turn.name).or_insert_with(|| fresh);
        if seen.spec != *spec {
            seen.spec.clone_from(spec);
            seen.at = now;
        }
        (now.saturating_duration_since(seen.at) < length(spec, turn)).then(|| other.to_owned())
    }
}

impl Lease {
    fn new(turn: Turn, object: Value, clocks: Clocks) -> Self {
        let until = clocks.monotonic + turn.duration;
        Self { turn, object, until }
    }

    /// Whether nobody else can have taken it yet, by this machine's own clock.
    pub fn is_held(&self) -> bool {
        Instant::now() < self.until
    }

    /// [`Self::renew`], once half of its time is over.
    pub fn keep(&mut self, api: &Api) -> Result<(), Failure> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left < self.turn.duration / 2 {
            self.renew(api)
        } else {
            Ok(())
        }
    }

    /// Keeps the turn for another [`Turn::duration`] from now. Fails if another machine has it since.
    pub fn renew(&mut self, api: &Api) -> Result<(), Failure> {
        let clocks = Clocks::read();
        let mut lease = self.object.clone();
        lease["spec"]["renewTime"] = json!(clocks.micro_time());
        let renewed = api.replace(&path(&self.turn), &lease);
        let renewed = renewed.map_err(|error| lost_or_failed(&self.turn, error))?;
        *self = Self::new(self.turn, renewed, clocks);
        Ok(())
    }

    /// Gives it back, unless another machine has it meanwhile. Failing here is harmless: it ends by itself.
    pub fn give_back(self, api: &Api) {
        let mut lease = self.object;
        lease["spec"]["holderIdentity"] = json!("");
        drop(api.replace(&path(&self.turn), &lease));
    }
}

fn path(turn: &Turn) -> String {
    format!("{LEASES}/{}", turn.name)
}

/// The Lease's words once `holder` has it.
fn spec(before: &Value, turn: &Turn, holder: &str, clocks: Clocks) -> Value {
    let now = json!(clocks.micro_time());
    let transitions = before["leaseTransitions"].as_i64().unwrap_or(0);
    let is_renewal = before["holderIdentity"] == holder;
    json!({
        "holderIdentity": holder,
        "leaseDurationSeconds": turn.duration.as_secs(),
        "acquireTime": if is_renewal && before["acquireTime"].is_string() { &before["acquireTime"] } else { &now },
        "renewTime": now,
        "leaseTransitions": if is_renewal { transitions } else { transitions.saturating_add(1) },
    })
}

/// How long a Lease lasts by its own words, which an older or newer version may have chosen otherwise than `turn`.
fn length(spec: &Value, turn: &Turn) -> Duration {
    let seconds = spec["leaseDurationSeconds"].as_u64();
    seconds.map_or(turn.duration, Duration::from_secs).min(LONGEST)
}

fn held(turn: &Turn, other: &str) -> Failure {
    let shown: String = other
        .chars()
        .filter(|letter| !letter.is_control())
        .take(SHOWN)
        .collect();
    Failure::because(Cause::ApiServerNotReady, format!("{shown} {}", turn.what))
}

fn lost_or_failed(turn: &Turn, error: ApiError) -> Failure {
    match error.code() {
        Some(409) => held(turn, "another control plane"),
        _ => failed(turn, error),
    }
}

fn failed(turn: &Turn, error: ApiError) -> Failure {
    let failure = error.failure(Cause::ApiServerNotReady);
    failure.context(format!("take the lease {}", turn.name))
}

#[cfg(test)]
mod tests;
