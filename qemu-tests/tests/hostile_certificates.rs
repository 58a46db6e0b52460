//! Whoever holds a worker's credentials or a bootstrap token gets no certificate that makes it anybody else, and keeps
//! nobody from getting an honest one. Bench A: a live API server, its signer, and real kubelets.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what these tests need and do not find ends them; what was measured is worth a line"
)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, Shape, address, until};
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_qemu_tests::namespaces::network::BENCH;
use serde_json::{Value, json};

use requester::{Requester, pem};

#[path = "hostile_certificates/oracle.rs"]
mod oracle;
#[path = "hostile_certificates/requester.rs"]
mod requester;

/// Generous: two cores may be busy with other things.
const FORMATION: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(120);
const SHAPE: Shape = Shape {
    etcd: 0,
    control_planes: 1,
    workers: 2,
};
/// So many requests wait at once: more than the kubelets of a large cluster make within an hour.
const CROWD: usize = 2500;
/// What the agent may take of memory at its worst, in KiB: half of what its unit allows.
const MEMORY: u64 = 32 << 10;

/// All of `names` wait still, after a request that was made later was approved.
fn none_is_approved(cluster: &Cluster<Contained>, names: &[String]) {
    for name in names {
        let found = requester::find(cluster, name).unwrap();
        let conditions = &found["status"]["conditions"];
        assert!(
            conditions.is_null() && found["status"]["certificate"].is_null(),
            "{name}: {conditions}"
        );
    }
}

/// `w1` asks for what is its own, with a new key, and gets it.
fn an_honest_kubelet_is_served(cluster: &Cluster<Contained>, worker: &Requester, name: &str) {
    let address = address("w", 1).to_string();
    let began = Instant::now();
    worker
        .serving(cluster, name, &pem("system:node:w1", &["w1", &address]))
        .unwrap();
    requester::wait_until_signed(cluster, name, SOON).unwrap();
    println!("{name} was approved and signed after {:.1?}", began.elapsed());
}

/// Go skips the first block, whose last line has a foreign label, and signs the second.
fn a_second_block_is_not_signed(cluster: &Cluster<Contained>, worker: &Requester) {
    let own = pem("system:node:w1", &["w1", &address("w", 1).to_string()]);
    let evil = pem(
        "system:node:w1",
        &["kubernetes", "kubernetes.default.svc", "10.96.0.1"],
    );
    let skipped = own.replace("END CERTIFICATE REQUEST", "END X");
    let mut names = Vec::new();
    for (number, text) in [format!("{skipped}{evil}"), format!("{own}{evil}"), evil]
        .iter()
        .enumerate()
    {
        names.push(format!("a-blocks-{number}"));
        worker.serving(cluster, &names[number], text).unwrap();
    }
    an_honest_kubelet_is_served(cluster, worker, "z-after-blocks");
    none_is_approved(cluster, &names);
}

/// A node writes its own status.
fn addresses_of_others_are_not_signed(cluster: &Cluster<Contained>, worker: &Requester) {
    let own = address("w", 1).to_string();
    let (endpoint, server, other) = (
        BENCH.to_string(),
        address("cp", 1).to_string(),
        address("w", 2).to_string(),
    );
    let strange = [
        "kubernetes",
        "kubernetes.default.svc",
        "cp1",
        "w2",
        &endpoint,
        &server,
        &other,
        "10.96.0.1",
        "10.244.0.5",
        "10.89.0.99",
    ];
    let of_kind = |name: &str| match name.parse::<std::net::IpAddr>() {
        Ok(_) => json!({"type": "ExternalIP", "address": name}),
        Err(_) => json!({"type": "InternalDNS", "address": name}),
    };
    let mut claims = vec![
        json!({"type": "InternalIP", "address": own}),
        json!({"type": "Hostname", "address": "w1"}),
    ];
    claims.extend(strange.iter().map(|name| of_kind(name)));
    let names: Vec<String> = (0..strange.len())
        .map(|number| format!("a-address-{number}"))
        .collect();
    for (name, wanted) in names.iter().zip(strange) {
        // The real kubelet mends its status every now and then.
        worker.claim(cluster, "w1", &claims).unwrap();
        let text = pem("system:node:w1", &["w1", &own, wanted]);
        worker.serving(cluster, name, &text).unwrap();
    }
    an_honest_kubelet_is_served(cluster, worker, "z-after-addresses");
    none_is_approved(cluster, &names);
    let events = cluster.items("/api/v1/namespaces/default/events").unwrap();
    let told =
        |event: &&Value| event["reason"] == "AddressRefused" && event["involvedObject"]["name"] == "w1";
    let event = events.iter().find(told).unwrap();
    let message = event["message"].as_str().unwrap();
    assert!(
        message.contains("delete configmap --selector kimage.dev/node=w1"),
        "{message}"
    );
}

/// Who makes machines says where w1 is. A node that asks waits for that word; its own counts for nothing.
fn the_inventorys_word_lets_a_moved_node_through_and_takes_it_back(
    cluster: &mut Cluster<Contained>,
    worker: &Requester,
) {
    let (own, moved) = (address("w", 1), Ipv4Addr::new(10, 89, 0, 98));
    let text = pem("system:node:w1", &["w1", &moved.to_string()]);
    worker.serving(cluster, "a-moved", &text).unwrap();
    an_honest_kubelet_is_served(cluster, worker, "z-before-the-word");
    none_is_approved(cluster, &["a-moved".to_owned()]);
    cluster
        .publish_place("w1", vec![own.into(), moved.into()])
        .unwrap();
    worker.serving(cluster, "z-moved", &text).unwrap();
    requester::wait_until_signed(cluster, "z-moved", SOON).unwrap();
    cluster.publish_place("w1", vec![own.into()]).unwrap();
    let pin = format!("/api/v1/namespaces/kube-system/configmaps/kimage-address.{moved}");
    let mut number = 0;
    until(SOON, "the address is w1's no more", || {
        // The approver's list may be some seconds old, and is looked at when somebody asks.
        number += 1;
        worker.serving(cluster, &format!("a-moved-{number}"), &text)?;
        let pin = cluster.get(&pin)?.context("no pin")?;
        ensure!(pin["data"]["node"] == "", "{}", pin["data"]);
        Ok(())
    })
    .unwrap();
    worker.serving(cluster, "a-moved-back", &text).unwrap();
    an_honest_kubelet_is_served(cluster, worker, "z-after-the-word");
    none_is_approved(cluster, &["a-moved-back".to_owned()]);
}

/// Names of users that would lead to other paths.
fn odd_users_end_nothing(cluster: &Cluster<Contained>, worker: &Requester) {
    let mut names = Vec::new();
    for (number, node) in ["a b", "w1?watch=true", "../x", "w1/status", "W1"]
        .iter()
        .enumerate()
    {
        let user = format!("system:node:{node}");
        let odd = Requester::node(cluster, node).unwrap();
        names.push(format!("a-odd-{number}"));
        odd.serving(cluster, &names[number], &pem(&user, &["w1"]))
            .unwrap();
    }
    an_honest_kubelet_is_served(cluster, worker, "z-after-odd-users");
    none_is_approved(cluster, &names);
}

/// Text before the block, which Go skips, makes a list of few megabytes each.
fn large_requests_end_nothing(cluster: &Cluster<Contained>, worker: &Requester) {
    let own = pem("system:node:w1", &["w1", &address("w", 1).to_string()]);
    let names: Vec<String> = (0..7).map(|number| format!("a-large-{number}")).collect();
    for name in &names {
        let text = format!("{}\n{own}", "x".repeat(1_000_000));
        worker.serving(cluster, name, &text).unwrap();
    }
    an_honest_kubelet_is_served(cluster, worker, "z-after-large");
    none_is_approved(cluster, &names);
}

/// Peak of the agent's memory, in KiB (`VmHWM`, proc_pid_status(5)).
fn memory_of_agent(machine: &Contained) -> u64 {
    let script = "cat /proc/$(systemctl show --property=MainPID --value kimage-agent)/status";
    let status = machine.run(&["sh", "-euc", script]).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Thousands of requests, and an approver that has to read them all at once since it has just begun.
fn a_crowd_ends_nothing(cluster: &mut Cluster<Contained>, worker: &Requester) {
    // As large as those that kubelets make and the API server writes its notes to.
    let text = format!(
        "{}\n{}",
        "x".repeat(3000),
        pem("system:node:w1", &["w1", "kubernetes"])
    );
    let began = Instant::now();
    worker.crowd(cluster, &text, CROWD).unwrap();
    println!("{CROWD} requests were made within {:.1?}", began.elapsed());
    let machine = cluster.machine("cp1");
    println!("the agent took {} KiB at most", memory_of_agent(machine));
    machine.run(&["systemctl", "restart", "kimage-agent"]).unwrap();
    an_honest_kubelet_is_served(cluster, worker, "z-after-crowd");
    let peak = memory_of_agent(cluster.machine("cp1"));
    println!("the agent that read them all at once took {peak} KiB at most");
    assert!(peak < MEMORY, "{peak} KiB");
    let crowd: Vec<String> = (0..CROWD)
        .step_by(250)
        .map(|number| format!("a-crowd-{number}"))
        .collect();
    none_is_approved(cluster, &crowd);
}

/// Every worker knows a bootstrap token.
fn a_token_makes_new_nodes_only(cluster: &Cluster<Contained>) {
    let token = Requester::token(cluster).unwrap();
    let mut names = Vec::new();
    for node in ["w2", "cp1", "kubernetes"] {
        let name = format!("a-token-{node}");
        token
            .client(cluster, &name, &pem(&format!("system:node:{node}"), &[]))
            .unwrap();
        names.push(name);
    }
    token
        .client(cluster, "z-token-w9", &pem("system:node:w9", &[]))
        .unwrap();
    requester::wait_until_signed(cluster, "z-token-w9", SOON).unwrap();
    none_is_approved(cluster, &names);
    let node = Requester::node(cluster, "w2").unwrap();
    node.client(cluster, "z-renewal-w2", &pem("system:node:w2", &[]))
        .unwrap();
    requester::wait_until_signed(cluster, "z-renewal-w2", SOON).unwrap();
    for name in ["bootstrap", "certificate-rotation"] {
        let path = format!(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kubeadm%3Anode-autoapprove-{name}"
        );
        assert_eq!(cluster.get(&path).unwrap(), None);
    }
}

#[test]
fn a_stolen_worker_or_token_makes_nobody_else_of_itself_and_hinders_nobody() {
    let mut cluster = Cluster::<Contained>::new(SHAPE).unwrap();
    cluster.start_all_shuffled().unwrap();
    cluster.wait_for_service(FORMATION).unwrap();
    cluster.wait_for_serving_certificates(SOON).unwrap();
    cluster.say("all kubelets have certificates");
    let worker = Requester::node(&cluster, "w1").unwrap();
    let attacks = [
        (
            "two blocks",
            a_second_block_is_not_signed as fn(&Cluster<Contained>, &Requester),
        ),
        ("addresses of others", addresses_of_others_are_not_signed),
        ("odd users", odd_users_end_nothing),
        ("large requests", large_requests_end_nothing),
    ];
    let mut failed = Vec::new();
    for (what, attack) in attacks {
        cluster.say(what);
        // All attacks are tried: a defence that falls says nothing about the others.
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&cluster, &worker)));
        failed.extend(tried.err().map(|_| what));
        requester::clear(&cluster).unwrap();
    }
    cluster.say("the inventory");
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        the_inventorys_word_lets_a_moved_node_through_and_takes_it_back(&mut cluster, &worker);
    }));
    failed.extend(tried.err().map(|_| "the inventory"));
    requester::clear(&cluster).unwrap();
    cluster.say("a token");
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        a_token_makes_new_nodes_only(&cluster)
    }));
    failed.extend(tried.err().map(|_| "a token"));
    requester::clear(&cluster).unwrap();
    cluster.say("a crowd");
    let crowd = std::panic::AssertUnwindSafe(|| a_crowd_ends_nothing(&mut cluster, &worker));
    failed.extend(std::panic::catch_unwind(crowd).err().map(|_| "a crowd"));
    assert_eq!(failed, Vec::<&str>::new());
    requester::clear(&cluster).unwrap();

    // Its machine is gone for good; who comes has its name and address, a token, and nothing of its keys.
    cluster.say("w2 is replaced under its name");
    cluster.machine("w2").kill().unwrap();
    cluster.replace("w2").unwrap();
    cluster.machine("w2").start().unwrap();
    cluster.wait_for_one("w2", FORMATION).unwrap();
    cluster.say("the fresh w2 is in service");
    requester::wait_until_served(&cluster, "w2", SOON).unwrap();
    cluster.say("the fresh w2 has a certificate for the old address");
}
