//! Addresses for virtual machines: dnsmasq gives each port the one that the bench has for it, and answers that it knows
//! no name.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::network::{BENCH, Network, hardware_address};
use crate::processes::start_for_good;

/// A running dnsmasq. Dropping it ends it.
#[derive(Debug)]
pub struct Leases {
    child: Child,
    folder: TempDir,
}

impl Leases {
    /// Serves the virtual machines that are to stand at `addresses`, and nobody else.
    pub fn serve(network: &Network, addresses: impl Iterator<Item = Ipv4Addr>) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for dnsmasq")?;
        let log = std::fs::File::create(folder.path().join("log")).context("make dnsmasq's log")?;
        let mut dnsmasq = network.command("dnsmasq");
        dnsmasq
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="])
            .args(["--log-facility=-", "--no-resolv", "--no-hosts"])
            .args(["--interface=bench", "--bind-interfaces"])
            // Whoever runs tests need not have the user that dnsmasq would become.
            .args(["--user=root", "--group=root"])
            .arg(format!("--dhcp-range={BENCH},static"))
            .arg(format!(
                "--dhcp-leasefile={}",
                folder.path().join("leases").display()
            ));
        for address in addresses {
            dnsmasq.arg(format!("--dhcp-host={},{address}", hardware_address(address)));
        }
        dnsmasq.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = start_for_good(dnsmasq)
            .context("start dnsmasq: run `qemu-tests/run-all` once, it installs tools")?;
        Ok(Self { child, folder })
    }

    /// What dnsmasq has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
