//! Bad input and faults around a first boot, each with the cause and hint that the machine reports. One table; the rows
//! are tried on machines of the bench, and one machine goes from fault to fault and joins at the end.
//! Under two minutes on a busy host, 20 s of them for a slow metadata server.
//!
//! Faults that need another bench or another moment:
//!
//! | fault | test |
//! |---|---|
//! | state disk too small, from the disk on | `stage0.rs`: a disk without room has `/var` in memory; here: what first boot says then |
//! | etcd disk full on a member in service, lost packets | `cluster.rs`: eight machines |
//! | power cut and kill at every step | `kills.rs` |
//! | metadata of every platform | `firstboot/src/platform/tests.rs` |

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kimage_qemu_tests::cluster::keys::{Etcd, Keys};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, Shape, address};
use kimage_qemu_tests::namespaces::machine::{Contained, Special};
use kimage_qemu_tests::namespaces::metadata::{Metadata, Mood, disguise};
use kimage_qemu_tests::namespaces::network::BENCH;
use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase};
use serde_json::{Value, json};

use super::FORMATION;
use super::impostor::{FOREIGN, Impostor, LATE, expired_token};
use super::kills::FIRST_BOOT;
use super::starvation;

/// The machine that goes from fault to fault.
const VICTIM: &str = "x1";
/// A slow metadata server is given up after 20 s.
const SLOW: Duration = Duration::from_secs(120);
/// Port at which nobody answers.
const NOBODY: u16 = 9443;
/// etcd's user in the images.
const ETCD: u32 = 900;
/// What the machine must report.
struct Row {
    fault: &'static str,
    cause: Cause,
    outcome: Outcome,
}

/// A row as the table prints it, once it was seen.
struct Seen {
    row: Row,
    message: String,
}

struct Bench {
    cluster: Cluster<Contained>,
    metadata: Metadata,
    good: Value,
    seen: Vec<Seen>,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::<Contained>::new(Shape {
            etcd: 0,
            control_planes: 1,
            workers: 1,
        })?;
        let place = address("w", 5);
        let metadata = Metadata::start(cluster.network(), VICTIM, place)?;
        let mut victim = cluster.ordinary("worker", VICTIM, place, "")?;
        victim.special.etc = disguise(&victim.shared)?;
        cluster.add_machine(victim)?;
        let good = serde_json::from_str(&cluster.user_data("worker")?)?;
        cluster.start_all_shuffled()?;
        Ok(Self {
            cluster,
            metadata,
            good,
            seen: Vec::new(),
        })
    }

    /// The victim's first boot begins anew and reports a row.
    fn expect(&mut self, fault: &'static str, cause: Cause, outcome: Outcome) {
        self.cluster.machine(VICTIM).repeat_first_boot().unwrap();
        self.report_of(VICTIM, fault, cause, outcome);
    }

    /// The machine called `name` reports a row.
    fn report_of(&mut self, name: &str, fault: &'static str, cause: Cause, outcome: Outcome) {
        let machine = self.cluster.machine(name);
        let status = machine.wait_until(SLOW, fault, |status| {
            // A busy host may stand between machine and fault for a moment; what ends first boot must be the fault.
            ensure!(
                status.outcome != Outcome::Failed || status.cause == Some(cause),
                "another cause than {cause}"
            );
            Ok(status.cause == Some(cause) && status.outcome == outcome)
        });
        let status = status.unwrap();
        assert_eq!(status.hint.as_deref(), Some(cause.hint()), "{fault}");
        let message = status.message.unwrap_or_default();
        let token = self.good["join"]["token"].as_str().unwrap();
        let (_, secret) = token.split_once('.').unwrap();
        assert!(!message.contains(secret), "{fault}: the report has a secret");
        let row = Row {
            fault,
            cause,
            outcome,
        };
        println!("{fault}: {cause}");
        self.seen.push(Seen { row, message });
    }

    /// The victim's document with one value changed.
    fn changed(&self, pointer: &str, value: impl Into<Value>) -> String {
        let mut config = self.good.clone();
        *config.pointer_mut(pointer).unwrap() = value.into();
        config.to_string()
    }

    fn gives(&self, document: impl Into<String>) {
        self.metadata.set(Mood::Gives(document.into()));
    }

    /// Starts one more machine.
    fn start(&mut self, role: &'static str, name: &str, place: Ipv4Addr, config: &str, special: Special) {
        let mut machine = self.cluster.ordinary(role, name, place, config).unwrap();
        machine.special = special;
        self.cluster.add_machine(machine).unwrap();
        self.cluster.machine(name).start().unwrap();
    }

    fn print(&self) {
        for Seen { row, message } in &self.seen {
            let Row {
                fault,
                cause,
                outcome,
            } = row;
            println!(
                "{fault:<42} {cause:<22} {outcome:?}\n    said: {message}\n    hint: {}",
                cause.hint()
            );
        }
    }
}

#[test]
fn every_fault_around_a_first_boot_has_its_cause_and_hint_and_the_machine_joins_when_it_ends() {
    let mut bench = Bench::new().unwrap();
    metadata_faults(&mut bench);
    bench
        .cluster
        .machine("cp1")
        .wait_for(Phase::InService, FORMATION)
        .unwrap();
    bench.cluster.wait_for_one("w1", FORMATION).unwrap();
    document_faults(&mut bench);
    join_faults(&mut bench);
    balancer_away(&mut bench);
    faults_of_a_member(&mut bench);
    faults_of_other_machines(&mut bench);
    bench.print();
}

fn metadata_faults(bench: &mut Bench) {
    let victim = bench.cluster.machine(VICTIM);
    let alone = |status: &kimage_roles::status::Status| Ok(status.cause == Some(Cause::MetadataMissing));
    victim.wait_until(SLOW, "its first report", alone).unwrap();
    for (fault, mood, cause, outcome) in [
        (
            "metadata server: 404",
            Mood::Refuses(404),
            Cause::MetadataMissing,
            Outcome::Failed,
        ),
        (
            "metadata server: 401",
            Mood::Refuses(401),
            Cause::MetadataDenied,
            Outcome::Retrying,
        ),
        (
            "metadata server: 503",
            Mood::Refuses(503),
            Cause::MetadataBroken,
            Outcome::Retrying,
        ),
        (
            "metadata server: slow",
            Mood::Trickles,
            Cause::MetadataUnreachable,
            Outcome::Retrying,
        ),
        (
            "metadata server: an answer of 1 GB",
            Mood::Floods,
            Cause::MetadataTooLarge,
            Outcome::Failed,
        ),
    ] {
        bench.metadata.set(mood);
        bench.expect(fault, cause, outcome);
    }
}

fn document_faults(bench: &mut Bench) {
    let (invalid, failed) = (Cause::ConfigInvalid, Outcome::Failed);
    bench.gives(bench.good.to_string().replacen("\"endpoint\"", "\"endpiont\"", 1));
    bench.expect("NodeConfig: unknown key", invalid, failed);
    let said = &bench.seen.last().unwrap().message;
    assert!(said.contains("endpiont"), "{said}");
    bench.gives(etcd_document("10.89.0.99").unwrap());
    bench.expect("NodeConfig: another role", Cause::WrongRole, failed);
}

fn join_faults(bench: &mut Bench) {
    let nothing = format!("sha256:{}", "0".repeat(64));
    let token = bench.good["join"]["token"].as_str().unwrap();
    let id = token.split_once('.').unwrap().0.to_owned();
    let (failed, retrying) = (Outcome::Failed, Outcome::Retrying);
    let expired = expired_token(&bench.cluster).unwrap();
    let _impostor = Impostor::start(bench.cluster.network()).unwrap();
    for (fault, document, cause, outcome) in [
        (
            "wrong CA hash",
            bench.changed("/join/caCertHashes/0", nothing),
            Cause::CaHashMismatch,
            failed,
        ),
        (
            "unknown token",
            bench.changed("/join/token", "zzzzzz.0123456789abcdef"),
            Cause::TokenUnknown,
            retrying,
        ),
        (
            "expired token",
            bench.changed("/join/token", expired),
            Cause::TokenUnknown,
            retrying,
        ),
        (
            "token with another secret half",
            bench.changed("/join/token", format!("{id}.0000000000000000")),
            Cause::TokenRejected,
            failed,
        ),
        (
            "balancer answers for another cluster",
            bench.changed("/cluster/endpoint", format!("{BENCH}:{FOREIGN}")),
            Cause::ForeignCluster,
            failed,
        ),
        (
            "clock 2 h off",
            bench.changed("/cluster/endpoint", format!("{BENCH}:{LATE}")),
            Cause::ClockWrong,
            retrying,
        ),
        (
            "nobody at the endpoint",
            bench.changed("/cluster/endpoint", format!("{BENCH}:{NOBODY}")),
            Cause::BalancerUnreachable,
            retrying,
        ),
        (
            "DNS fails",
            bench.changed("/cluster/endpoint", "no.such.host.invalid:6443"),
            Cause::DnsFailed,
            retrying,
        ),
    ] {
        bench.gives(document);
        bench.expect(fault, cause, outcome);
    }
    starve(bench);
}

/// First boot for a few seconds in which the kernel has no randomness.
fn starve(bench: &mut Bench) {
    let victim = bench.cluster.machine(VICTIM);
    victim.stop_first_boot().unwrap();
    let [program, boot] = FIRST_BOOT;
    let mut first_boot = victim.inside(&["timeout", "3", program, boot]).unwrap();
    starvation::starve(&mut first_boot);
    let output = first_boot.output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    bench.report_of(VICTIM, "no randomness", Cause::EntropyStarved, Outcome::Retrying);
}

/// The balancer is away for a while: the machine goes on asking, ever more patiently, and joins when it is back. Ten
/// minutes would show nothing more: the pause stays at its bound.
fn balancer_away(bench: &mut Bench) {
    bench.cluster.stop_balancer();
    bench.gives(bench.good.to_string());
    bench.expect("balancer down", Cause::BalancerUnreachable, Outcome::Retrying);
    let patient = |status: &kimage_roles::status::Status| Ok(status.attempt >= 6);
    let victim = bench.cluster.machine(VICTIM);
    victim
        .wait_until(SLOW, "tries without a balancer", patient)
        .unwrap();
    bench.cluster.start_balancer().unwrap();
    let began = Instant::now();
    bench.cluster.wait_for_one(VICTIM, FORMATION).unwrap();
    println!("in service {:.1?} after the balancer came back", began.elapsed());
}

/// What can only be wrong with a machine that has been in service.
fn faults_of_a_member(bench: &mut Bench) {
    bench.gives(bench.changed("/cluster/dnsDomain", "other.local"));
    bench.expect(
        "NodeConfig changed after first boot",
        Cause::ConfigChanged,
        Outcome::Failed,
    );
    bench.gives(bench.changed("/cluster/name", "other"));
    bench.expect(
        "state disk of another cluster",
        Cause::StateForeign,
        Outcome::Failed,
    );
    bench.gives(bench.good.to_string());
    bench.cluster.machine(VICTIM).repeat_first_boot().unwrap();
    bench.cluster.wait_for_one(VICTIM, FORMATION).unwrap();
}

fn faults_of_other_machines(bench: &mut Bench) {
    let (failed, retrying) = (Outcome::Failed, Outcome::Retrying);
    let good = bench.good.to_string();
    bench.start("worker", "n1", address("w", 6), "", Special::default());
    bench.report_of("n1", "no metadata", Cause::NoMetadata, failed);
    let small = Special {
        memory: vec![("/var", "size=512m,mode=755")],
        ..Special::default()
    };
    bench.start("worker", "s1", address("w", 7), &good, small);
    bench.report_of("s1", "state disk too small", Cause::StateTooSmall, failed);
    let twin = bench.changed("/node", json!({"name": VICTIM}));
    bench.start("worker", "d1", address("w", 8), &twin, Special::default());
    bench.report_of("d1", "duplicate node name", Cause::DuplicateNodeName, retrying);
    let broken = Special {
        etc: vec![(
            "systemd/system/kube-proxy.service.d/broken.conf",
            "[Service]\nExecStart=\nExecStart=/usr/bin/false\n".to_owned(),
        )],
        ..Special::default()
    };
    bench.start("worker", "k1", address("w", 9), &good, broken);
    bench.report_of(
        "k1",
        "kube-proxy ends again and again",
        Cause::UnitFailed,
        retrying,
    );
    let place = address("e", 5);
    let foreign = etcd_document(&format!("{place},other={}", address("cp", 1))).unwrap();
    bench.start("etcd", "e5", place, &foreign, Special::default());
    bench.report_of("e5", "foreign etcd on the address", Cause::EtcdForeign, failed);
    let place = address("e", 6);
    let full = Special {
        disks: vec![("/var/lib/etcd", 40, ETCD)],
        ..Special::default()
    };
    bench.start(
        "etcd",
        "e6",
        place,
        &etcd_document(&place.to_string()).unwrap(),
        full,
    );
    // Until etcd has met the end of the disk it is merely not there yet.
    let met = |status: &kimage_roles::status::Status| Ok(status.cause == Some(Cause::EtcdDiskFull));
    bench
        .cluster
        .machine("e6")
        .wait_until(SLOW, "its disk is full", met)
        .unwrap();
    bench.report_of(
        "e6",
        "etcd disk full at first boot",
        Cause::EtcdDiskFull,
        retrying,
    );
}

/// User-data of an etcd machine of a cluster `other`, whose list of members begins with this machine's address.
fn etcd_document(members: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("other");
    let keys = Keys::create(place, "other", "10.89.0.1:6443", Etcd::External)?;
    keys.user_data("etcd", &["--etcd-members", &format!("own={members}")])
}
