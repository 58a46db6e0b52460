//! A standing cluster, and one join after the other into it.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kimage_firstboot::join::is_ready;
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, Shape, address};
use kimage_qemu_tests::images::release;
use kimage_qemu_tests::kubeadm;
use kimage_qemu_tests::namespaces::machine::Contained;
use serde_json::Value;

use crate::observed::{self, Agent, Mark};
use crate::ways::{CONTAINERS, JOINING, Way};

/// The control plane of the standing cluster.
const CONTROL_PLANE: &str = "cp1";
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at the Node.
const POLL: Duration = Duration::from_millis(10);

/// One measured join.
#[derive(Debug)]
pub(crate) struct Join {
    /// From switching on until the API said so.
    pub(crate) ready: Duration,
    /// All that happened on the way, in order.
    pub(crate) marks: Vec<Mark>,
    /// As first boot reports them.
    pub(crate) phases: Vec<(String, Duration)>,
    /// Read from the root's device until Ready.
    pub(crate) disk_bytes: u64,
    /// Processor time of whoever joined.
    pub(crate) processor: Duration,
    /// Processor time of preparing containerd's store.
    pub(crate) containers: Duration,
}

/// The standing cluster.
pub(crate) struct Bench {
    cluster: Cluster<Contained>,
    /// A worker's NodeConfig.
    ordinary: String,
    image: PathBuf,
    /// Machines so far.
    count: u8,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let image = release("ubuntu-24.04", "worker")?.join("disk.raw");
        let kubeadm = kubeadm::program();
        let mut cluster = Cluster::<Contained>::new(Shape {
            etcd: 0,
            control_planes: 1,
            workers: 0,
        })?;
        cluster.start_all_shuffled()?;
        cluster.wait_for_service(PATIENCE)?;
        let ordinary = cluster.user_data("worker")?;
        let shared = cluster
            .ordinary("worker", "x", address("w", 0), &ordinary)?
            .shared;
        std::fs::copy(kubeadm, shared.join("kubeadm")).context("bring kubeadm to the machines")?;
        Ok(Self {
            cluster,
            ordinary,
            image: image.canonicalize()?,
            count: 0,
        })
    }

    /// The agent of the control plane.
    pub(crate) fn agent(&mut self) -> Result<Agent> {
        observed::agent(self.cluster.machine(CONTROL_PLANE))
    }

    /// Joins one more machine, and destroys it.
    pub(crate) fn join(&mut self, way: Way, run: usize) -> Result<Join> {
        self.count += 1;
        let (name, place) = (format!("{}{run}", way.letter()), address("w", self.count));
        let config = way.config(&self.ordinary)?;
        let mut blueprint = self.cluster.ordinary("worker", &name, place, &config)?;
        blueprint.special.etc = way.files(&name, place, &self.ordinary)?;
        let shared = blueprint.shared.clone();
        self.cluster.add_machine(blueprint)?;
        observed::make_cold(&self.image, PATIENCE)?;
        let disks = observed::disks()?;

        let (on, clock) = (Instant::now(), SystemTime::now());
        self.cluster.machine(&name).start()?;
        let watched = self.watch(&name, on);
        let machine = self.cluster.machine(&name);
        let (registered, ready) = watched.with_context(|| machine.journal_tail())?;
        let disk_bytes = observed::disk_bytes(&self.image, &disks)?;

        let left = |what: &str| observed::processor(&shared.join(format!("{name}.{what}")), PATIENCE);
        let (processor, containers) = (left(JOINING)?, left(CONTAINERS)?);
        let mut marks = observed::marks(machine, way.unit(), clock)?;
        for (what, after) in [
            ("the Node is registered", registered),
            ("the Node is Ready", ready),
        ] {
            let what = what.to_owned();
            marks.push(Mark { what, after });
        }
        marks.sort_by_key(|mark| mark.after);
        let phases = machine.phases();
        machine.kill()?;
        Ok(Join {
            ready,
            marks,
            phases,
            disk_bytes,
            processor,
            containers,
        })
    }

    /// When the API knows the Node, and when it says that it is Ready; as an administrator sees it, through the balancer.
    fn watch(&self, name: &str, on: Instant) -> Result<(Duration, Duration)> {
        let api = self.cluster.api()?;
        self.cluster.network().within(|| {
            let mut registered = None;
            loop {
                let node: Option<Value> = api.get(&format!("/api/v1/nodes/{name}"))?;
                if let Some(node) = node {
                    let now = on.elapsed();
                    let registered = *registered.get_or_insert(now);
                    if is_ready(&node) {
                        return Ok((registered, now));
                    }
                }
                ensure!(on.elapsed() < PATIENCE, "{name} is not Ready after {PATIENCE:?}");
                std::thread::sleep(POLL);
            }
        })
    }
}
