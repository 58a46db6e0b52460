//! Bench B: virtual machines that boot the shipped disks under Secure Boot become a cluster behind HAProxy, and the
//! cluster does what a cluster is for.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use anyhow::{Context, Result, ensure};
use client::{DNS, Kubectl};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::members::CLEAR;
use kimage_qemu_tests::cluster::{Cluster, Shape, until};
use kimage_qemu_tests::shipped::cluster::{FORMATION, SOON};
use kimage_qemu_tests::shipped::{Door, Shipped};
use question::Kind;
use serde_json::Value;

#[path = "machines/client.rs"]
mod client;
#[path = "machines/question.rs"]
mod question;
#[path = "machines/workload.rs"]
mod workload;

/// etcd is on the control plane.
const SHAPE: Shape = Shape {
    etcd: 0,
    control_planes: 1,
    workers: 1,
};

#[test]
fn machines_from_shipped_disks_become_a_cluster_that_runs_pods_and_survives_a_power_cut() {
    let mut cluster = Cluster::<Shipped>::new(SHAPE).unwrap();
    for (name, door) in [("cp1", Door::NoCloud), ("w1", Door::Ec2)] {
        cluster.bring_into_service(&[name], door).unwrap();
    }
    cluster.print_phases();
    let before = cluster.wait_for_ready_nodes(SOON).unwrap();
    nodes_know_where_they_stand(&mut cluster, &before);
    the_metadata_service_was_asked_with_a_token_only(&cluster.metadata_log());
    cluster.say("both Nodes are Ready; zones, regions and provider ids come from metadata");
    pods_do_what_pods_are_for(&cluster).unwrap();
    cluster.check_encryption_at_rest(SOON).unwrap();
    cluster.say("a Secret read straight from etcd is ciphertext");
    the_audit_log_has_the_request(&cluster).unwrap();

    power_is_cut(&mut cluster, &before).unwrap();
}

fn pods_do_what_pods_are_for(cluster: &Cluster<Shipped>) -> Result<()> {
    let kubectl = Kubectl::new(cluster)?;
    let service = a_deployment_answers_through_a_service_from_the_other_node(cluster, &kubectl)?;
    names_resolve(cluster, &kubectl, &service)?;
    logs_and_commands_come_out_of_pods(cluster, &kubectl)?;
    a_network_policy_blocks_what_it_should(cluster, &kubectl)
}

/// Both machines lose their power and get it back; what the cluster had it has.
fn power_is_cut(cluster: &mut Cluster<Shipped>, before: &[Value]) -> Result<()> {
    cluster.kill_all()?;
    cluster.say("the power of both machines is cut");
    cluster.start_all_shuffled()?;
    cluster.wait_for_service(FORMATION)?;
    cluster.say("both are in service again");
    cluster.print_phases();
    let after = cluster.wait_for_ready_nodes(SOON)?;
    ensure!(uids(before) == uids(&after), "the Nodes are other ones");
    // Nobody asks the disk for the audit log's newest lines: those may be gone.
    until(SOON, "the same Secret", || cluster.check_secret())?;
    let kubectl = Kubectl::new(cluster)?;
    until(SOON, "the Service answers again", || answers(&kubectl))?;
    cluster.say("the same Nodes, the same Secret, and the Service answers");
    Ok(())
}

fn uids(nodes: &[Value]) -> Vec<&Value> {
    nodes.iter().map(|node| &node["metadata"]["uid"]).collect()
}

fn nodes_know_where_they_stand(cluster: &mut Cluster<Shipped>, nodes: &[Value]) {
    let stand: Vec<[&str; 5]> = nodes
        .iter()
        .map(|node| {
            let labels = &node["metadata"]["labels"];
            [
                &node["metadata"]["name"],
                &labels["topology.kubernetes.io/zone"],
                &labels["topology.kubernetes.io/region"],
                &node["spec"]["providerID"],
                &node["status"]["addresses"][0]["address"],
            ]
            .map(|value| value.as_str().unwrap_or_default())
        })
        .collect();
    let instance = |name: &str| cluster.machine(name).instance().to_owned();
    let [cp1, w1] = ["cp1", "w1"].map(instance);
    let wanted = [
        ["cp1", "a", "bench", &format!("kimage://{cp1}"), "10.89.0.21"],
        ["w1", "b", "bench", &format!("aws:///b/{w1}"), "10.89.0.31"],
    ];
    assert_eq!(stand, wanted);
}

fn the_metadata_service_was_asked_with_a_token_only(log: &[String]) {
    assert_eq!(
        log.first().map(String::as_str),
        Some("PUT /latest/api/token 200"),
        "{log:?}"
    );
    assert!(log.contains(&"GET /latest/user-data 200".to_owned()), "{log:?}");
    assert!(log.iter().all(|line| line.ends_with(" 200")), "{log:?}");
}

/// Returns the address of the Service.
fn a_deployment_answers_through_a_service_from_the_other_node(
    cluster: &Cluster<Shipped>,
    kubectl: &Kubectl,
) -> Result<String> {
    cluster.apply(&workload::server(), SOON)?;
    let address = until(SOON, "the Service has an address", || {
        let service = cluster.get("/api/v1/namespaces/default/services/server")?;
        let address = service
            .as_ref()
            .and_then(|service| service["spec"]["clusterIP"].as_str());
        Ok(address.context("none yet")?.to_owned())
    })?;
    cluster.apply(&workload::client("cp1", &address, DNS), SOON)?;
    until(SOON, "the server runs on w1 and the client on cp1", || {
        let pods = cluster.items("/api/v1/namespaces/default/pods")?;
        let mut places: Vec<(&str, &str)> = pods
            .iter()
            .filter(|pod| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            })
            .map(|pod| (&pod["metadata"]["labels"]["app"], &pod["spec"]["nodeName"]))
            .map(|(app, node)| {
                (
                    app.as_str().unwrap_or_default(),
                    node.as_str().unwrap_or_default(),
                )
            })
            .collect();
        places.sort_unstable();
        let states: Vec<_> = pods
            .iter()
            .map(|pod| &pod["status"]["containerStatuses"])
            .collect();
        ensure!(
            places == [("client", "cp1"), ("server", "w1")],
            "{places:?} {states:?}"
        );
        Ok(())
    })?;
    cluster.say("client and server run");
    until(SOON, "the Service answers", || answers(kubectl))?;
    cluster.say("the server on w1 answers the client on cp1 through its Service");
    Ok(address)
}

fn answers(kubectl: &Kubectl) -> Result<()> {
    let said = kubectl.ask(workload::NAME, Kind::Txt)?;
    // A text's length comes first.
    ensure!(said[0].get(1..) == Some(workload::WORDS.as_bytes()), "{said:?}");
    Ok(())
}

fn names_resolve(cluster: &Cluster<Shipped>, kubectl: &Kubectl, service: &str) -> Result<()> {
    let address = |name: &str| {
        let found = kubectl.ask(name, Kind::A)?;
        let words: Vec<String> = found[0].iter().map(u8::to_string).collect();
        anyhow::Ok(words.join("."))
    };
    for (name, wanted) in [
        ("server.default.svc.cluster.local", service),
        ("kubernetes.default.svc.cluster.local", "10.96.0.1"),
    ] {
        let found = until(SOON, name, || address(name))?;
        ensure!(found == wanted, "{name} is {found}, not {wanted}");
    }
    // Both replicas serve, one on each node.
    until(SOON, "both replicas of CoreDNS on their own nodes", || {
        let pods = cluster.items("/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns")?;
        let mut nodes: Vec<&str> = pods
            .iter()
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
            .collect();
        nodes.sort_unstable();
        ensure!(nodes == ["cp1", "w1"], "{nodes:?}");
        Ok(())
    })?;
    cluster.say("the cluster's DNS resolves the Service; its two replicas stand on two nodes");
    Ok(())
}

fn logs_and_commands_come_out_of_pods(cluster: &Cluster<Shipped>, kubectl: &Kubectl) -> Result<()> {
    until(SOON, "the server's log tells of the question", || {
        let log = kubectl.run(&["logs", "deployment/server"])?;
        ensure!(log.contains(workload::NAME), "{log}");
        Ok(())
    })?;
    for pod in ["client", "deployment/server"] {
        let said = until(SOON, "kubectl exec", || {
            kubectl.run(&["exec", pod, "--", "/coredns", "-version"])
        })?;
        ensure!(said.starts_with("CoreDNS-1.14"), "{pod}: {said}");
    }
    cluster.say("kubectl logs and exec work on both nodes");
    Ok(())
}

fn a_network_policy_blocks_what_it_should(cluster: &Cluster<Shipped>, kubectl: &Kubectl) -> Result<()> {
    cluster.apply(&[workload::nobody_may()], SOON)?;
    until(SOON, "the policy blocks", || {
        ensure!(answers(kubectl).is_err(), "the server still answers");
        // What no policy is about goes on.
        kubectl
            .ask("kubernetes.default.svc.cluster.local", Kind::A)
            .map(drop)
    })?;
    cluster.say("a NetworkPolicy blocks the client, and nothing else");
    cluster.apply(&[workload::the_client_may()], SOON)?;
    until(SOON, "the second policy lets the client in", || answers(kubectl))?;
    cluster.say("a second NetworkPolicy lets the client in");
    Ok(())
}

/// The kubelet serves what lies below /var/log.
fn the_audit_log_has_the_request(cluster: &Cluster<Shipped>) -> Result<()> {
    let kubectl = Kubectl::new(cluster)?;
    let path = "/api/v1/nodes/cp1/proxy/logs/kubernetes/audit/audit.log";
    let entries = until(SOON, "the audit log", || {
        let log = kubectl.run(&["get", "--raw", path])?;
        let entries: Vec<Value> = log
            .lines()
            .filter(|line| line.contains("\"probe\""))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        ensure!(entries.iter().any(is_the_request), "no entry about the Secret");
        Ok(entries)
    })?;
    let patch = entries.iter().find(|entry| is_the_request(entry)).unwrap();
    assert_eq!(patch["level"], "Metadata");
    assert_eq!(patch["user"]["username"], "kubernetes-super-admin");
    assert!(!entries.iter().any(|entry| entry.to_string().contains(CLEAR)));
    cluster.say("the audit log has the request, without the Secret's content");
    Ok(())
}

fn is_the_request(entry: &Value) -> bool {
    entry["verb"] == "patch" && entry["objectRef"]["resource"] == "secrets"
}
