//! The control plane of this machine, and the objects of the cluster.

use std::time::SystemTime;

use kimage_roles::cause::Cause;
use serde_json::{Value, json};

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::kubernetes::{Api, ApiError};
use crate::{control_plane, objects};

pub(super) const API_SERVER: &str = "kube-apiserver.service";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// Whoever holds it applies the cluster's objects.
const INIT: Turn = Turn {
    name: "kimage-init",
    seconds: 30,
    what: "applies the cluster's objects",
};
/// Whoever holds it restarts its API server.
pub(super) const RESTART: Turn = Turn {
    name: "kimage-restart",
    seconds: 150,
    what: "restarts its API server",
};

/// Something that control planes do one after the other.
pub(super) struct Turn {
    /// Name of its Lease.
    name: &'static str,
    /// So long it is nobody else's turn when its holder has gone away.
    seconds: i64,
    /// What its holder does, for messages.
    what: &'static str,
}

/// A turn that this control plane has.
pub(super) struct Lease {
    path: String,
}

impl Worker<'_> {
    pub(super) fn configure_control_plane(&mut self) -> Result<(), Failure> {
        let machine = self.machine;
        let files = control_plane::files(&machine.config, &machine.node(), &self.findings.etcd);
        self.write(&files.or_failure(Cause::ConfigInvalid)?)
    }

    pub(super) fn await_api_server(&mut self) -> Result<(), Failure> {
        self.check_units(&[API_SERVER])?;
        self.own_api()?.ready().map_err(|error| {
            let error = error.failure(Cause::ApiServerNotReady);
            error.context("the own API server")
        })
    }

    /// Applies all objects under a Lease, one control plane after the other: what they apply is the same, and two at
    /// once would only be in each other's way.
    pub(super) fn apply_objects(&mut self) -> Result<(), Failure> {
        let api = self.own_api()?;
        let failed = |error: ApiError| error.failure(Cause::ApiServerNotReady);
        let lease = Lease::take(&api, INIT, &self.machine.name)?;
        let all = objects::all(&self.machine.config, &self.findings.etcd, SystemTime::now());
        let all = all.or_failure(Cause::ConfigInvalid)?;
        for object in &all {
            api.apply(object)
                .map_err(|error| failed(error).context(name(object)))?;
        }
        lease.give_back(&api);
        Ok(())
    }
}

/// Kind and name of an object, for messages.
fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
    format!("apply {} {}", text("/kind"), text("/metadata/name"))
}

impl Lease {
    /// Takes the turn if nobody has it.
    pub(super) fn take(api: &Api, turn: Turn, holder: &str) -> Result<Self, Failure> {
        let Turn { name, seconds, what } = turn;
        let path = format!("{LEASES}/{name}");
        let failed = |error: ApiError| {
            let failure = error.failure(Cause::ApiServerNotReady);
            failure.context(format!("take the lease {name}"))
        };
        let now = jiff::Timestamp::now();
        let spec = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        });
        let held = |other: &str| Failure::because(Cause::ApiServerNotReady, format!("{other} {what}"));
        let taken = match api.get(&path).map_err(failed)? {
            None => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                    "metadata": {"name": name, "namespace": "kube-system"},
                });
                api.create(LEASES, &lease)
            }
            Some(mut lease) => {
                if let Some(other) = living_holder(&lease, now).filter(|other| *other != holder) {
                    return Err(held(other));
                }
                lease["spec"] = spec;
                api.replace(&path, &lease)
            }
        };
        match taken {
            Err(error) if error.code() == Some(409) => Err(held("another control plane")),
            Err(error) => Err(failed(error)),
            Ok(_) => Ok(Self { path }),
        }
    }

    /// Gives it back. Losing it is harmless, so is failing here: it ends by itself.
    pub(super) fn give_back(self, api: &Api) {
        drop(api.merge(&self.path, &json!({"spec": {"holderIdentity": ""}})));
    }
}

/// Who holds a lease, unless its time is over.
fn living_holder(lease: &Value, now: jiff::Timestamp) -> Option<&str> {
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"]
        .as_str()
        .filter(|holder| !holder.is_empty())?;
    let renewed: jiff::Timestamp = spec["renewTime"].as_str()?.parse().ok()?;
    let seconds = spec["leaseDurationSeconds"].as_i64()?;
    (now.duration_since(renewed).as_secs() < seconds).then_some(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_nobody_or_somebody_long_gone_holds_it() {
        let now: jiff::Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let lease = |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 30}});
        assert_eq!(
            living_holder(&lease("a", "2026-01-01T00:00:40.000000Z"), now),
            Some("a")
        );
        assert_eq!(
            living_holder(&lease("a", "2026-01-01T00:00:20.000000Z"), now),
            None
        );
        assert_eq!(
            living_holder(&lease("", "2026-01-01T00:00:59.000000Z"), now),
            None
        );
        assert_eq!(living_holder(&json!({}), now), None);
    }
}
