//! Machines of all roles, started at the same moment in any order, become one highly available cluster and stay one
//! whatever is done to them. Bench A: the images' own root filesystems and systemd, in namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what these tests need and do not find ends them; what was measured is worth a line"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster::{Cluster, Shape};
use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase};

#[path = "cluster/cluster.rs"]
mod cluster;
#[path = "cluster/random.rs"]
mod random;
#[path = "cluster/writer.rs"]
mod writer;

/// Generous: two cores that may compile at the same time carry eight machines.
const FORMATION: Duration = Duration::from_secs(300);

const FULL: Shape = Shape {
    etcd: 3,
    control_planes: 3,
    workers: 2,
};

fn all_nodes_are_ready(cluster: &Cluster) {
    let wanted: BTreeSet<String> = cluster.node_names();
    assert_eq!(cluster.ready_nodes().unwrap(), wanted);
}

#[test]
fn eight_machines_started_at_once_become_one_cluster_that_survives_every_single_loss() {
    let mut cluster = Cluster::new(FULL).unwrap();
    let began = Instant::now();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    println!(
        "{} machines in service after {:.1?}",
        cluster.len(),
        began.elapsed()
    );
    cluster.print_phases();
    all_nodes_are_ready(&cluster);
    assert_eq!(cluster.etcd_members().unwrap(), 3);
    cluster
        .wait_for_serving_certificates(Duration::from_secs(60))
        .unwrap();
    assert!(cluster.secret_in_etcd_is_ciphertext().unwrap());

    let writer = cluster.start_writer().unwrap();
    for name in ["cp2", "e3"] {
        println!("SIGKILL {name}");
        cluster.machine(name).kill().unwrap();
        writer.wait_for_writes(50, Duration::from_secs(60)).unwrap();
        cluster.machine(name).start().unwrap();
        cluster.wait_for_one(name, FORMATION).unwrap();
    }
    println!("pull the cable of cp3");
    cluster.machine("cp3").cable().unplug().unwrap();
    writer.wait_for_writes(50, Duration::from_secs(120)).unwrap();
    cluster.machine("cp3").cable().plug().unwrap();
    writer.wait_for_writes(20, Duration::from_secs(60)).unwrap();
    let record = writer.finish();
    println!("{record}");
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());

    println!("power cut for everybody");
    let members = cluster.etcd_member_ids().unwrap();
    cluster.kill_all().unwrap();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    assert_eq!(cluster.etcd_member_ids().unwrap(), members);
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());
    all_nodes_are_ready(&cluster);

    println!("replace e1 by a machine with another address");
    let began = Instant::now();
    cluster.replace_etcd("e1").unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    cluster.wait_for_etcd_without(&members, FORMATION).unwrap();
    println!("three members again after {:.1?}", began.elapsed());
    cluster.wait_for_api_servers_to_follow(FORMATION).unwrap();
    println!("all API servers use them after {:.1?}", began.elapsed());
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());
}

#[test]
fn a_worker_with_a_wrong_hash_an_unknown_token_or_no_balancer_says_so() {
    let mut cluster = Cluster::new(Shape {
        etcd: 1,
        control_planes: 1,
        workers: 1,
    })
    .unwrap();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    let good = cluster.config_of("w1");
    let change = |pointer: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
        *config.pointer_mut(pointer).unwrap() = value.into();
        config.to_string()
    };
    let nothing = format!("sha256:{}", "0".repeat(64));
    let unknown = "zzzzzz.0123456789abcdef";
    for (config, cause, outcome) in [
        (
            change("/join/caCertHashes/0", &nothing),
            Cause::CaHashMismatch,
            Outcome::Failed,
        ),
        (
            change("/join/token", unknown),
            Cause::TokenUnknown,
            Outcome::Retrying,
        ),
        (
            change("/cluster/endpoint", "10.89.0.1:7443"),
            Cause::BalancerUnreachable,
            Outcome::Retrying,
        ),
        (
            change("/cluster/endpoint", "no.such.host.invalid:6443"),
            Cause::DnsFailed,
            Outcome::Retrying,
        ),
        (change("/role", "etcd"), Cause::ConfigInvalid, Outcome::Failed),
        (
            change("/cluster/dnsDomain", "other.local").replace("\"cluster\"", "\"clutser\""),
            Cause::ConfigInvalid,
            Outcome::Failed,
        ),
    ] {
        cluster.scrap_and_start("w1", &config).unwrap();
        let status = cluster
            .machine("w1")
            .wait_until(Duration::from_secs(120), "its cause", |status| {
                Ok(status.cause == Some(cause) && status.outcome == outcome)
            })
            .unwrap();
        println!("{cause}: {}", status.message.unwrap_or_default());
        assert!(status.hint.is_some());
        assert!(status.phase < Phase::Node);
    }
    cluster.scrap_and_start("w1", &good).unwrap();
    cluster.wait_for_one("w1", FORMATION).unwrap();
}
