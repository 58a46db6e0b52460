//! The process that holds a playground: switch, gateway, balancer, and the machines, which it starts one after the other
//! where they would starve each other. However it ends, the kernel ends all of QEMU with it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kimage_roles::node_config::NodeRole;
use kimage_roles::status::Phase;
use rustix::process::setsid;

use super::console::Watch;
use super::process::Identity;
use super::{CLUSTER, Machine, Playground, balancer, hardware, switch};
use crate::qemu::{Accelerator, Firmware};
use crate::tool::{Tool, tail};

pub(super) const PID_FILE: &str = "supervisor.pid";
pub(super) const LOG: &str = "supervisor.log";
pub(super) const GATEWAY_PID: &str = "gateway.pid";
/// Says that the supervisor came as far as its first machine.
pub(super) const STARTED: &str = "started";
/// Between two looks at the machines.
const TICK: Duration = Duration::from_millis(500);
/// Between two questions of the balancer to an API server; each costs an emulated one dearly.
const CHECKS: Duration = Duration::from_secs(1);
const SLOW_CHECKS: Duration = Duration::from_secs(5);
/// How long the gateway may take until it is at its cable, and between two looks.
const GATEWAY_START: Duration = Duration::from_secs(30);
const GATEWAY_LOOK: Duration = Duration::from_millis(20);
/// How long a supervisor may take until it starts machines.
const START: Duration = Duration::from_secs(60);

/// Starts the supervisor of the playground in `folder` as a process of its own, and waits until it works.
///
/// # Errors
/// It ended; with its words.
pub fn start(folder: &Path) -> Result<()> {
    let log = folder.join(LOG);
    let open = || File::options().create(true).append(true).open(&log);
    let (output, errors) = open()
        .and_then(|output| Ok((output, open()?)))
        .with_context(|| format!("open {}", log.display()))?;
    let program = std::env::current_exe().context("find kimage's own program")?;
    let mut command = Tool::new(program)
        .inherit(&["PATH", "TMPDIR"])
        .args(["cluster", "serve"])
        .arg(std::path::absolute(folder).context("find the playground's folder")?)
        .into_command();
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let mut child = command.spawn().context("start the supervisor")?;
    let end = Instant::now() + START;
    while !folder.join(STARTED).exists() {
        let ended = child.try_wait().context("wait for the supervisor")?;
        if ended.is_some() || Instant::now() > end {
            let said = std::fs::read(&log).unwrap_or_default();
            bail!("the cluster's supervisor did not start\n{}", tail(&said));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Is the supervisor, for ever. Returns only when it can't work.
///
/// # Errors
/// It can't start what a playground needs.
pub fn serve(folder: &Path) -> Result<()> {
    let playground = Playground::open(folder)?;
    // No signal of the terminal that `up` ran on is for us.
    // Fails only for one that is the leader of its group already.
    let _ = setsid();
    // Paths of sockets may have 108 bytes at most (unix(7)).
    std::env::set_current_dir(folder).with_context(|| format!("enter {}", folder.display()))?;
    if super::is_running(Path::new(".")) {
        bail!("the playground has a supervisor already");
    }
    record(std::process::id(), Path::new(PID_FILE))?;
    let firmware = Firmware::find(true)?;
    switch::start(&playground)?;
    let mut gateway = hardware::start_gateway(&playground)?;
    record(gateway.id(), Path::new(GATEWAY_PID))?;
    wait_for_gateway(&mut gateway)?;
    let backends: Vec<u16> = playground
        .machines
        .iter()
        .filter_map(|machine| machine.forward)
        .collect();
    let ca = Path::new(CLUSTER).join("ca.crt");
    let ca = std::fs::read_to_string(&ca).with_context(|| format!("read {}", ca.display()))?;
    let interval = if playground.kvm { CHECKS } else { SLOW_CHECKS };
    balancer::start(playground.port, &backends, &ca, interval)?;
    let mut started: Vec<Started> = Vec::new();
    loop {
        while let Some(next) = playground.machines.get(started.len()) {
            if !playground.kvm && !may_start(next, &mut started) {
                break;
            }
            started.push(Started::new(next, playground.accelerator(), &firmware)?);
            File::create(STARTED).context("say that machines start")?;
        }
        for machine in &mut started {
            machine.look()?;
        }
        check_gateway(&mut gateway)?;
        thread::sleep(TICK);
    }
}

/// Writes down who `pid` is. One that has ended already is nobody's to end; who started it sees that it did.
fn record(pid: u32, path: &Path) -> Result<()> {
    Identity::of(pid).map_or(Ok(()), |identity| identity.write(path))
}

/// Returns when QEMU has opened the gateway's end of its cable, the last thing that can fail for want of a feature.
fn wait_for_gateway(gateway: &mut Child) -> Result<()> {
    let end = Instant::now() + GATEWAY_START;
    loop {
        let ready = switch::gateway().exists();
        check_gateway(gateway)?;
        if ready {
            return Ok(());
        }
        if Instant::now() > end {
            bail!(
                "QEMU's user network was not ready after {} s",
                GATEWAY_START.as_secs()
            );
        }
        thread::sleep(GATEWAY_LOOK);
    }
}

fn check_gateway(gateway: &mut Child) -> Result<()> {
    if let Some(status) = gateway.try_wait().context("wait for the gateway")? {
        let said = std::fs::read(hardware::GATEWAY_LOG).unwrap_or_default();
        bail!(
            "QEMU's user network ended with {status}; it needs QEMU 7.2 or newer with libslirp\n{}",
            tail(&said)
        );
    }
    Ok(())
}

/// A machine that was started.
struct Started {
    name: String,
    child: Child,
    watch: Watch,
    ended: bool,
    file: std::path::PathBuf,
}

impl Started {
    fn new(machine: &Machine, accelerator: Accelerator, firmware: &Firmware) -> Result<Self> {
        let child = hardware::start_machine(machine, accelerator, firmware)
            .with_context(|| format!("start machine {}", machine.name))?;
        record(child.id(), &machine.pid_file())?;
        Ok(Self {
            name: machine.name.clone(),
            child,
            watch: Watch::new(&machine.console()),
            ended: false,
            file: machine.ended(),
        })
    }

    /// Notices that it has ended, for `up` to see.
    fn look(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let status = self.child.try_wait();
        if let Some(status) = status.with_context(|| format!("wait for machine {}", self.name))? {
            self.ended = true;
            std::fs::write(&self.file, format!("QEMU ended with {status}\n"))
                .with_context(|| format!("write {}", self.file.display()))?;
        }
        Ok(())
    }

    fn phase(&mut self) -> Option<Phase> {
        let newest = self.watch.newest().ok().flatten();
        newest.map(|status| status.phase)
    }
}

/// Emulated machines that boot together starve each other. Members of etcd must meet, so the next control plane starts
/// when the one before waits for it; workers start when there is a cluster to join, one after the other.
fn may_start(next: &Machine, started: &mut [Started]) -> bool {
    let reached = |machine: &mut Started, phase: Phase| {
        machine.ended || machine.phase().is_some_and(|reached| reached >= phase)
    };
    match next.role {
        NodeRole::Worker => started.iter_mut().all(|machine| reached(machine, Phase::Node)),
        _ => started
            .last_mut()
            .is_none_or(|machine| reached(machine, Phase::Etcd)),
    }
}
