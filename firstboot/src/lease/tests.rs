use std::sync::{Arc, Mutex};

use super::*;
use crate::http::Trust;
use crate::http::test_server::{Reply, Seen as Asked, Server};
use crate::kubernetes::Caller;

const HOURS: i64 = 3600;
const SECOND: Duration = Duration::from_secs(1);

/// An API server with one Lease, which compares resource versions as the real one does.
struct Cluster {
    api: Api,
    lease: Arc<Mutex<Option<Value>>>,
    begin: Instant,
}

impl Cluster {
    fn new() -> Self {
        let lease: Arc<Mutex<Option<Value>>> = Arc::default();
        let server = Server::start({
            let lease = Arc::clone(&lease);
            move |asked| answer(&mut lease.lock().unwrap(), asked)
        });
        Self {
            api: Api::new(&server.url(), Trust::System, Caller::Anonymous).unwrap(),
            lease,
            begin: Instant::now(),
        }
    }

    fn lease(&self) -> Value {
        self.lease.lock().unwrap().clone().unwrap()
    }

    /// What a machine's clocks say so long after the beginning, if its wall clock is `skew` seconds ahead.
    fn clocks(&self, after: Duration, skew: i64) -> Clocks {
        let wall: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Clocks {
            monotonic: self.begin + after,
            wall: wall
                + jiff::SignedDuration::from_secs(skew)
                + jiff::SignedDuration::try_from(after).unwrap(),
        }
    }

    fn take(&self, machine: &mut Machine, after: Duration) -> Result<Lease, String> {
        let clocks = self.clocks(after, machine.skew);
        let taken = machine.turns.take_at(&self.api, &INIT, machine.name, clocks);
        taken.map_err(|failure| failure.message())
    }
}

fn answer(lease: &mut Option<Value>, asked: &Asked) -> Reply {
    let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
    let next = |lease: &Option<Value>| {
        let number = lease
            .as_ref()
            .map_or(0, |lease| version(lease).as_str().unwrap().parse().unwrap());
        json!((number + 1_u64).to_string())
    };
    let refusal = |code| Reply::Answer(code, Vec::new(), b"{}".to_vec());
    let write = |lease: &mut Option<Value>| {
        let mut object: Value = serde_json::from_slice(&asked.body).unwrap();
        object["metadata"]["resourceVersion"] = next(lease);
        *lease = Some(object.clone());
        Reply::ok(object.to_string())
    };
    match (asked.method.as_str(), &lease) {
        ("GET", None) => refusal(404),
        ("GET", Some(lease)) => Reply::ok(lease.to_string()),
        ("POST", None) => write(lease),
        ("PUT", Some(known)) => {
            let object: Value = serde_json::from_slice(&asked.body).unwrap();
            if version(&object) == version(known) {
                write(lease)
            } else {
                refusal(409)
            }
        }
        _ => refusal(409),
    }
}

/// A control plane whose wall clock is wrong by `skew` seconds.
struct Machine {
    name: &'static str,
    skew: i64,
    turns: Turns,
}

fn machine(name: &'static str, skew: i64) -> Machine {
    let turns = Turns::default();
    Machine { name, skew, turns }
}

#[test]
fn a_holder_that_renews_keeps_its_turn_however_wrong_its_clock_or_ours_is() {
    for skew in [-5 * HOURS, 0, 5 * HOURS] {
        let cluster = Cluster::new();
        let (mut holder, mut other) = (machine("a", skew), machine("b", 0));
        for seconds in (0..120).step_by(10) {
            let now = Duration::from_secs(seconds);
            cluster.take(&mut holder, now).unwrap();
            let refused = cluster.take(&mut other, now + SECOND).unwrap_err();
            assert_eq!(
                refused, "a applies the cluster's objects",
                "skew {skew}, {seconds} s"
            );
        }
    }
}

#[test]
fn a_holder_that_has_gone_away_loses_its_turn_after_its_duration_by_our_clock() {
    for skew in [-5 * HOURS, 0, 5 * HOURS] {
        let cluster = Cluster::new();
        let (mut gone, mut other) = (machine("a", skew), machine("b", 0));
        cluster.take(&mut gone, Duration::ZERO).unwrap();
        // Seen first after a while: counted from then on.
        let first = Duration::from_secs(1000);
        assert!(cluster.take(&mut other, first).is_err(), "skew {skew}");
        assert!(cluster.take(&mut other, first + INIT.duration - SECOND).is_err());
        assert!(
            cluster.take(&mut other, first + INIT.duration).is_ok(),
            "skew {skew}"
        );
        assert_eq!(cluster.lease()["spec"]["holderIdentity"], "b");
        assert_eq!(cluster.lease()["spec"]["leaseTransitions"], 2);
    }
}

#[test]
fn a_turn_that_was_given_back_is_free_at_once_and_ones_own_too() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (machine("a", 5 * HOURS), machine("b", 0));
    cluster
        .take(&mut a, Duration::ZERO)
        .unwrap()
        .give_back(&cluster.api);
    cluster.take(&mut b, SECOND).unwrap();
    let mut rebooted = machine("b", 0);
    assert!(cluster.take(&mut rebooted, 2 * SECOND).is_ok());
}

#[test]
fn of_two_that_take_a_free_turn_one_gets_it() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (machine("a", 0), machine("b", 0));
    let lease = cluster.take(&mut a, Duration::ZERO).unwrap();
    let read = cluster.lease();
    lease.give_back(&cluster.api);
    // `b` read what `a` held before; its write comes after another one.
    cluster.take(&mut a, SECOND).unwrap();
    let late = cluster.api.replace(&path(&INIT), &read).unwrap_err();
    assert_eq!(late.code(), Some(409));
    assert!(
        lost_or_failed(&INIT, late)
            .message()
            .contains("another control plane")
    );
    assert!(cluster.take(&mut b, SECOND).is_err());
}

#[test]
fn who_lost_a_turn_neither_renews_it_nor_gives_it_back() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (machine("a", 0), machine("b", 0));
    let mut lost = cluster.take(&mut a, Duration::ZERO).unwrap();
    assert!(lost.renew(&cluster.api).is_ok() && lost.is_held());
    assert!(cluster.take(&mut b, SECOND).is_err());
    cluster.take(&mut b, SECOND + INIT.duration).unwrap();
    assert!(lost.renew(&cluster.api).is_err());
    lost.give_back(&cluster.api);
    assert_eq!(cluster.lease()["spec"]["holderIdentity"], "b");
}

#[test]
fn a_lease_with_nonsense_in_it_holds_nobody_up_for_ever() {
    for nonsense in [json!(-1), json!("x"), json!(i64::MAX), json!(null)] {
        let cluster = Cluster::new();
        cluster.take(&mut machine("a", 0), Duration::ZERO).unwrap();
        cluster.lease.lock().unwrap().as_mut().unwrap()["spec"] = json!({
            "holderIdentity": "a\u{1b}[2J", "leaseDurationSeconds": nonsense, "renewTime": "9999-12-31T23:59:59Z",
        });
        let mut other = machine("b", 0);
        let refused = cluster.take(&mut other, Duration::ZERO).unwrap_err();
        assert!(!refused.contains('\u{1b}'), "{refused}");
        assert!(cluster.take(&mut other, LONGEST).is_ok(), "{nonsense}");
    }
}
