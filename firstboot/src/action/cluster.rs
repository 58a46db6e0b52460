//! The control plane of this machine, and the objects of the cluster.

use kimage_roles::cause::Cause;
use serde_json::{Value, json};

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::kubernetes::{Api, ApiError};
use crate::{control_plane, objects};

const SERVICES: [&str; 3] = [
    "kube-apiserver.service",
    "kube-controller-manager.service",
    "kube-scheduler.service",
];
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kimage-init";
/// So long nobody else applies objects when their holder has gone away.
const LEASE_SECONDS: i64 = 30;

impl Worker<'_> {
    pub(super) fn configure_control_plane(&mut self) -> Result<(), Failure> {
        let machine = self.machine;
        let files = control_plane::files(&machine.config, &machine.node(), &self.findings.etcd);
        self.write(&files.or_failure(Cause::ConfigInvalid)?)
    }

    pub(super) fn await_api_server(&mut self) -> Result<(), Failure> {
        self.check_units(&SERVICES)?;
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
        take_lease(&api, &self.machine.name)?;
        let all = objects::all(&self.machine.config, &self.findings.etcd).or_failure(Cause::ConfigInvalid)?;
        for object in &all {
            api.apply(object)
                .map_err(|error| failed(error).context(name(object)))?;
        }
        // Losing the lease is harmless, so is failing to give it back.
        drop(api.merge(LEASE, &json!({"spec": {"holderIdentity": ""}})));
        Ok(())
    }
}

/// Kind and name of an object, for messages.
fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
    format!("apply {} {}", text("/kind"), text("/metadata/name"))
}

fn take_lease(api: &Api, holder: &str) -> Result<(), Failure> {
    let failed = |error: ApiError| {
        error
            .failure(Cause::ApiServerNotReady)
            .context("take the lease kimage-init")
    };
    let now = jiff::Timestamp::now();
    let spec = json!({
        "holderIdentity": holder,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
    });
    let held = |other: &str| {
        Failure::because(
            Cause::ApiServerNotReady,
            format!("{other} applies the cluster's objects"),
        )
    };
    let taken = match api.get(LEASE).map_err(failed)? {
        None => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                "metadata": {"name": "kimage-init", "namespace": "kube-system"},
            });
            api.create(
                "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases",
                &lease,
            )
        }
        Some(mut lease) => {
            if let Some(other) = living_holder(&lease, now).filter(|other| *other != holder) {
                return Err(held(other));
            }
            lease["spec"] = spec;
            api.replace(LEASE, &lease)
        }
    };
    match taken {
        Err(error) if error.code() == Some(409) => Err(held("another control plane")),
        other => other.map(drop).map_err(failed),
    }
}

/// Who holds a lease, unless its time is over.
fn living_holder(lease: &Value, now: jiff::Timestamp) -> Option<&str> {
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"]
        .as_str()
        .filter(|holder| !holder.is_empty())?;
    let renewed: jiff::Timestamp = spec["renewTime"].as_str()?.parse().ok()?;
    let seconds = spec["leaseDurationSeconds"].as_i64().unwrap_or(LEASE_SECONDS);
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
