use super::*;
use crate::approver::cluster::Fake;
use crate::approver::request::tests::{CLIENT, SERVER, parameters, pem, serving};
use crate::machine::tests::control_plane;

const W1: &str = "system:node:w1";

/// A cluster whose approver a test asks.
struct Asker {
    cluster: Fake,
    watchman: Watchman,
    now: Instant,
}

impl Asker {
    /// A cluster with these Nodes, which are alive.
    fn new(nodes: &[(&str, &[&str])]) -> Self {
        let mut cluster = Fake::default();
        for (name, addresses) in nodes {
            cluster.add(name, "True", addresses);
        }
        Self {
            cluster,
            watchman: Watchman::default(),
            now: Instant::now(),
        }
    }

    fn judge(&mut self, request: &Object) -> Verdict {
        let reserved = Reserved::of(&control_plane());
        judge(request, &self.cluster, &reserved, &mut self.watchman, self.now).unwrap()
    }

    /// What comes of it when the node called `name` asks for `names`.
    fn ask(&mut self, name: &str, names: &[&str]) -> Result<(), String> {
        let user = format!("system:node:{name}");
        let request = serving(&user, NODES, &pem(&parameters(&user, NODES, names)), &SERVER);
        match self.judge(&request) {
            Verdict::Approve(..) => Ok(()),
            Verdict::Never(why) | Verdict::Later { why, .. } => Err(why),
        }
    }

    /// A node's machine is gone, and the cluster has noticed.
    fn silence(&mut self, name: &str) {
        self.cluster.nodes.get_mut(name).unwrap().ready = Some("Unknown".to_owned());
    }

    fn wait(&mut self) {
        self.now += QUIET + Duration::from_secs(1);
    }
}

#[test]
fn a_node_gets_a_certificate_for_its_own_name_and_address_which_are_then_bound_to_it() {
    let mut asker = Asker::new(&[("w1", &["10.0.0.7", "fd00::7"])]);
    assert_eq!(asker.ask("w1", &["w1", "10.0.0.7", "fd00::7"]), Ok(()));
    assert_eq!(asker.cluster.holder("10.0.0.7").as_deref(), Some("w1"));
    assert_eq!(asker.cluster.holder("fd00::7").as_deref(), Some("w1"));
    assert_eq!(asker.ask("w1", &["w1", "10.0.0.7"]), Ok(()));
}

#[test]
fn who_is_not_the_node_itself_gets_nothing() {
    let mut asker = Asker::new(&[("w1", &["10.0.0.7"])]);
    let good = pem(&parameters(W1, NODES, &["w1", "10.0.0.7"]));
    let of = |common_name: &str, organization: &str| pem(&parameters(common_name, organization, &["w1"]));
    for (request, part) in [
        (
            serving("system:node:w2", NODES, &good, &SERVER),
            "asks for a certificate of",
        ),
        (serving(W1, "system:masters", &good, &SERVER), "is not in"),
        (serving("admin", NODES, &good, &SERVER), "is no node"),
        (serving("system:node:a b", NODES, &good, &SERVER), "is no node"),
        (
            serving("system:node:w1?watch=true", NODES, &good, &SERVER),
            "is no node",
        ),
        (serving("system:node:../x", NODES, &good, &SERVER), "is no node"),
        (serving(W1, NODES, &good, &CLIENT), "usages"),
        (serving(W1, NODES, "AAAA", &SERVER), "no PEM"),
        (
            serving(W1, NODES, &of(W1, "system:masters"), &SERVER),
            "asks for a certificate of",
        ),
        (
            serving(W1, NODES, &of("system:node:w2", NODES), &SERVER),
            "asks for a certificate of",
        ),
    ] {
        match asker.judge(&request) {
            Verdict::Never(why) => assert!(why.contains(part), "{why} lacks {part}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(asker.ask("w9", &["w9"]).unwrap_err().contains("no Node"));
}

#[test]
fn what_a_node_writes_into_its_status_gives_it_no_other_name_or_address() {
    let claims = [
        "10.0.0.7",
        "10.96.0.1",
        "10.0.0.5",
        "10.0.0.6",
        "10.244.3.4",
        "127.0.0.1",
        "169.254.169.254",
    ];
    let mut asker = Asker::new(&[("w1", &claims), ("cp-2", &["10.0.0.6"]), ("w2", &["10.0.0.8"])]);
    asker.cluster.servers.insert("10.0.0.6".parse().unwrap());
    asker.cluster.servers.insert("10.0.0.9".parse().unwrap());
    asker.cluster.ranges.push("10.50.0.0/16".parse().unwrap());
    asker.cluster.add(
        "w1",
        "True",
        &[&claims[..], &["10.0.0.9", "10.50.0.1", "10.0.0.8"]].concat(),
    );
    for name in [
        "kubernetes",
        "lb.example.com",
        "cp-1",
        "kubernetes.default.svc",
        "*",
        "W1",
    ] {
        assert!(asker.ask("w1", &["w1", name]).is_err(), "{name}");
    }
    for address in &claims[1..] {
        assert!(asker.ask("w1", &["w1", address]).is_err(), "{address}");
    }
    for address in ["10.0.0.9", "10.50.0.1", "10.0.0.8", "10.0.0.77"] {
        assert!(asker.ask("w1", &["w1", address]).is_err(), "{address}");
    }
    assert!(asker.cluster.pins.borrow().is_empty());
    assert_eq!(asker.ask("w1", &["w1", "10.0.0.7"]), Ok(()));
}

#[test]
fn a_node_may_not_be_called_like_the_api_or_a_service() {
    for name in ["kubernetes", "lb.example.com", "api.example.com", "hook.team.svc"] {
        let mut asker = Asker::new(&[(name, &["10.0.0.7"])]);
        assert!(
            asker
                .ask(name, &[name, "10.0.0.7"])
                .unwrap_err()
                .contains("a name of the API")
        );
    }
}

#[test]
fn another_address_needs_a_person_who_is_told_how() {
    let mut asker = Asker::new(&[("w1", &["10.0.0.7", "10.0.0.8"])]);
    asker.ask("w1", &["w1", "10.0.0.7"]).unwrap();
    let why = asker.ask("w1", &["w1", "10.0.0.8"]).unwrap_err();
    let remedy = "kubectl --namespace kube-system delete configmap --selector kimage.dev/node=w1";
    assert!(why.contains(remedy), "{why}");
    assert!(asker.cluster.events.borrow()[0].starts_with("w1 AddressRefused: "));
    assert!(asker.ask("w1", &["w1", "10.0.0.7", "10.0.0.8"]).is_err());
    asker.cluster.pins.borrow_mut().clear();
    assert_eq!(asker.ask("w1", &["w1", "10.0.0.8"]), Ok(()));
}

#[test]
fn an_address_stays_with_its_node_until_that_is_gone_or_silent() {
    let mut asker = Asker::new(&[("w1", &["10.0.0.7"]), ("w2", &["10.0.0.7"])]);
    assert!(
        asker
            .ask("w2", &["10.0.0.7"])
            .unwrap_err()
            .contains("calls its own, too")
    );
    asker.cluster.add("w2", "True", &[]);
    asker.ask("w1", &["10.0.0.7"]).unwrap();
    asker.cluster.add("w2", "True", &["10.0.0.7"]);
    assert!(asker.ask("w2", &["10.0.0.7"]).is_err());
    asker.silence("w1");
    assert!(asker.ask("w2", &["10.0.0.7"]).is_err());
    asker.wait();
    assert_eq!(asker.ask("w2", &["10.0.0.7"]), Ok(()));
    assert_eq!(asker.cluster.holder("10.0.0.7").as_deref(), Some("w2"));
    // Whoever has an address of its own does not take another's, gone or not.
    asker.cluster.nodes.remove("w2");
    asker.cluster.add("w3", "True", &["10.0.0.9", "10.0.0.7"]);
    asker.ask("w3", &["10.0.0.9"]).unwrap();
    assert!(asker.ask("w3", &["10.0.0.7"]).is_err());
    asker.cluster.add("w4", "True", &["10.0.0.7"]);
    asker.cluster.nodes.remove("w3");
    assert_eq!(asker.ask("w4", &["10.0.0.7"]), Ok(()));
}

#[test]
fn the_claims_of_a_node_that_has_addresses_hinder_nobody() {
    let mut asker = Asker::new(&[("liar", &["10.0.0.7"]), ("w1", &["10.0.0.8"])]);
    asker.ask("liar", &["10.0.0.7"]).unwrap();
    asker.cluster.add("liar", "True", &["10.0.0.7", "10.0.0.8"]);
    assert_eq!(asker.ask("w1", &["w1", "10.0.0.8"]), Ok(()));
}

#[test]
fn a_control_plane_may_be_the_endpoint_and_keeps_its_address_when_it_is_silent() {
    let mut asker = Asker::new(&[("cp-1", &["10.0.0.5"]), ("w1", &["10.0.0.6"])]);
    asker.cluster.servers.insert("10.0.0.5".parse().unwrap());
    assert!(asker.ask("cp-1", &["10.0.0.5"]).is_err());
    asker.cluster.nodes.get_mut("cp-1").unwrap().is_control_plane = true;
    assert_eq!(asker.ask("cp-1", &["cp-1", "10.0.0.5"]), Ok(()));
    // One whose own agent has said where it is.
    let address = "10.0.0.6".parse().unwrap();
    let pin = Pin::new(address, &Fake::name("cp-2"), true);
    asker.cluster.pins.borrow_mut().insert(address, pin);
    asker.cluster.add("cp-2", "Unknown", &[]);
    assert!(asker.ask("w1", &["10.0.0.6"]).is_err());
    asker.wait();
    assert!(
        asker
            .ask("w1", &["10.0.0.6"])
            .unwrap_err()
            .contains("bound to Node cp-2")
    );
    asker.cluster.nodes.remove("cp-2");
    assert_eq!(asker.ask("w1", &["10.0.0.6"]), Ok(()));
}

#[test]
fn nobody_has_more_addresses_than_a_machine_has() {
    let many = ["10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.1.1", "10.0.1.2"];
    let mut asker = Asker::new(&[("w1", &many)]);
    assert!(asker.ask("w1", &many).is_err());
    assert_eq!(asker.ask("w1", &many[..4]), Ok(()));
}
