//! A test that is killed leaves no machines behind: they would take the processors of all that is measured later.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::images::{command, finish};
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
    let temporary = tempfile::tempdir().unwrap();
    victim.env("TMPDIR", temporary.path());
    let mut victim = victim.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("etcd ").map(str::to_owned));
    let line = line.expect("etcd runs in the machine");
    let (etcd, disk) = line.split_once(' ').unwrap();
    let etcd = Watched::new(etcd.parse().unwrap()).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    etcd.wait_for_end(SOON).unwrap();
    clear_away(victim.id(), Path::new(disk)).unwrap();
}

/// What no kernel removes: network namespaces, control groups and the disk, whose names are known.
fn clear_away(victim: u32, disk: &Path) -> Result<()> {
    let names = finish(command("ip").args(["netns", "list"]))?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    let first = format!("kimage-{victim}-");
    let names = names.split_whitespace().filter(|name| name.starts_with(&first));
    for name in names {
        finish(command("ip").args(["netns", "delete", name]))?;
    }
    let name = disk.file_name().context("a disk's name")?.to_string_lossy();
    let groups = format!("*/{name}*");
    until(SOON, "the control groups are empty", || {
        let mut find = command("find");
        find.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &groups]);
        finish(find.args(["-exec", "rmdir", "{}", "+"])).map(drop)
    })?;
    std::fs::remove_dir_all(disk).context("remove the disk")
}

fn live_until_killed() -> ! {
    let mut cluster = Cluster::<Contained>::new(SHAPE).unwrap();
    cluster.start_all_shuffled().unwrap();
    let machine = cluster.machine("e1");
    let words = ["/usr/bin/etcd", "--config-file=/etc/etcd/etcd.yaml"];
    let etcd = until(SOON, "etcd runs", || {
        let etcd = machine.service(&words)?;
        etcd.context("not yet")
    });
    let disk = machine.var();
    let disk = disk.parent().unwrap().display();
    println!("\netcd {} {disk}", etcd.unwrap().process());
    loop {
        std::thread::park();
    }
}
