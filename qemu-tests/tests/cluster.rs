//! Machines of all roles, started at the same moment in any order, become one highly available cluster and stay one
//! whatever is done to them. Bench A: the images' own root filesystems and systemd, in namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what these tests need and do not find ends them; what was measured is worth a line"
)]

use std::time::{Duration, Instant};

use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::writer::Writer;
use kimage_qemu_tests::cluster::{Cluster, Shape, address};
use kimage_qemu_tests::namespaces::delay::{Delay, Latency};
use kimage_qemu_tests::namespaces::loss::Loss;
use kimage_qemu_tests::namespaces::machine::Contained;

#[path = "cluster/bad_input.rs"]
mod bad_input;
#[path = "cluster/formations.rs"]
mod formations;
#[path = "cluster/impostor.rs"]
mod impostor;
#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/orphans.rs"]
mod orphans;
#[path = "claims/replacement.rs"]
mod replacement;
#[path = "cluster/starvation.rs"]
mod starvation;
#[path = "cluster/zones.rs"]
mod zones;

/// Generous: two cores that may compile at the same time carry eight machines.
const FORMATION: Duration = Duration::from_secs(300);

/// For what a cluster does by itself once it runs.
const SOON: Duration = Duration::from_secs(60);

const FULL: Shape = Shape {
    etcd: 3,
    control_planes: 3,
    workers: 2,
};

/// A tenth of what an etcd machine and a control plane send and get is lost.
fn lose_packets(cluster: &mut Cluster<Contained>, writer: &Writer) {
    let losses = ["e1", "cp1"].map(|name| Loss::on(cluster.machine(name).cable(), 10).unwrap());
    writer.wait_for_writes(50, Duration::from_secs(120)).unwrap();
    let counts = losses.each_ref().map(|loss| loss.count().unwrap());
    println!("{counts:?} packets of e1 and cp1 were lost");
    assert!(counts.iter().all(|count| *count > 0));
}

/// What an etcd machine and a control plane send and get takes its time.
fn delay_frames(cluster: &mut Cluster<Contained>, writer: &Writer) {
    let [mean, jitter] = [100, 50].map(Duration::from_millis);
    let latency = Latency { mean, jitter };
    let delays = ["e1", "cp1"].map(|name| Delay::on(cluster.machine(name).cable(), latency).unwrap());
    writer.wait_for_writes(50, Duration::from_secs(120)).unwrap();
    let counts = delays.each_ref().map(Delay::count);
    println!("{counts:?} frames of e1 and cp1 took {mean:?} ± {jitter:?} each way");
    assert!(counts.iter().all(|count| *count > 0));
}

/// Machines are destroyed for good and others come that are called otherwise: a control plane at the same address, which
/// the balancer knows, and a worker at another one. Nodes of machines that are gone stay and are not Ready: to remove them
/// is the matter of whoever makes machines, such as a cloud controller.
fn replace_by_others(cluster: &mut Cluster<Contained>, writer: &Writer) {
    for (old, new, address) in [("cp3", "cp8", address("cp", 3)), ("w1", "w9", address("w", 9))] {
        cluster.say(&format!("{new} takes the place of {old}"));
        cluster.move_machine(old, new, address).unwrap();
        cluster.wait_for_one(new, FORMATION).unwrap();
        cluster.say(&format!("{new} is in service"));
        writer.wait_for_writes(50, SOON).unwrap();
    }
    let nodes = cluster.wait_for_ready_nodes(FORMATION).unwrap();
    cluster.say("all Nodes of machines that exist are Ready, and no others");
    for gone in ["cp3", "w1"] {
        assert!(
            nodes.iter().any(|node| node["metadata"]["name"] == gone),
            "{gone}"
        );
    }
}

/// The disk of an etcd machine is full; then there is room again.
fn fill_disk(cluster: &mut Cluster<Contained>, writer: &Writer) {
    let member = cluster.machine("e2");
    let fill = "dd if=/dev/zero of=/var/lib/etcd/filler bs=64k conv=fsync 2>&1 || true";
    let said = member.run(&["sh", "-c", fill]).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    cluster.write_bulk(16).unwrap();
    writer.wait_for_writes(50, Duration::from_secs(120)).unwrap();
    let member = cluster.machine("e2");
    let words = ["systemctl", "show", "--property=NRestarts,ActiveState", "etcd"];
    let state = member.run(&words).unwrap().replace('\n', " ");
    println!("e2's disk is full, its etcd: {state}");
    member.run(&["rm", "/var/lib/etcd/filler"]).unwrap();
    cluster.wait_for_etcd(3, FORMATION).unwrap();
}

#[test]
fn eight_machines_started_at_once_become_one_cluster_that_survives_every_single_loss() {
    let mut cluster = Cluster::<Contained>::new(FULL).unwrap();
    cluster.give_small_disk("e2").unwrap();
    let began = Instant::now();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    println!(
        "{} machines in service after {:.1?}",
        cluster.len(),
        began.elapsed()
    );
    cluster.print_phases();
    cluster.wait_for_ready_nodes(SOON).unwrap();
    assert_eq!(cluster.etcd_member_ids().unwrap().len(), 3);
    cluster
        .wait_for_serving_certificates(Duration::from_secs(60))
        .unwrap();
    cluster.check_encryption_at_rest(SOON).unwrap();
    zones::system_pods_are_spread_over_zones(&cluster).unwrap();

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
    lose_packets(&mut cluster, &writer);
    delay_frames(&mut cluster, &writer);
    fill_disk(&mut cluster, &writer);
    // The name of a worker is taken until the cluster has noticed that its machine is gone.
    for name in ["cp2", "w2"] {
        replacement::a_machine_is_lost_and_replaced(&mut cluster, name, &writer, FORMATION).unwrap();
    }
    replace_by_others(&mut cluster, &writer);
    let record = writer.finish().unwrap();
    println!("{record}");
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());

    println!("power cut for everybody");
    let members = cluster.etcd_member_ids().unwrap();
    cluster.kill_all().unwrap();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    assert_eq!(cluster.etcd_member_ids().unwrap(), members);
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());
    cluster.wait_for_ready_nodes(SOON).unwrap();

    println!("replace e1 by a machine with another address");
    let began = Instant::now();
    cluster.move_machine("e1", "e9", address("e", 9)).unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    cluster.wait_for_etcd_without(&members, FORMATION).unwrap();
    println!("three members again after {:.1?}", began.elapsed());
    cluster.wait_for_api_servers_to_follow(FORMATION).unwrap();
    println!("all API servers use them after {:.1?}", began.elapsed());
    assert_eq!(cluster.lost(&record).unwrap(), Vec::<String>::new());
}
