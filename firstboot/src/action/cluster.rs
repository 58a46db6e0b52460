//! The control plane of this machine.

use kimage_roles::cause::Cause;

use super::Worker;
use crate::control_plane;
use crate::failure::{Failure, OrFailure};

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
}
