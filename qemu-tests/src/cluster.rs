//! A cluster, on whichever bench its machines stand: `kimage cluster` makes its keys and user-data, HAProxy stands in
//! front, a signed inventory says which instances exist. A claim about a `Cluster<M>` needs neither bench in particular;
//! one about a `Cluster<Contained>` ([`crate::namespaces`]) or a `Cluster<Shipped>` ([`crate::shipped`]) says which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kimage_firstboot::http::Trust;
use kimage_firstboot::join::is_ready;
use kimage_firstboot::kubernetes::{Api, Applied, Caller};
use kimage_roles::certificate::Profile;
use kimage_roles::status::Phase;
use serde_json::Value;
use tempfile::TempDir;

use self::instances::Instances;
use self::keys::{Etcd, Keys};
use self::machine::{Machine, Site};
use self::writer::{Record, Writer};
use crate::clock::Clock;
use crate::namespaces::balancer::{Balancer, PORT};
use crate::namespaces::network::{BENCH, Network};
use crate::random::Random;

mod instances;
pub mod keys;
pub mod machine;
pub mod members;
pub mod writer;

/// Name of every cluster.
const NAME: &str = "bench";
const POLL: Duration = Duration::from_millis(200);
/// Zones that machines stand in, one after the other.
const ZONES: [&str; 3] = ["a", "b", "c"];

/// How many machines of each role there may be; without machines for etcd it runs on the control planes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Machines for etcd.
    pub etcd: u8,
    /// Control planes.
    pub control_planes: u8,
    /// Workers.
    pub workers: u8,
}

impl Shape {
    fn etcd(self) -> Etcd {
        if self.etcd == 0 {
            Etcd::Stacked
        } else {
            Etcd::External
        }
    }

    /// Role, name and address of every machine.
    pub(crate) fn machines(self) -> impl Iterator<Item = (&'static str, String, Ipv4Addr)> {
        let all = [
            ("e", "etcd", self.etcd),
            ("cp", "control-plane", self.control_planes),
            ("w", "worker", self.workers),
        ];
        all.into_iter().flat_map(|(prefix, role, count)| {
            (1..=count).map(move |number| (role, format!("{prefix}{number}"), address(prefix, number)))
        })
    }
}

/// The cluster.
pub struct Cluster<M: Machine> {
    // Machines go before the network that they are plugged into.
    pub(crate) machines: Vec<M>,
    pub(crate) site: M::Site,
    pub(crate) instances: Instances,
    pub(crate) keys: Keys,
    shape: Shape,
    /// Between two checks of a server by the balancer.
    checks: Duration,
    /// What its machines live by.
    pub(crate) clock: Clock,
    balancer: Option<Balancer>,
    pub(crate) network: Network,
    _folder: TempDir,
    began: Instant,
}

impl<M: Machine> Cluster<M> {
    /// Keys, network, balancer and what `site` makes of them; no machines yet, but they will live by `clock`. The
    /// balancer looks at each control plane once in `checks`.
    pub(crate) fn without_machines(
        shape: Shape,
        checks: Duration,
        clock: Clock,
        site: impl FnOnce(&Network, &Path) -> Result<M::Site>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let endpoint = format!("{BENCH}:{PORT}");
        let keys = Keys::create(folder.path().join("keys"), NAME, &endpoint, shape.etcd())?;
        let network = Network::new()?;
        let mut cluster = Self {
            machines: Vec::new(),
            site: site(&network, folder.path())?,
            instances: Instances::default(),
            keys,
            shape,
            checks,
            clock,
            balancer: None,
            network,
            _folder: folder,
            began: Instant::now(),
        };
        cluster.start_balancer()?;
        Ok(cluster)
    }

    /// Puts the balancer in front of the control planes.
    pub fn start_balancer(&mut self) -> Result<()> {
        let backends: Vec<Ipv4Addr> = (1..=self.shape.control_planes)
            .map(|number| address("cp", number))
            .collect();
        let ca = self.keys.text("ca.crt")?;
        self.balancer = Some(Balancer::checking_every(
            self.checks,
            &self.network,
            &backends,
            &ca,
        )?);
        Ok(())
    }

    /// Takes the balancer away.
    pub fn stop_balancer(&mut self) {
        self.balancer = None;
    }

    /// The network that machines are plugged into.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The cluster's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Says when something was reached, counted from the cluster's beginning.
    #[expect(clippy::print_stdout, reason = "what a bench shows of its long work")]
    pub fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Number of machines.
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// The machine called `name`.
    ///
    /// # Panics
    ///
    /// There is none.
    #[expect(clippy::expect_used, reason = "a test names machines that it made")]
    pub fn machine(&mut self, name: &str) -> &mut M {
        let mut machines = self.machines.iter_mut();
        machines
            .find(|machine| machine.name() == name)
            .expect("a machine of that name")
    }

    /// Takes the machine called `name` out of the cluster.
    pub(crate) fn take(&mut self, name: &str) -> Result<M> {
        let mut machines = self.machines.iter();
        let index = machines.position(|machine| machine.name() == name);
        Ok(self.machines.remove(index.with_context(|| name.to_owned())?))
    }

    /// Switches all machines on at once, in an order whose seed is printed.
    pub fn start_all_shuffled(&mut self) -> Result<()> {
        self.start_all_staggered(Duration::ZERO)
    }

    /// Switches all machines on, in an order and with pauses of at most `longest` whose seed is printed.
    pub fn start_all_staggered(&mut self, longest: Duration) -> Result<()> {
        let mut random = Random::announced();
        random.shuffle(&mut self.machines);
        for machine in &mut self.machines {
            machine.start()?;
            std::thread::sleep(random.duration(longest));
        }
        Ok(())
    }

    /// Cuts the power of all machines.
    pub fn kill_all(&mut self) -> Result<()> {
        self.machines.iter_mut().try_for_each(Machine::kill)
    }

    /// Waits until every machine says that it is in service.
    pub fn wait_for_service(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        for machine in &mut self.machines {
            machine.wait_for(Phase::InService, end.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// Waits until the machine called `name` says that it is in service.
    pub fn wait_for_one(&mut self, name: &str, deadline: Duration) -> Result<()> {
        self.machine(name).wait_for(Phase::InService, deadline).map(drop)
    }

    /// Destroys the machine called `name` for good, tells the inventory, and puts a fresh one in its place: the same image,
    /// name and address, another instance. It is switched off.
    pub fn replace(&mut self, name: &str) -> Result<()> {
        let old = self.take(name)?;
        let instance = self.instances.replace(old.instance());
        let fresh = old.renew(&self.network, &self.site, &instance)?;
        self.machines.push(fresh);
        self.publish()
    }

    /// Publishes which instances exist, as a platform would.
    pub(crate) fn publish(&mut self) -> Result<()> {
        let document = self
            .instances
            .sign(NAME, self.clock.now(), &self.keys.secret("inventory.key")?)?;
        self.site.publish(&document)
    }

    /// A table: what each machine did since it was switched on, and how long each took.
    #[expect(clippy::print_stdout, reason = "real times are what the bench is for")]
    pub fn print_phases(&mut self) {
        let mut columns: Vec<(String, Vec<(String, Duration)>)> = self
            .machines
            .iter_mut()
            .map(|machine| (machine.name().to_owned(), machine.phases()))
            .collect();
        columns.sort();
        // Rows in the order in which machines pass through them; whoever does not has none.
        let mut rows: Vec<&str> = Vec::new();
        for (name, _) in columns.iter().flat_map(|(_, phases)| phases) {
            if !rows.contains(&name.as_str()) {
                rows.push(name);
            }
        }
        rows.sort_by_key(|row| ROWS.iter().position(|known| known == row));
        let names: String = columns.iter().map(|(name, _)| format!("{name:>10}")).collect();
        if self.clock.slowness() > 1 {
            println!(
                "times by the machines' own clock, whose seconds last {} of the wall's",
                self.clock.slowness()
            );
        }
        println!("{:<28}{names}", "phase");
        for row in rows {
            let cells = columns.iter().map(|(_, phases)| {
                let phases: BTreeMap<&str, Duration> =
                    phases.iter().map(|(name, took)| (name.as_str(), *took)).collect();
                phases
                    .get(row)
                    .map_or("-".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()))
            });
            let line: String = cells.map(|cell| format!("{cell:>10}")).collect();
            println!("{row:<28}{line}");
        }
    }

    /// The API through the balancer, as an administrator.
    pub fn api(&self) -> Result<Api> {
        let pair = self.keys.issue("ca", &Profile::super_admin(), self.clock.now())?;
        let caller = Caller::Certificate(pair);
        let trust = Trust::Pinned(self.keys.text("ca.crt")?);
        Ok(Api::new(&format!("https://{BENCH}:{PORT}"), trust, caller)?)
    }

    /// The object at `path`, if there is one.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        let api = self.api()?;
        self.network.within(|| Ok(api.get(path)?))
    }

    /// The objects at `path`.
    pub fn items(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.get(path)?.with_context(|| format!("no {path}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Makes all `objects` be.
    pub fn apply(&self, objects: &[Value], deadline: Duration) -> Result<()> {
        let api = self.api()?;
        for object in objects {
            let what = format!("apply {} {}", object["kind"], object["metadata"]["name"]);
            until(deadline, &what, || {
                let applied = self.network.within(|| Ok(api.apply(object)?))?;
                ensure!(applied == Applied::Done, "{applied:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Names of the machines that are to be Nodes.
    pub fn node_names(&self) -> BTreeSet<String> {
        let names = self.machines.iter().map(Machine::name);
        names
            .filter(|name| !name.starts_with('e'))
            .map(str::to_owned)
            .collect()
    }

    /// Waits until all machines but those for etcd are Nodes and Ready, and nobody else is; returns the Nodes.
    pub fn wait_for_ready_nodes(&self, deadline: Duration) -> Result<Vec<Value>> {
        until(deadline, "all Nodes Ready", || {
            let nodes = self.items("/api/v1/nodes")?;
            let ready = nodes.iter().filter(|node| is_ready(node));
            let names: BTreeSet<String> = ready
                .filter_map(|node| node["metadata"]["name"].as_str())
                .map(str::to_owned)
                .collect();
            let wanted = self.node_names();
            ensure!(names == wanted, "Ready are {names:?}, not {wanted:?}");
            Ok(nodes)
        })
    }

    /// Starts the client that writes through the balancer.
    pub fn start_writer(&self) -> Result<Writer> {
        Writer::start(self.api()?, self.network.name(), self.clock)
    }

    /// Acknowledged writes that the cluster doesn't have.
    pub fn lost(&self, record: &Record) -> Result<Vec<String>> {
        let found = self.items(writer::COLLECTION)?;
        let found: BTreeSet<&str> = found
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        let lost = record
            .acknowledged
            .iter()
            .filter(|name| !found.contains(name.as_str()));
        Ok(lost.cloned().collect())
    }
}

/// Where the machine called PREFIX and `number` stands.
pub fn address(prefix: &str, number: u8) -> Ipv4Addr {
    let first = match prefix {
        "e" => 10,
        "cp" => 20,
        _ => 30,
    };
    Ipv4Addr::new(10, 89, 0, first + number)
}

/// The zone of the machine at `address`.
pub(crate) fn zone(address: Ipv4Addr) -> &'static str {
    ZONES[usize::from(address.octets()[3]) % ZONES.len()]
}

/// Tries until it works.
///
/// # Errors
///
/// The last one, when `deadline` has passed.
pub fn until<T>(deadline: Duration, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match work() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > deadline => {
                return Err(error).with_context(|| format!("{what}: not within {deadline:?}"));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Rows of [`Cluster::print_phases`], in order.
const ROWS: [&str; 11] = [
    "firmware, kernel, stage 0",
    "systemd until first boot",
    "platform",
    "metadata",
    "plan",
    "configure",
    "etcd",
    "control-plane",
    "join",
    "node",
    "in all",
];
