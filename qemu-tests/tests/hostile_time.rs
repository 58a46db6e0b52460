//! Time passes, and nothing that has an end ends with it. Years can't be waited for, and the machines of bench A have the
//! host's clock; so the certificates of this cluster live for two minutes (`certificates.lifetimeSeconds`), and the cluster
//! outlives them three times. What holds for a year by default is not seen here: what services hold in memory
//! (`firstboot/src/lifetime.rs`).

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::writer::Writer;
use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_roles::certificate::{Authority, certificate_in, validity_of};
use serde_json::{Value, json};

const SHAPE: Shape = Shape {
    etcd: 0,
    control_planes: 1,
    workers: 1,
};
const FORMATION: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(120);
/// How long a certificate of this cluster lives.
const LIFE: Duration = Duration::from_secs(120);
const CREDENTIALS: &str = "/run/credentials/@system";
const CURRENT: &str = "lib/kubelet/pki/kubelet-client-current.pem";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[test]
fn a_cluster_outlives_its_certificates_and_takes_back_whoever_lost_theirs() {
    let mut cluster = Cluster::<Contained>::described(SHAPE, |text| {
        let text = text.replace("nodeGraceSeconds = 50", "nodeGraceSeconds = 20");
        format!("{text}\n[certificates]\nlifetimeSeconds = {}\n", LIFE.as_secs())
    })
    .unwrap();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    let born = Instant::now();
    cluster.wait_for_ready_nodes(FORMATION).unwrap();
    let writer = cluster.start_writer().unwrap();
    the_agent_goes_on_when_the_platform_forgets_the_machine(&mut cluster).unwrap();

    cluster.machine("w1").kill().unwrap();
    cluster.say("w1 is off");
    wait(&cluster, &writer, LIFE).unwrap();
    ensure_expired(&mut cluster, "w1").unwrap();
    cluster.machine("w1").start().unwrap();
    cluster.wait_for_one("w1", FORMATION).unwrap();
    cluster.wait_for_ready_nodes(SOON).unwrap();
    cluster.say("w1 was off for longer than its certificate lived, and is a node again");

    the_kubelets_certificate_is_damaged_while_the_machine_runs(&mut cluster).unwrap();
    the_cluster_has_another_authority_than_a_worker_knows(&mut cluster).unwrap();

    wait(&cluster, &writer, (3 * LIFE).saturating_sub(born.elapsed())).unwrap();
    cluster.say("three lives have passed");
    everything_is_young(&mut cluster).unwrap();
    pods_are_made_and_bound(&cluster).unwrap();
    requests_are_signed(&cluster).unwrap();
    cluster.wait_for_ready_nodes(SOON).unwrap();
    let record = writer.finish().unwrap();
    cluster.say(&format!("{record}"));
    assert_eq!(cluster.lost(&record).unwrap(), [""; 0]);
}

/// Lets so much time pass, while a client writes and another one, with a new connection each time, reads.
fn wait(cluster: &Cluster<Contained>, writer: &Writer, pause: Duration) -> Result<()> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        writer.wait_for_writes(20, SOON)?;
        until(SOON, "a read through the balancer", || {
            cluster.get("/api/v1/namespaces/default").map(drop)
        })?;
    }
    Ok(())
}

/// From now on nobody tells cp1 what it is, and its agent begins anew.
fn the_agent_goes_on_when_the_platform_forgets_the_machine(cluster: &mut Cluster<Contained>) -> Result<()> {
    let machine = cluster.machine("cp1");
    machine.run(&["mount", "-t", "tmpfs", "none", CREDENTIALS])?;
    machine.run(&["systemctl", "restart", "kimage-agent.service"])?;
    until(SOON, "the agent says what it misses, and goes on", || {
        let said = machine.run(&[
            "journalctl",
            "--no-pager",
            "--output=cat",
            "--unit=kimage-agent.service",
        ])?;
        ensure!(
            said.contains("the last good configuration stays in force"),
            "{said}"
        );
        let state = machine.run(&["systemctl", "is-active", "kimage-agent.service"])?;
        ensure!(state.trim() == "active", "it is {state}");
        Ok(())
    })?;
    cluster.say("cp1's agent goes on without metadata");
    Ok(())
}

fn ensure_expired(cluster: &mut Cluster<Contained>, name: &str) -> Result<()> {
    let place = cluster.machine(name).var().join("lib/kubelet/pki");
    let mut ends = Vec::new();
    for entry in fs::read_dir(&place)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("kubelet-client-2") {
            ends.push(validity_of(&fs::read_to_string(&path)?)?);
        }
    }
    ensure!(!ends.is_empty(), "no certificate in {}", place.display());
    let now = SystemTime::now();
    ensure!(ends.iter().all(|end| end.is_over(now)), "{ends:?} at {now:?}");
    Ok(())
}

fn the_kubelets_certificate_is_damaged_while_the_machine_runs(
    cluster: &mut Cluster<Contained>,
) -> Result<()> {
    let machine = cluster.machine("w1");
    let link = machine.var().join(CURRENT);
    // A link on the machine's disk, absolute there.
    let target = fs::read_link(&link)?;
    let file = machine
        .var()
        .join("lib/kubelet/pki")
        .join(target.file_name().context("a file")?);
    fs::write(&file, "damaged\n")?;
    machine.run(&["systemctl", "kill", "--signal=KILL", "kubelet.service"])?;
    until(FORMATION, "another certificate", || {
        let now = fs::read_link(&link)?;
        ensure!(now != target, "still {}", now.display());
        Ok(())
    })?;
    ensure!(
        fs::read_to_string(&file)? == "damaged\n",
        "what was there is gone"
    );
    cluster.wait_for_ready_nodes(SOON)?;
    cluster.say("w1's certificate was damaged while it ran; it has joined anew");
    Ok(())
}

/// What w1 has learned about its cluster is that of another one; its NodeConfig has the right hash.
fn the_cluster_has_another_authority_than_a_worker_knows(cluster: &mut Cluster<Contained>) -> Result<()> {
    let machine = cluster.machine("w1");
    machine.run(&["systemctl", "stop", "kubelet.service"])?;
    let path = machine.var().join("lib/kimage/joined.json");
    let mut joined: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let right = joined["cluster"]["caCertificate"].take();
    let former = Authority::create("kubernetes", SystemTime::now())?;
    joined["cluster"]["caCertificate"] = json!(former.certificate);
    fs::write(&path, joined.to_string())?;
    machine.run(&["systemctl", "restart", "kimage-agent.service"])?;
    until(FORMATION, "w1 knows the authority", || {
        let now: Value = serde_json::from_slice(&fs::read(&path)?)?;
        ensure!(now["cluster"]["caCertificate"] == right, "it knows another one");
        Ok(())
    })?;
    cluster.wait_for_ready_nodes(SOON)?;
    cluster.say("w1 knew another authority than the cluster has; it has joined anew");
    Ok(())
}

/// Nothing on the control plane's list that kimage or a kubelet renews is over.
fn everything_is_young(cluster: &mut Cluster<Contained>) -> Result<()> {
    let machine = cluster.machine("cp1");
    let list: Vec<Value> = serde_json::from_str(&machine.run(&["cat", "/run/kimage/lifetimes.json"])?)?;
    let issued = list.iter().filter_map(|line| line["what"].as_str());
    let issued: Vec<&str> = issued
        .filter(|what| what.starts_with("/etc/kubernetes/"))
        .collect();
    ensure!(issued.len() == 11, "{issued:?}");
    for path in issued {
        let text = machine.run(&["cat", path])?;
        let certificate = certificate_in(&text).map_or(text, |pair| pair.certificate);
        let validity = validity_of(&certificate)?;
        ensure!(validity.holds(SystemTime::now()), "{path}: {validity:?}");
    }
    Ok(())
}

/// The controller manager makes a Deployment's pods, and the scheduler binds them.
fn pods_are_made_and_bound(cluster: &Cluster<Contained>) -> Result<()> {
    let labels = json!({"app": "late"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "late", "namespace": "default"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {
                "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10"}],
                // The machines' disks are folders of this host's, which may be almost full.
                "tolerations": [{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}],
            },
        }},
    });
    cluster.apply(&[deployment], SOON)?;
    until(SOON, "the Deployment's pod is bound", || {
        let pods = cluster.items("/api/v1/namespaces/default/pods?labelSelector=app%3Dlate")?;
        let nodes: Vec<&Value> = pods.iter().map(|pod| &pod["spec"]["nodeName"]).collect();
        ensure!(nodes == ["w1"], "{nodes:?}");
        Ok(())
    })?;
    cluster.say("a Deployment's pod is made and bound");
    Ok(())
}

/// What kubelets ask for now is approved and signed.
fn requests_are_signed(cluster: &Cluster<Contained>) -> Result<()> {
    let signed = || -> Result<usize> {
        let requests = cluster.items(REQUESTS)?;
        Ok(requests
            .iter()
            .filter(|request| request["status"]["certificate"].is_string())
            .count())
    };
    let before = signed()?;
    until(SOON, "another request is signed", || {
        let now = signed()?;
        ensure!(now > before, "{now} as before");
        Ok(())
    })?;
    cluster.say("kubelets' requests are signed");
    Ok(())
}
