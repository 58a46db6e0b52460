use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::approver::cluster::Fake;
use crate::approver::pins::Pin;
use crate::approver::request::tests::{CLIENT, SERVER, TOKENS, client, parameters, pem};
use crate::machine::tests::control_plane;

const W1: &str = "system:node:w1";
const TOKEN: &str = "system:bootstrap:abcdef";

fn judge_at(cluster: &Fake, watchman: &mut Watchman, now: Instant, request: &Object) -> Verdict {
    judge(request, cluster, &Reserved::of(&control_plane()), watchman, now).unwrap()
}

fn verdict(cluster: &Fake, request: &Object) -> Verdict {
    judge_at(cluster, &mut Watchman::default(), Instant::now(), request)
}

fn by_token(name: &str) -> Object {
    let user = format!("system:node:{name}");
    client(TOKEN, TOKENS, &pem(&parameters(&user, NODES, &[])), &CLIENT)
}

fn is_approved(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Approve(..))
}

#[test]
fn a_token_makes_a_node_that_nobody_is_yet() {
    assert!(is_approved(&verdict(&Fake::default(), &by_token("w1"))));
}

#[test]
fn a_token_never_gets_the_name_of_a_node_that_lives() {
    let mut cluster = Fake::default();
    for ready in ["True", "False"] {
        cluster.add("w1", ready, &[]);
        let Verdict::Later { why, .. } = verdict(&cluster, &by_token("w1")) else {
            panic!("{ready}");
        };
        assert!(why.contains("which is alive"), "{why}");
    }
    assert!(cluster.events.borrow()[0].starts_with("w1 NodeNameRefused: "));
}

#[test]
fn a_silent_nodes_name_is_taken_over_with_addresses_that_are_free_again() {
    let (mut cluster, mut watchman, now) = (Fake::default(), Watchman::default(), Instant::now());
    cluster.add("w1", "Unknown", &["10.0.0.7"]);
    let address: IpAddr = "10.0.0.7".parse().unwrap();
    let pin = Pin::new(address, &Fake::name("w1"), false);
    cluster.pins.borrow_mut().insert(address, pin);
    let request = by_token("w1");
    assert!(!is_approved(&judge_at(&cluster, &mut watchman, now, &request)));
    let later = now + Duration::from_secs(10);
    cluster.leases.insert("w1".to_owned(), "9".to_owned());
    assert!(!is_approved(&judge_at(&cluster, &mut watchman, later, &request)));
    assert_eq!(cluster.holder("10.0.0.7").as_deref(), Some("w1"));
    assert!(is_approved(&judge_at(
        &cluster,
        &mut watchman,
        later + QUIET,
        &request
    )));
    assert_eq!(cluster.holder("10.0.0.7"), None);
}

#[test]
fn a_token_never_gets_the_name_of_a_control_plane() {
    let (mut cluster, mut watchman, now) = (Fake::default(), Watchman::default(), Instant::now());
    // One that is labelled, and silent for long.
    cluster.add("cp-9", "Unknown", &[]);
    cluster.nodes.get_mut("cp-9").unwrap().is_control_plane = true;
    for passed in [Duration::ZERO, QUIET * 10] {
        let verdict = judge_at(&cluster, &mut watchman, now + passed, &by_token("cp-9"));
        assert!(!is_approved(&verdict));
    }
    // One that the NodeConfig names, and one whose agent has said where it is.
    assert!(!is_approved(&verdict(&cluster, &by_token("cp-1"))));
    let address: IpAddr = "10.0.0.6".parse().unwrap();
    let pin = Pin::new(address, &Fake::name("cp-2"), true);
    cluster.pins.borrow_mut().insert(address, pin);
    assert!(!is_approved(&verdict(&cluster, &by_token("cp-2"))));
    // And nobody is called like the API.
    assert!(matches!(
        verdict(&cluster, &by_token("kubernetes")),
        Verdict::Never(_)
    ));
}

#[test]
fn a_certificate_is_renewed_by_its_node_alone() {
    let mut cluster = Fake::default();
    cluster.add("w1", "True", &[]);
    let good = pem(&parameters(W1, NODES, &[]));
    assert!(is_approved(&verdict(
        &cluster,
        &client(W1, NODES, &good, &CLIENT)
    )));
    let organization = pem(&parameters(W1, "system:masters", &[]));
    let named = pem(&parameters(W1, NODES, &["w1"]));
    let other = pem(&parameters("system:node:../x", NODES, &[]));
    for request in [
        client("system:node:w2", NODES, &good, &CLIENT),
        client(W1, "system:authenticated", &good, &CLIENT),
        client("admin", NODES, &good, &CLIENT),
        client(TOKEN, "system:bootstrappers", &good, &CLIENT),
        client("mallory", TOKENS, &good, &CLIENT),
        client(W1, NODES, &good, &SERVER),
        client(
            W1,
            NODES,
            &good,
            &["digital signature", "client auth", "server auth"],
        ),
        client(W1, NODES, &organization, &CLIENT),
        client(W1, NODES, &named, &CLIENT),
        client("system:node:../x", NODES, &other, &CLIENT),
    ] {
        let verdict = verdict(&cluster, &request);
        assert!(matches!(verdict, Verdict::Never(_)), "{verdict:?}");
    }
}
