//! The control plane of this machine, and the objects of the cluster.

use std::time::SystemTime;

use kimage_roles::cause::Cause;
use serde_json::Value;

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::kubernetes::ApiError;
use crate::lease::INIT;
use crate::{control_plane, objects};

pub(super) const API_SERVER: &str = "kube-apiserver.service";

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
        let lease = self.turns.take(&api, &INIT, &self.machine.name)?;
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
