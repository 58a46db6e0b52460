//! A test that is killed leaves no machines behind: they would take the processors of all that is measured later.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::images::command;
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_qemu_tests::processes::Watched;

/// Set in the process that the test kills.
const VICTIM: &str = "KIMAGE_TEST_VICTIM";
const SOON: Duration = Duration::from_secs(60);
const SHAPE: Shape = Shape {
    etcd: 1,
    control_planes: 0,
    workers: 0,
};

#[test]
fn machines_in_namespaces_end_with_the_process_that_started_them_even_when_that_is_killed() {
    if std::env::var_os(VICTIM).is_some() {
        live_until_killed();
    }
    let name =
        "orphans::machines_in_namespaces_end_with_the_process_that_started_them_even_when_that_is_killed";
    let mut victim = command(std::env::current_exe().unwrap());
    victim.args(["--exact", name, "--nocapture"]).env(VICTIM, "1");
    let mut victim = victim.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let etcd = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("etcd ")?.parse().ok());
    let etcd = Watched::new(etcd.expect("etcd runs in the machine")).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    etcd.wait_for_end(SOON).unwrap();
}

fn live_until_killed() -> ! {
    let mut cluster = Cluster::<Contained>::new(SHAPE).unwrap();
    cluster.start_all_shuffled().unwrap();
    let machine = cluster.machine("e1");
    let words = ["/usr/bin/etcd", "--config-file=/etc/etcd/etcd.yaml"];
    let etcd = until(SOON, "etcd runs", || {
        let etcd = machine.service(&words)?;
        etcd.ok_or_else(|| anyhow::anyhow!("not yet"))
    });
    println!("\netcd {}", etcd.unwrap().process());
    loop {
        std::thread::park();
    }
}
