//! The objects of the cluster.

use std::time::SystemTime;

use kimage_roles::cause::Cause;

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::lease::INIT;
use crate::objects::apply::Wanted;
use crate::objects::{self, retired, version};
use crate::report;

impl Worker<'_> {
    /// Applies what this image has and the cluster hasn't seen, one control plane after the other.
    pub(super) fn apply_objects(&mut self) -> Result<(), Failure> {
        let api = self.own_api()?;
        let (config, name) = (&self.machine.config, &self.machine.name);
        let wanted = Wanted {
            version: version::OWN,
            objects: objects::all(config, &self.findings.etcd).or_failure(Cause::ConfigInvalid)?,
            tokens: objects::tokens(config, SystemTime::now()).or_failure(Cause::ConfigInvalid)?,
            retired: retired::ALL,
        };
        let turns = &mut self.turns;
        let notes = wanted.apply(&api, &mut || turns.take(&api, &INIT, name))?;
        for note in notes {
            report::say(self.host, &format!("kimage: objects: {note}"));
        }
        Ok(())
    }
}
