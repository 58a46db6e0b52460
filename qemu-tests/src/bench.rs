//! What both benches offer, so that a claim can be made of a machine wherever it runs: [`Machine`]. A claim that
//! needs more says which bench it needs by the type that it takes: namespaces let a test run programs inside and look
//! at files ([`crate::namespaces::machine::Machine`]); virtual machines have firmware, kernels, disks and pod traffic
//! of their own ([`crate::shipped::Shipped`]).

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use kimage_roles::status::{Phase, Status};

use crate::namespaces::machine as namespace;
use crate::shipped::Shipped;

/// A machine of a cluster. It keeps its disk while it is switched off; dropping it scraps it.
pub trait Machine {
    /// Its name.
    fn name(&self) -> &str;

    /// Its address.
    fn address(&self) -> Ipv4Addr;

    /// Switches it on.
    fn start(&mut self) -> Result<()>;

    /// Cuts the power: everything in it is killed where it stands.
    fn kill(&mut self) -> Result<()>;

    /// Waits until first boot has come to `phase` or beyond.
    ///
    /// # Errors
    ///
    /// It failed for good, the machine ended, or `deadline` passed.
    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status>;

    /// How long each phase took: `etcd 3.2 s`.
    fn phases(&mut self) -> Vec<String>;
}

impl Machine for namespace::Machine {
    fn name(&self) -> &str {
        self.name()
    }

    fn address(&self) -> Ipv4Addr {
        self.address()
    }

    fn start(&mut self) -> Result<()> {
        self.start()
    }

    fn kill(&mut self) -> Result<()> {
        self.kill()
    }

    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status> {
        self.wait_for(phase, deadline)
    }

    fn phases(&mut self) -> Vec<String> {
        Self::phases(self)
    }
}

impl Machine for Shipped {
    fn name(&self) -> &str {
        self.name()
    }

    fn address(&self) -> Ipv4Addr {
        self.order().address
    }

    fn start(&mut self) -> Result<()> {
        self.start()
    }

    fn kill(&mut self) -> Result<()> {
        self.kill();
        Ok(())
    }

    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status> {
        self.wait_for(phase, deadline)
    }

    fn phases(&mut self) -> Vec<String> {
        let phases = Self::phases(self).into_iter();
        phases
            .map(|(name, took)| format!("{name} {:.1} s", took.as_secs_f64()))
            .collect()
    }
}
