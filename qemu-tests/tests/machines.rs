//! Bench B: virtual machines that boot the shipped disks under Secure Boot become a cluster behind HAProxy, and the
//! cluster does what a cluster is for.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what these tests need and do not find ends them; what was measured is worth a line"
)]

use std::time::Duration;

use anyhow::{Result, ensure};
use client::until;
use cluster::{Cluster, DNS};
use kimage_roles::status::Phase;
use question::Kind;
use serde_json::{Value, json};

#[path = "machines/client.rs"]
mod client;
#[path = "machines/cluster.rs"]
mod cluster;
#[path = "machines/metadata.rs"]
mod metadata;
#[path = "machines/question.rs"]
mod question;
#[path = "machines/workload.rs"]
mod workload;

/// Generous: an emulated control plane that has half a core to itself answers only after a quarter of an hour.
const FORMATION: Duration = Duration::from_secs(1500);
/// For everything that a cluster does by itself once it runs.
const SOON: Duration = Duration::from_secs(600);
/// What is in the Secret.
const CLEAR: &str = "a-word-that-must-not-be-read";

#[test]
fn a_control_plane_and_a_worker_from_shipped_disks_are_a_cluster_that_keeps_its_data_through_a_power_cut() {
    let mut cluster = Cluster::of_two().unwrap();
    for name in ["cp1", "w1"] {
        let machine = cluster.machine(name).unwrap();
        machine.start().unwrap();
        machine.wait_for(Phase::InService, FORMATION).unwrap();
        cluster.say(&format!("{name} is in service"));
        let transcript = cluster.machine(name).unwrap().transcript();
        assert!(transcript.contains("UEFI Secure Boot is enabled"), "{transcript}");
    }
    cluster.print_phases();
    let before = cluster.ready_nodes(SOON).unwrap();
    nodes_know_where_they_stand(&before);
    the_metadata_service_was_asked_with_a_token_only(&cluster.metadata_log());
    cluster.say("both Nodes are Ready; zones, regions and provider ids come from metadata");

    let service = a_deployment_answers_through_a_service_from_the_other_node(&cluster).unwrap();
    names_resolve(&cluster, &service).unwrap();
    logs_and_commands_come_out_of_pods(&cluster).unwrap();
    a_network_policy_blocks_what_it_should(&cluster).unwrap();
    a_secret_is_ciphertext_in_etcd(&mut cluster).unwrap();
    the_audit_log_has_the_request(&cluster).unwrap();

    cluster.machines().iter_mut().for_each(|machine| machine.kill());
    cluster.say("the power of both machines is cut");
    for machine in cluster.machines() {
        machine.start().unwrap();
    }
    for name in ["cp1", "w1"] {
        let machine = cluster.machine(name).unwrap();
        machine.wait_for(Phase::InService, FORMATION).unwrap();
        cluster.say(&format!("{name} is in service again"));
    }
    cluster.print_phases();
    let after = cluster.ready_nodes(SOON).unwrap();
    assert_eq!(uids(&before), uids(&after), "the Nodes are other ones");
    let secret = cluster.get("/api/v1/namespaces/default/secrets/probe").unwrap();
    assert_eq!(secret["data"]["word"], base64(CLEAR));
    the_audit_log_has_the_request(&cluster).unwrap();
    until(SOON, "the Service answers again", || answers(&cluster)).unwrap();
    cluster.say("after the power cut: the same Nodes, the same Secret, and the Service answers");
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn uids(nodes: &[Value]) -> Vec<&Value> {
    nodes.iter().map(|node| &node["metadata"]["uid"]).collect()
}

fn nodes_know_where_they_stand(nodes: &[Value]) {
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
    let wanted = [
        ["cp1", "a", "bench", "kimage://i-cp1-1", "10.89.0.21"],
        ["w1", "b", "bench", "aws:///b/i-w1-1", "10.89.0.31"],
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
fn a_deployment_answers_through_a_service_from_the_other_node(cluster: &Cluster) -> Result<String> {
    cluster.apply(&workload::server(), SOON)?;
    let service = cluster.get("/api/v1/namespaces/default/services/server")?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    cluster.apply(&workload::client("cp1", address, DNS), SOON)?;
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
    until(SOON, "the Service answers", || answers(cluster))?;
    cluster.say("the server on w1 answers the client on cp1 through its Service");
    Ok(address.to_owned())
}

fn answers(cluster: &Cluster) -> Result<()> {
    let said = cluster.ask(workload::NAME, Kind::Txt)?;
    // A text's length comes first.
    ensure!(said[0].get(1..) == Some(workload::WORDS.as_bytes()), "{said:?}");
    Ok(())
}

fn names_resolve(cluster: &Cluster, service: &str) -> Result<()> {
    let address = |name: &str| {
        let found = cluster.ask(name, Kind::A)?;
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

fn logs_and_commands_come_out_of_pods(cluster: &Cluster) -> Result<()> {
    until(SOON, "the server's log tells of the question", || {
        let log = cluster.kubectl(&["logs", "deployment/server"])?;
        ensure!(log.contains(workload::NAME), "{log}");
        Ok(())
    })?;
    for pod in ["client", "deployment/server"] {
        let said = until(SOON, "kubectl exec", || {
            cluster.kubectl(&["exec", pod, "--", "/coredns", "-version"])
        })?;
        ensure!(said.starts_with("CoreDNS-1.14"), "{pod}: {said}");
    }
    cluster.say("kubectl logs and exec work on both nodes");
    Ok(())
}

fn a_network_policy_blocks_what_it_should(cluster: &Cluster) -> Result<()> {
    cluster.apply(&[workload::nobody_may()], SOON)?;
    until(SOON, "the policy blocks", || {
        ensure!(answers(cluster).is_err(), "the server still answers");
        // What no policy is about goes on.
        cluster
            .ask("kubernetes.default.svc.cluster.local", Kind::A)
            .map(drop)
    })?;
    cluster.say("a NetworkPolicy blocks the client, and nothing else");
    cluster.apply(&[workload::the_client_may()], SOON)?;
    until(SOON, "the second policy lets the client in", || answers(cluster))?;
    cluster.say("a second NetworkPolicy lets the client in");
    Ok(())
}

fn a_secret_is_ciphertext_in_etcd(cluster: &mut Cluster) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "probe", "namespace": "default"},
        "stringData": {"word": CLEAR},
    });
    cluster.apply(&[secret], SOON)?;
    let stored = cluster.in_etcd("/registry/secrets/default/probe")?;
    let text = String::from_utf8_lossy(&stored);
    ensure!(text.starts_with("k8s:enc:secretbox:"), "{text}");
    ensure!(!text.contains(CLEAR), "{text}");
    // The reading itself works: what is not secret is readable.
    let readable = cluster.in_etcd("/registry/configmaps/default/server")?;
    ensure!(String::from_utf8_lossy(&readable).contains(workload::WORDS));
    cluster.say("a Secret read straight from etcd is ciphertext");
    Ok(())
}

/// The kubelet serves what lies below /var/log.
fn the_audit_log_has_the_request(cluster: &Cluster) -> Result<()> {
    let path = "/api/v1/nodes/cp1/proxy/logs/kubernetes/audit/audit.log";
    let entries = until(SOON, "the audit log", || {
        let log = cluster.kubectl(&["get", "--raw", path])?;
        let entries: Vec<Value> = log
            .lines()
            .filter(|line| line.contains("\"probe\""))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        ensure!(!entries.is_empty(), "no entry about the Secret");
        Ok(entries)
    })?;
    let patch = entries.iter().find(|entry| entry["verb"] == "patch").unwrap();
    assert_eq!(patch["objectRef"]["resource"], "secrets");
    assert_eq!(patch["level"], "Metadata");
    assert_eq!(patch["user"]["username"], "kubernetes-super-admin");
    assert!(!entries.iter().any(|entry| entry.to_string().contains(CLEAR)));
    cluster.say("the audit log has the request, without the Secret's content");
    Ok(())
}
