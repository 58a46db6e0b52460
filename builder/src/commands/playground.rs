//! `kimage cluster up`, `down` and `serve`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kimage_roles::status::{Outcome, Phase, Status};

use super::{Context, build, print, run};
use crate::cli::{Build, ClusterDown, ClusterServe, ClusterUp, ImageArgument};
use crate::failure::{ExitCode, Failure};
use crate::pipeline::DiskFormat;
use crate::playground::{self, KUBECONFIG, Machine, Order, Playground, Watch};
use crate::progress::{Task, duration};
use crate::qemu::{self, Accelerator, Firmware};
use crate::release::names;

/// Between two looks at the machines.
const TICK: Duration = Duration::from_millis(250);
/// The base of images that are built on the way.
const BASE: &str = "ubuntu-24.04";

pub(super) fn up(arguments: &ClusterUp, context: &Context) -> Result<()> {
    let began = Instant::now();
    let folder = &arguments.directory;
    // What can be refused is refused before anything long begins.
    playground::refuse(folder)?;
    qemu::program()?;
    Firmware::find(true)?;
    let accelerator = run::accelerator(arguments.accel, context)?;
    build_missing(arguments, context)?;
    let order = Order {
        name: arguments.name.clone(),
        control_planes: arguments.control_planes,
        workers: arguments.workers,
        control_plane_memory_mb: arguments.control_plane_memory,
        worker_memory_mb: arguments.worker_memory,
        cpus: arguments.cpus,
        port: arguments.port,
        kvm: accelerator == Accelerator::Kvm,
        images: arguments.image_dir.clone(),
    };
    let playground = playground::make(folder, &order)?;
    let place = folder.display();
    if let Err(error) = playground::start(folder) {
        // Nothing of it ever worked, so there is nothing to look at.
        playground::take_down(folder).context("remove what was made")?;
        return Err(error);
    }
    context.progress.line(&format!(
        "{place}: cluster {} starts, API at 127.0.0.1:{}; `kimage cluster down {place}` ends it",
        playground.name, playground.port
    ));
    await_service(folder, &playground, arguments.timeout, context)?;
    context.progress.line(&format!(
        "{place}: {} in service after {}; try",
        match playground.machines.len() {
            1 => "1 machine is".to_owned(),
            many => format!("{many} machines are"),
        },
        duration(began.elapsed())
    ));
    let kubeconfig = folder.join(KUBECONFIG);
    context.progress.line(&format!(
        "  kubectl --kubeconfig {} get nodes",
        kubeconfig.display()
    ));
    print(format!("{}\n", kubeconfig.display()).as_bytes())
}

pub(super) fn down(arguments: &ClusterDown, context: &Context) -> Result<()> {
    let place = arguments.directory.display();
    if playground::take_down(&arguments.directory)? {
        context
            .progress
            .line(&format!("{place}: the cluster has ended and is removed"));
    } else {
        context.progress.warn(&format!(
            "{place}: the cluster has ended and is removed; the folder stays, it holds files that kimage did not make"
        ));
    }
    Ok(())
}

pub(super) fn serve(arguments: &ClusterServe) -> Result<()> {
    playground::serve(&arguments.directory)
}

/// Builds roles that are not there, as `kimage build` would.
fn build_missing(arguments: &ClusterUp, context: &Context) -> Result<()> {
    let worker = (arguments.workers > 0).then_some("worker");
    for role in ["control-plane"].into_iter().chain(worker) {
        let release = arguments.image_dir.join(role);
        let needed = [DiskFormat::Raw.file_name(), names::OVMF_VARS];
        if needed.iter().all(|name| release.join(name).is_file()) {
            continue;
        }
        context.progress.line(&format!(
            "{} is not built yet: kimage build --role {role} --output {}",
            release.display(),
            arguments.image_dir.display()
        ));
        let order = Build {
            role: role.to_owned(),
            image: ImageArgument {
                image: BASE.to_owned(),
            },
            format: vec![DiskFormat::Raw, DiskFormat::Qcow2],
            output: arguments.image_dir.clone(),
            keys: None,
            signer: None,
            no_cache: false,
            offline: false,
            go_proxy: None,
            jobs: None,
            json: false,
        };
        build::run(&order, context)?;
    }
    Ok(())
}

/// A machine whose way into service is watched.
struct Awaited<'a> {
    machine: &'a Machine,
    watch: Watch,
    task: Option<Task>,
    seen: Option<Status>,
}

/// Waits until all machines are in service.
///
/// # Errors
/// A machine has ended or given up, the supervisor is gone, or `timeout` has passed; the cluster is left as it is.
fn await_service(folder: &Path, playground: &Playground, timeout: Duration, context: &Context) -> Result<()> {
    let end = Instant::now() + timeout;
    let mut awaited: Vec<Awaited<'_>> = playground
        .machines
        .iter()
        .map(|machine| Awaited {
            machine,
            watch: Watch::new(&folder.join(machine.console())),
            task: None,
            seen: None,
        })
        .collect();
    while awaited.iter().any(|machine| !machine.is_in_service()) {
        for machine in &mut awaited {
            machine.look(folder, context)?;
        }
        let place = folder.display();
        if !playground::is_running(folder) {
            let hint = format!("see {place}/supervisor.log; `kimage cluster down {place}` cleans up");
            bail!(Failure::new(ExitCode::Failed, "the cluster's supervisor has ended").hint(hint));
        }
        if Instant::now() > end {
            let late: Vec<String> = awaited
                .iter()
                .filter(|machine| !machine.is_in_service())
                .map(Awaited::standing)
                .collect();
            let message = format!("not in service after {}: {}", duration(timeout), late.join("; "));
            let hint =
                format!("the cluster goes on; `kimage explain {place}/machines/NAME/console.log` says more");
            bail!(Failure::new(ExitCode::Failed, message).hint(hint));
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

impl Awaited<'_> {
    fn is_in_service(&self) -> bool {
        let seen = self.seen.as_ref();
        seen.is_some_and(|status| status.phase == Phase::InService && status.outcome == Outcome::Done)
    }

    /// `cp-1: etcd (etcd-forming: waiting for a quorum)`.
    fn standing(&self) -> String {
        let name = &self.machine.name;
        match &self.seen {
            None => format!("{name}: no report yet"),
            Some(status) => format!("{name}: {}", phase_of(status)),
        }
    }

    fn look(&mut self, folder: &Path, context: &Context) -> Result<()> {
        let (name, place) = (&self.machine.name, folder.display());
        let explain = || {
            format!("kimage explain {place}/machines/{name}/console.log; then `kimage cluster down {place}`")
        };
        if self.task.is_none() && self.seen.is_none() && folder.join(self.machine.console()).exists() {
            let task = context.progress.task(name, None);
            task.message("booting");
            self.task = Some(task);
        }
        if folder.join(self.machine.ended()).exists() {
            let message = format!("machine {name} has ended");
            bail!(Failure::new(ExitCode::Failed, message).hint(explain()));
        }
        let newest = self.watch.newest();
        let Some(status) = newest
            .with_context(|| format!("read the console of {name}"))?
            .cloned()
        else {
            return Ok(());
        };
        if self.seen.as_ref() == Some(&status) {
            return Ok(());
        }
        if status.outcome == Outcome::Failed {
            let message = format!("machine {name} has given up: {}", phase_of(&status));
            bail!(Failure::new(ExitCode::Failed, message).hint(explain()));
        }
        if let Some(task) = &self.task {
            // That something is not there yet is what waiting is: the cause alone says it.
            let waits = status.cause.map(|cause| format!(", waits: {cause}"));
            task.message(&format!("{}{}", status.phase.as_str(), waits.unwrap_or_default()));
        }
        self.seen = Some(status);
        if self.is_in_service()
            && let Some(task) = self.task.take()
        {
            task.done();
        }
        Ok(())
    }
}

/// `etcd (etcd-forming: waiting for a quorum)`.
fn phase_of(status: &Status) -> String {
    let phase = status.phase.as_str();
    match (status.cause, &status.message) {
        (Some(cause), Some(message)) => format!("{phase} ({cause}: {message})"),
        (Some(cause), None) => format!("{phase} ({cause})"),
        _ => phase.to_owned(),
    }
}
