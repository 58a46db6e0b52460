//! A machine that is destroyed for good and replaced costs no acknowledged write. Needs neither bench in particular.

use std::time::Duration;

use anyhow::{Result, ensure};
use kimage_qemu_tests::cluster::Cluster;
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::writer::Writer;

/// Writes that must come through at each stage.
const WRITES: usize = 50;

/// SIGKILL of the machine called `name` while `writer` writes; then a fresh one from the same image in its place, with no
/// word to anybody but the inventory. At the end it is in service, and as many members of etcd vote as before.
pub(crate) fn a_machine_is_lost_and_replaced<M: Machine>(
    cluster: &mut Cluster<M>,
    name: &str,
    writer: &Writer,
    deadline: Duration,
) -> Result<()> {
    let members = cluster.etcd_member_ids()?;
    writer.wait_for_writes(WRITES, deadline)?;
    cluster.say(&format!("SIGKILL {name}"));
    cluster.machine(name).kill()?;
    writer.wait_for_writes(WRITES, deadline)?;
    let old = cluster.machine(name).instance().to_owned();
    cluster.replace(name)?;
    ensure!(
        cluster.machine(name).instance() != old,
        "the instance is the same"
    );
    cluster.say(&format!("{name} is a fresh machine now"));
    cluster.machine(name).start()?;
    cluster.wait_for_one(name, deadline)?;
    cluster.say(&format!("the fresh {name} is in service"));
    cluster.wait_for_etcd(members.len(), deadline)?;
    writer.wait_for_writes(WRITES, deadline)
}
