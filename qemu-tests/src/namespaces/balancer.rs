//! HAProxy in front of the control planes: TCP passthrough with `/readyz` checks, as the reference setup has it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::network::Network;
use crate::images::command;
use crate::processes::start_for_good;

/// Port of the API, at the balancer and behind it.
pub const PORT: u16 = 6443;

/// How long `/readyz` may take at least. HAProxy's own choice is the pause between two checks: a control plane asks etcd on
/// the way, and one far member of etcd that leads would have all of them taken for dead.
const CHECK: Duration = Duration::from_secs(5);
/// Pauses between two checks that a session's connection may take, and `/readyz`: machines that are checked seldom are
/// slow ones. A check's own connection may take one pause, whatever else is said (HAProxy manual, `timeout check`).
const SLOWNESS: u32 = 3;

/// A running HAProxy. Dropping it ends it.
#[derive(Debug)]
pub struct Balancer {
    child: Child,
    folder: TempDir,
}

impl Balancer {
    /// Balances port [`PORT`] of the bench over `backends`, whose certificates `ca` (a PEM file's text) has signed.
    pub fn start(network: &Network, backends: &[Ipv4Addr], ca: &str) -> Result<Self> {
        Self::checking_every(Duration::from_secs(1), network, backends, ca)
    }

    /// As [`Balancer::start`], with so long between two checks of a server: a handshake costs an emulated one dearly.
    pub fn checking_every(
        interval: Duration,
        network: &Network,
        backends: &[Ipv4Addr],
        ca: &str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the balancer")?;
        let authority = folder.path().join("ca.pem");
        std::fs::write(&authority, ca).context("write the balancer's CA")?;
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, configuration(backends, &authority, interval)?).context("write haproxy.cfg")?;
        let log = std::fs::File::create(folder.path().join("log")).context("make the balancer's log")?;
        let mut haproxy = command("ip");
        haproxy
            .args(["netns", "exec", network.name(), "haproxy", "-db", "-f"])
            .arg(&file);
        haproxy.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        let child = start_for_good(haproxy)
            .context("start haproxy: run `qemu-tests/run-all` once, it installs tools")?;
        Ok(Self { child, folder })
    }

    /// What HAProxy has said so far: servers that went up and down.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn configuration(backends: &[Ipv4Addr], authority: &Path, interval: Duration) -> Result<String> {
    let connect = interval * SLOWNESS;
    let mut text = format!(
        "defaults\n  mode tcp\n  timeout connect {}ms\n  timeout client 4h\n  timeout server 4h\n  timeout check {}ms\n\
         frontend api\n  bind :{PORT}\n  default_backend control-planes\n\
         backend control-planes\n  option httpchk\n  http-check connect ssl sni kubernetes\n\
         \x20 http-check send meth GET uri /readyz\n  http-check expect status 200\n\
         \x20 default-server inter {}ms fall 2 rise 1 on-marked-down shutdown-sessions check verify required \
         verifyhost kubernetes ca-file {}\n",
        connect.as_millis(),
        CHECK.max(connect).as_millis(),
        interval.as_millis(),
        authority.display()
    );
    for (index, address) in backends.iter().enumerate() {
        writeln!(text, "  server control-plane-{index} {address}:{PORT}")?;
    }
    Ok(text)
}
