//! Bench B: a machine of a cluster that boots the disk that ships, under Secure Boot, plugged into the bench's network.
//! Its power can be cut and come back; the disk stays.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kimage_roles::status::{CONSOLE_PREFIX, Outcome, Phase, Status};
use tempfile::TempDir;

use self::cluster::Platform;
use crate::clock::Clock;
use crate::cluster::machine::{Machine, durations};
use crate::images::{command, finish};
use crate::machine::{self, Blueprint, Cache, Disk, Firmware, Format};
use crate::namespaces::network::{Network, Tap};

pub mod cluster;
mod metadata;
mod record;

/// Size of the disk: the image and room for state.
const DISK: u64 = 8 << 30;
/// What a kernel says when it gives up.
const PANIC: &str = "Kernel panic";
/// Warnings of the kernel would tear lines of first boot on the console; errors still come.
const QUIET: &str = "loglevel=4";

/// How a machine gets its NodeConfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A disk labelled `cidata`.
    NoCloud,
    /// The instance metadata service: the firmware says that this is EC2, and the bench must have the service.
    Ec2,
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Order {
    /// Release folder of the image.
    pub release: PathBuf,
    /// Host name, at most 12 letters.
    pub name: String,
    /// Its address, by DHCP.
    pub address: Ipv4Addr,
    /// Its NodeConfig.
    pub config: String,
    /// How it gets that.
    pub door: Door,
    /// Id of the instance; a replacement has another one.
    pub instance: String,
    /// Zone it stands in.
    pub zone: String,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// What it lives by.
    pub clock: Clock,
}

/// A machine: its disk, and its life while it is switched on. Dropping it switches it off and scraps the disk.
pub struct Shipped {
    order: Order,
    tap: Tap,
    folder: TempDir,
    running: Option<machine::Machine>,
    newest: Option<Status>,
}

impl Shipped {
    /// A machine with a fresh disk, switched off.
    fn new(network: &Network, order: Order) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("kimage-{}-", order.name))
            .tempdir_in("/var/tmp")
            .context("make a folder for the machine")?;
        let path = |name: &str| folder.path().join(name);
        let base = order.release.join("disk.qcow2");
        Disk::overlay(&base, Format::Qcow2, &path("disk.qcow2"), Some(DISK))?;
        fs::copy(order.release.join("ovmf-vars.fd"), path("vars.fd")).context("copy ovmf-vars.fd")?;
        if order.door == Door::NoCloud {
            seed(&order, &folder).context("make the NoCloud disk")?;
        }
        let tap = network.tap(&order.name, order.address)?;
        Ok(Self {
            order,
            tap,
            folder,
            running: None,
            newest: None,
        })
    }

    /// Everything that it has printed since it was switched on.
    pub fn transcript(&mut self) -> String {
        let machine = self.running.as_mut();
        machine.map_or_else(String::new, |machine| machine.console().transcript())
    }
}

impl Machine for Shipped {
    type Site = Platform;

    fn name(&self) -> &str {
        &self.order.name
    }

    fn address(&self) -> Ipv4Addr {
        self.order.address
    }

    fn instance(&self) -> &str {
        &self.order.instance
    }

    fn start(&mut self) -> Result<()> {
        let path = |name: &str| self.folder.path().join(name);
        // Flushes reach the file, because the power will be cut.
        let disk = Disk::of(&path("disk.qcow2"), Format::Qcow2).cache(Cache::Writeback);
        let mut blueprint = Blueprint::firmware(Firmware::find(true)?, &path("vars.fd"))
            .memory_mb(self.order.memory_mb)
            .disk(disk)
            .connected(&self.tap)
            .clock(self.order.clock)
            .kernel_arguments(QUIET);
        blueprint = match self.order.door {
            Door::NoCloud => blueprint.disk(Disk::of(&path("cidata"), Format::Raw)),
            Door::Ec2 => blueprint.arguments(["-smbios", "type=1,manufacturer=Amazon EC2"]),
        };
        self.newest = None;
        self.running = Some(
            blueprint
                .start()
                .with_context(|| format!("start {}", self.name()))?,
        );
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(machine) = self.running.take() {
            machine.cut_power();
        }
        Ok(())
    }

    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status> {
        let end = Instant::now() + deadline;
        let name = self.name().to_owned();
        loop {
            if let Some(status) = &self.newest {
                if status.outcome == Outcome::Failed {
                    bail!("{name}: first boot failed: {status:?}");
                }
                if status.phase > phase || status.phase == phase && status.outcome == Outcome::Done {
                    return Ok(status.clone());
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let machine = self.running.as_mut().context("the machine is off")?;
            let console = machine.console();
            let (which, line) = console
                .wait_for_any(&[CONSOLE_PREFIX, PANIC], left)
                .with_context(|| format!("{name} on its way to {phase:?}"))?;
            if which == 1 {
                let said = console.transcript();
                bail!("{name}: {line}\n{}", crate::console::tail(said.as_bytes()));
            }
            self.newest = Status::from_console_line(&line).or(self.newest.take());
        }
    }

    fn phases(&mut self) -> Vec<(String, Duration)> {
        let Some(machine) = self.running.as_mut() else {
            return Vec::new();
        };
        let (on, clock) = (machine.switched_on(), self.order.clock);
        let console = machine.console();
        let mut rows = Vec::new();
        let mut last = Duration::ZERO;
        for (name, pattern) in [
            ("firmware, kernel, stage 0", "kimage-init: root found"),
            ("systemd until first boot", CONSOLE_PREFIX),
        ] {
            if let Some(time) = console.time_of(pattern) {
                let after = clock.own(time - on);
                rows.push((name.to_owned(), after.saturating_sub(last)));
                last = after;
            }
        }
        let transcript = console.transcript();
        let reports = transcript.lines().filter_map(Status::from_console_line);
        rows.extend(durations(reports).map(|(name, took)| match name.as_str() {
            // First boot counts from its own beginning.
            "in all" => (name, last + took),
            _ => (name, took),
        }));
        rows
    }

    fn renew(self, network: &Network, site: &Platform, instance: &str) -> Result<Self> {
        let mut order = self.order.clone();
        instance.clone_into(&mut order.instance);
        drop(self);
        site.make(network, order)
    }
}

/// A file system with `user-data` and `meta-data`, as cloud-localds and hypervisors make it.
fn seed(order: &Order, folder: &TempDir) -> Result<()> {
    let path = |name: &str| folder.path().join(name);
    let Order {
        instance,
        name,
        address,
        zone,
        ..
    } = order;
    fs::write(path("user-data"), &order.config)?;
    fs::write(
        path("meta-data"),
        format!(
            "instance-id: {instance}\nlocal-hostname: {name}\nlocal-ipv4: {address}\navailability-zone: {zone}\nregion: bench\n"
        ),
    )?;
    fs::File::create(path("cidata"))?.set_len(2 << 20)?;
    finish(command("mkfs.vfat").args(["-n", "CIDATA"]).arg(path("cidata")))?;
    let mut copy = command("mcopy");
    copy.arg("-i").arg(path("cidata"));
    finish(copy.arg(path("user-data")).arg(path("meta-data")).arg("::"))?;
    Ok(())
}
