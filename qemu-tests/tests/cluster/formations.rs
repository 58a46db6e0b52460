//! Who is first is chance: one formation says little. A formation of eight machines takes half a minute or more;
//! `KIMAGE_FORMATIONS` says how many there are to be, `KIMAGE_SEED` repeats the orders and pauses of one.

use std::time::{Duration, Instant};

use kimage_qemu_tests::cluster::{Cluster, Shape};
use kimage_qemu_tests::namespaces::machine::Contained;

use super::{FORMATION, FULL, SOON};

/// Each has three members of etcd.
const SHAPES: [Shape; 3] = [
    FULL,
    Shape {
        etcd: 0,
        control_planes: 3,
        workers: 1,
    },
    Shape {
        etcd: 3,
        control_planes: 2,
        workers: 1,
    },
];

/// Longest pauses between two machines that are switched on: none, and some in which others get well ahead.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_secs(4)];

#[test]
fn every_formation_ends_in_one_cluster_with_one_quorum_of_three() {
    let wanted = std::env::var("KIMAGE_FORMATIONS").map_or(SHAPES.len(), |text| text.parse().unwrap());
    let shapes = SHAPES.iter().cycle().zip(PAUSES.iter().cycle());
    for (number, (shape, pause)) in shapes.enumerate().take(wanted) {
        println!("formation {}: {shape:?}, pauses of at most {pause:?}", number + 1);
        let mut cluster = Cluster::<Contained>::new(*shape).unwrap();
        let began = Instant::now();
        cluster.start_all_staggered(*pause).unwrap();
        cluster.wait_for_service(FORMATION).unwrap();
        println!("all in service after {:.1?}", began.elapsed());
        assert_eq!(cluster.etcd_member_ids().unwrap().len(), 3);
        cluster.wait_for_ready_nodes(SOON).unwrap();
    }
}
