//! Bench B: three control planes from shipped disks, under Secure Boot, carry a quorum that survives the loss of one of
//! them for good. Emulated, they live by a slower clock than the wall's.

use kimage_qemu_tests::clock::Clock;
use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::shipped::cluster::{FORMATION, SOON};
use kimage_qemu_tests::shipped::{Door, Shipped};
use replacement::a_machine_is_lost_and_replaced;

#[path = "claims/replacement.rs"]
mod replacement;

/// etcd is on the control planes.
const SHAPE: Shape = Shape {
    etcd: 0,
    control_planes: 3,
    workers: 1,
};

/// Three emulated control planes that only wait take two cores, and then API servers give up on etcd, whose answers come
/// late. By this clock they take one.
const SLOWNESS: u32 = 4;

#[test]
fn three_control_planes_from_shipped_disks_lose_one_for_good_and_no_write() {
    let clock = Clock::slowed_for_emulation(SLOWNESS).unwrap();
    let mut cluster = Cluster::<Shipped>::living_by(clock, SHAPE).unwrap();
    for names in [&["cp1"][..], &["cp2"], &["cp3", "w1"]] {
        cluster.bring_into_service(names, Door::NoCloud).unwrap();
    }
    cluster.print_phases();
    cluster.wait_for_etcd(3, SOON).unwrap();
    cluster.wait_for_ready_nodes(SOON).unwrap();
    cluster.check_encryption_at_rest(SOON).unwrap();
    cluster.say("three control planes carry a quorum of three");
    let writer = cluster.start_writer().unwrap();
    a_machine_is_lost_and_replaced(&mut cluster, "cp2", &writer, FORMATION).unwrap();
    let record = writer.finish().unwrap();
    cluster.say(&record.to_string());
    cluster.print_phases();
    let lost = until(SOON, "what was written", || cluster.lost(&record)).unwrap();
    assert_eq!(lost, Vec::<String>::new());
    cluster.wait_for_ready_nodes(SOON).unwrap();
    until(SOON, "the same Secret", || cluster.check_secret()).unwrap();
}
