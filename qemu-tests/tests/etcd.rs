//! Formation with the real etcd: members as processes on loopback addresses, formed by the code of the machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "times of a run are of interest")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use kimage_firstboot::etcd::client::Gateway;
use kimage_firstboot::etcd::config::Settings;
use kimage_firstboot::etcd::formation::{Formation, Patience, Settled, Step};
use kimage_firstboot::etcd::leave::Departure;
use kimage_firstboot::etcd::site::{Service, Site};
use kimage_firstboot::etcd::world::Means;
use kimage_firstboot::etcd::{Identity, Peer};
use kimage_firstboot::failure::Failure;
use kimage_firstboot::http::{self, Client, Trust};
use kimage_firstboot::inventory::{Claim, Inventory, SeenLists, Signed, Source, Standing};
use kimage_firstboot::record::etcd::EtcdKey;
use kimage_firstboot::record::file::RecordFile;
use kimage_firstboot::record::{Phase, Record, RecordStore, Written};
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::processes::start_for_good;
use kimage_roles::cause::Cause;
use kimage_roles::inventory::{CLOCK_SKEW, Instance, InstanceList, InstanceState, new_key};
use kimage_roles::node_config::Timing;
use kimage_roles::secret::Secret;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Longest wait for a cluster, in seconds; machines of continuous integration are slow.
const LIMIT: Duration = Duration::from_secs(180);

/// etcd as a child process.
#[derive(Clone)]
struct Process {
    program: PathBuf,
    config: PathBuf,
    child: Arc<Mutex<Option<Child>>>,
}

impl Service for Process {
    fn is_running(&self) -> anyhow::Result<bool> {
        let mut child = self.child.lock().unwrap();
        Ok(child
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none()))
    }

    #[expect(clippy::disallowed_methods, reason = "the test is systemd")]
    fn restart(&self) -> anyhow::Result<()> {
        self.stop()?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.config.with_extension("log"))?;
        let mut etcd = Command::new(&self.program);
        etcd.arg(format!("--config-file={}", self.config.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        *self.child.lock().unwrap() = Some(start_for_good(etcd)?);
        Ok(())
    }

    fn stop(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

/// Who was destroyed.
#[derive(Clone, Default)]
struct Gone(Arc<Mutex<BTreeSet<String>>>);

impl Inventory for Gone {
    fn standing(&self, claim: &Claim) -> Result<Standing, Failure> {
        let gone = self.0.lock().unwrap().contains(&claim.instance);
        Ok(if gone { Standing::Gone } else { Standing::Present })
    }
}

struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
    gone: Gone,
    /// Public key of who signs the list of instances in the folder; without one `gone` says who is gone.
    public_key: Option<String>,
    /// The last byte but one of all addresses.
    net: u32,
    started: u32,
    client: Client,
}

struct Node {
    site: Site,
    formation: Formation,
    process: Process,
    identity: Identity,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.process.stop());
    }
}

fn client(ca: &str, identity: (&str, &str)) -> Client {
    let settings = http::Settings {
        connect: Duration::from_secs(2),
        total: Duration::from_secs(10),
        max_body: 1 << 20,
        trust: Trust::Pinned(ca.to_owned()),
        identity: Some(http::Identity {
            certificate: identity.0.to_owned(),
            key: Secret::new(identity.1),
        }),
    };
    Client::new(&settings).unwrap()
}

/// The very etcd of the image.
fn etcd() -> PathBuf {
    let files = component("etcd").files;
    let program = files.into_iter().find(|file| file.path.ends_with("/etcd"));
    program.expect("the component holds etcd").source
}

impl Bench {
    fn new(number: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let net = number * 50 + std::process::id() % 50;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let names: Vec<String> = (1..10)
            .map(|n| format!("127.77.{net}.{n}"))
            .chain(["127.0.0.1".to_owned()])
            .collect();
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.signed_by(&key, &issuer).unwrap().pem();
        let key = key.serialize_pem();
        let pki = folder.path();
        std::fs::write(pki.join("ca.crt"), &ca).unwrap();
        for side in ["server", "peer"] {
            std::fs::write(pki.join(format!("{side}.crt")), &certificate).unwrap();
            std::fs::write(pki.join(format!("{side}.key")), &key).unwrap();
        }
        let client = client(&ca, (&certificate, &key));
        Self {
            folder,
            program: etcd(),
            gone: Gone::default(),
            public_key: None,
            net,
            started: 0,
            client,
        }
    }

    fn identity(&self, instance: u32, address: u32) -> Identity {
        Identity {
            instance: format!("i-{instance}"),
            name: format!("m{address}"),
            peer_url: format!("https://127.77.{}.{address}:2380", self.net),
            client_url: format!("https://127.77.{}.{address}:2379", self.net),
        }
    }

    /// All three machines as a fixed list.
    fn list(&self) -> Means {
        let peers = (1..=3).map(|address| {
            let Identity {
                name,
                peer_url,
                client_url,
                ..
            } = self.identity(0, address);
            Peer {
                name,
                peer_url,
                client_url,
            }
        });
        Means::List(peers.collect())
    }

    fn list_path(&self) -> PathBuf {
        self.folder.path().join("instances")
    }

    fn inventory(&self, node: &Path) -> Box<dyn Inventory> {
        let Some(public_key) = &self.public_key else {
            return Box::new(self.gone.clone());
        };
        let source = Source::File(self.list_path().to_string_lossy().into_owned());
        let seen = SeenLists::at(node.join("seen.json"));
        Box::new(Signed::new(source, "bench", public_key, seen).unwrap())
    }

    fn node(&mut self, address: u32, means: &Means) -> Node {
        self.started += 1;
        let identity = self.identity(self.started, address);
        let folder = self.folder.path().join(&identity.instance);
        let data = folder.join("data");
        std::fs::create_dir_all(&data).unwrap();
        let port = 20_000 + self.net * 40 + self.started * 3;
        let process = Process {
            program: self.program.clone(),
            config: folder.join("etcd.yaml"),
            child: Arc::default(),
        };
        let site = Site {
            store: Some(Box::new(RecordFile::new(self.folder.path().join("record")))),
            inventory: self.inventory(&folder),
            gateway: Gateway::new(self.client.clone()),
            service: Box::new(process.clone()),
            settings: Settings {
                identity: identity.clone(),
                loopback_client_url: format!("https://127.0.0.1:{port}"),
                loopback_peer_url: format!("https://127.0.0.1:{}", port + 1),
                metrics_url: format!("http://127.0.0.1:{}", port + 2),
                data,
                certificates: self.folder.path().to_owned(),
                cluster: "bench".to_owned(),
                timing: Timing {
                    etcd_heartbeat_milliseconds: 300,
                    etcd_election_milliseconds: 3000,
                    ..Timing::default()
                },
            },
            config: process.config.clone(),
            mark: folder.join("mark.json"),
            begin: Instant::now(),
        };
        let patience = Patience {
            takeover: Duration::from_secs(2),
            silence: Duration::from_secs(2),
        };
        let formation = Formation::new(identity.clone(), means.clone(), patience);
        Node {
            site,
            formation,
            process,
            identity,
        }
    }

    /// The machine is gone, and the inventory knows.
    fn destroy(&self, node: Node) {
        let mut gone = self.gone.0.lock().unwrap();
        gone.insert(node.identity.instance.clone());
    }

    fn log(&self, nodes: &[Node]) -> String {
        let last = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().rev().take(15).collect::<Vec<_>>().join("\n")
        };
        nodes
            .iter()
            .map(|node| last(&node.process.config.with_extension("log")) + "\n\n")
            .collect()
    }

    /// Steps all nodes until every one has settled in one cluster of all of them.
    fn settle(&self, nodes: &mut [Node]) -> Vec<Settled> {
        let begin = Instant::now();
        loop {
            let steps: Vec<_> = nodes
                .iter_mut()
                .map(|node| node.formation.step(&mut node.site))
                .collect();
            let settled: Vec<Settled> = steps
                .iter()
                .filter_map(|step| match step {
                    Ok(Step::Settled(settled)) => Some(settled.clone()),
                    _ => None,
                })
                .collect();
            let mut urls: Vec<&String> = nodes.iter().map(|node| &node.identity.client_url).collect();
            urls.sort();
            let whole = |settled: &Settled| settled.endpoints.iter().eq(urls.iter().copied());
            if settled.len() == nodes.len() && settled.iter().all(whole) {
                assert!(settled.iter().all(|one| one.cluster == settled[0].cluster));
                println!("{} members after {:?}", nodes.len(), begin.elapsed());
                return settled;
            }
            assert!(begin.elapsed() < LIMIT, "{steps:#?}\n{}", self.log(nodes));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn record(text: &str) -> Record {
    Record {
        phase: Phase::Forming,
        generation: 1,
        seed: text.to_owned(),
        token: "t".to_owned(),
        cluster: None,
        endpoints: Vec::new(),
        since: "2026-11-21T00:00:00Z".to_owned(),
    }
}

#[test]
fn three_machines_form_by_record_and_a_lost_one_is_replaced() {
    let mut bench = Bench::new(0);
    let mut nodes: Vec<Node> = (1..=3)
        .map(|address| bench.node(address, &Means::Record))
        .collect();
    let cluster = bench.settle(&mut nodes)[0].cluster;
    // etcd as a record's store: the same contract as all stores.
    let store = EtcdKey {
        client: bench.client.clone(),
        endpoints: vec![nodes[0].identity.client_url.clone()],
        key: "/other/record".to_owned(),
    };
    assert_eq!(store.get().unwrap(), None);
    assert_eq!(store.create(&record("a")).unwrap(), Written::Done);
    assert_eq!(store.create(&record("b")).unwrap(), Written::Conflict);
    let (_, version) = store.get().unwrap().unwrap();
    assert_eq!(store.replace(&version, &record("c")).unwrap(), Written::Done);
    assert_eq!(store.replace(&version, &record("d")).unwrap(), Written::Conflict);

    bench.destroy(nodes.pop().unwrap());
    let fresh = bench.node(4, &Means::Record);
    nodes.push(fresh);
    let settled = bench.settle(&mut nodes);
    assert_eq!(settled[0].cluster, cluster);
    // What was written before is there, read through the fresh member.
    let endpoints = vec![nodes[2].identity.client_url.clone()];
    let store = EtcdKey { endpoints, ..store };
    assert_eq!(store.get().unwrap().unwrap().0, record("c"));

    // All at once lose their power and come back.
    for node in &mut nodes {
        node.process.stop().unwrap();
        node.formation = Formation::new(node.identity.clone(), Means::Record, Patience::default());
    }
    assert_eq!(bench.settle(&mut nodes)[0].cluster, cluster);
    assert_eq!(store.get().unwrap().unwrap().0, record("c"));

    let stranger = Bench::new(2);
    let failure = Gateway::new(stranger.client)
        .status(&nodes[0].identity.client_url)
        .unwrap_err();
    assert_eq!(failure.cause, Cause::EtcdForeign, "{failure}");
}

#[test]
fn three_machines_form_by_list_and_one_comes_back_empty() {
    let mut bench = Bench::new(1);
    let means = bench.list();
    let mut nodes: Vec<Node> = (1..=3).map(|address| bench.node(address, &means)).collect();
    let cluster = bench.settle(&mut nodes)[0].cluster;
    bench.destroy(nodes.pop().unwrap());
    let fresh = bench.node(3, &means);
    nodes.push(fresh);
    assert_eq!(bench.settle(&mut nodes)[0].cluster, cluster);
    // The same instance, its disks empty.
    nodes[1].process.stop().unwrap();
    std::fs::remove_dir_all(&nodes[1].site.settings.data).unwrap();
    std::fs::create_dir_all(&nodes[1].site.settings.data).unwrap();
    std::fs::remove_file(&nodes[1].site.mark).unwrap();
    assert_eq!(bench.settle(&mut nodes)[0].cluster, cluster);
}

#[test]
fn a_silent_member_outlives_every_list_from_before_it_came() {
    let (key, public_key) = new_key().unwrap();
    let mut bench = Bench::new(4);
    bench.public_key = Some(public_key);
    let mut nodes: Vec<Node> = (1..=3)
        .map(|address| bench.node(address, &Means::Record))
        .collect();
    bench.settle(&mut nodes);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    // A complete list of those that exist without the third, which has just come.
    let older: Vec<Instance> = nodes[..2]
        .iter()
        .map(|node| Instance::new(node.identity.instance.clone(), InstanceState::Running))
        .collect();
    let path = bench.list_path();
    let publish = |sequence: u64, issued_at: u64| {
        let list = InstanceList {
            cluster: "bench".to_owned(),
            sequence,
            issued_at,
            expires_at: issued_at + 3600,
            complete: true,
            instances: older.clone(),
        };
        std::fs::write(&path, list.sign(&key).unwrap()).unwrap();
    };
    let silent = nodes.pop().unwrap();
    silent.process.stop().unwrap();
    for (sequence, issued_at) in [(1, now - 1800), (2, now)] {
        publish(sequence, issued_at);
        for node in &mut nodes {
            let step = node.formation.step(&mut node.site).unwrap();
            let Step::Settled(settled) = step else {
                panic!("{step:?}\n{}", bench.log(&nodes));
            };
            assert_eq!(settled.endpoints.len(), 3, "{settled:?}");
            assert!(
                settled.notes.iter().any(|note| note.contains("may be older")),
                "{settled:?}"
            );
        }
    }
    // One that is surely later says that it is gone; the older ones never come back.
    publish(3, now + CLOCK_SKEW.as_secs());
    assert!(
        bench
            .settle(&mut nodes)
            .iter()
            .all(|settled| settled.endpoints.len() == 2)
    );
    publish(2, now);
    let failure = nodes[0].site.inventory.standing(&Claim {
        instance: "i-9".to_owned(),
        since: Some(0),
    });
    println!("{}", failure.as_ref().unwrap_err());
    assert!(failure.unwrap_err().message().contains("has been seen"));
}

#[test]
fn a_member_that_is_told_to_leave_goes_and_another_comes_without_any_inventory() {
    let mut bench = Bench::new(3);
    let means = bench.list();
    let mut nodes: Vec<Node> = (1..=3).map(|address| bench.node(address, &means)).collect();
    let settled = bench.settle(&mut nodes);
    let gateway = Gateway::new(bench.client.clone());
    let own = |node: &Node| node.site.settings.loopback_client_url.clone();
    let leader = gateway.status(&own(&nodes[0])).unwrap().leader.unwrap();
    // The leader leaves: the hardest case.
    let position = settled.iter().position(|one| one.member == leader).unwrap();
    let mut leaving = nodes.remove(position);
    let begin = Instant::now();
    loop {
        match leaving.formation.leave(&mut leaving.site) {
            Ok(Departure::Gone) => break,
            Ok(Departure::Working) => {}
            waiting => {
                assert!(begin.elapsed() < LIMIT, "{waiting:#?}\n{}", bench.log(&nodes));
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
    println!("left after {:?}", begin.elapsed());
    let (_, members) = gateway.members(&own(&nodes[0]), true).unwrap();
    assert_eq!(members.len(), 2);
    // Not even its own first boot brings it back.
    let failure = leaving.formation.step(&mut leaving.site).unwrap_err();
    assert_eq!(failure.cause, Cause::EtcdLeft);
    assert!(!leaving.process.is_running().unwrap());
    let address = u32::try_from(position).unwrap() + 1;
    drop(leaving);
    nodes.push(bench.node(address, &means));
    assert_eq!(bench.settle(&mut nodes)[0].cluster, settled[0].cluster);
}
