use kimage_roles::certificate::{Authority, new_key};
use kimage_roles::node_config::{EtcdLayout, NodeConfig, PodMetadata};
use serde_json::{Value, json};

use super::*;
use crate::platform::Platform;

fn pair(name: &str) -> Value {
    let pair = Authority::create(name, std::time::SystemTime::now()).unwrap();
    json!({"certificate": pair.certificate, "key": pair.key.reveal()})
}

/// A machine of this role, whose etcd has this layout.
pub(crate) fn machine(role: &str, etcd: &str) -> Machine {
    let mut document = json!({
        "apiVersion": "kimage.dev/v1", "kind": "NodeConfig", "role": role,
        "cluster": {"name": "demo", "endpoint": "lb.example.com:6443"},
    });
    if role == "worker" {
        let hash = format!("sha256:{}", "0".repeat(64));
        document["join"] = json!({"token": "abcdef.0123456789abcdef", "caCertHashes": [hash]});
    } else {
        let list = json!([{"name": "a", "address": "10.0.0.5"}]);
        document["etcd"] = json!({"layout": etcd, "formation": {"static": list}});
        document["secrets"] = json!({"etcdCa": pair("etcd-ca")});
    }
    if role == "control-plane" {
        let secrets = &mut document["secrets"];
        secrets["ca"] = pair("kubernetes");
        secrets["frontProxyCa"] = pair("front-proxy-ca");
        secrets["serviceAccountKey"] = json!(new_key().unwrap().reveal());
        secrets["encryptionKey"] = json!("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    }
    let config = NodeConfig::from_yaml(document.to_string().as_bytes()).unwrap();
    Machine {
        platform: Platform::Generic,
        config,
        name: "a".to_owned(),
        address: "10.0.0.5".parse().unwrap(),
        zone: None,
        region: None,
        instance_id: "i-1".to_owned(),
        provider_id: None,
    }
}

fn names(machine: &Machine) -> Vec<&'static str> {
    plan(machine)
        .unwrap()
        .steps
        .iter()
        .map(|step| step.name)
        .collect()
}

#[test]
fn a_stacked_control_plane_forms_etcd_and_one_with_an_external_etcd_finds_it() {
    let formed = |layout| {
        let plan = plan(&machine("control-plane", layout)).unwrap();
        let step = plan.steps.iter().find(|step| step.name == "etcd").unwrap();
        matches!(step.action, Action::FormEtcd)
    };
    assert!(formed("stacked"));
    assert!(!formed("external"));
}

#[test]
fn a_worker_joins_and_an_etcd_machine_runs_no_kubelet() {
    let worker = names(&machine("worker", ""));
    assert!(worker.contains(&"join") && !worker.contains(&"etcd"));
    let etcd = names(&machine("etcd", "external"));
    assert!(etcd.contains(&"etcd") && !etcd.contains(&"kubelet"));
}

#[test]
fn the_node_is_there_before_its_kubelet_and_after_what_it_takes_to_make_it() {
    for (role, layout, before) in [
        ("worker", "", "kubelet-certificate"),
        ("control-plane", "stacked", "objects"),
    ] {
        let names = names(&machine(role, layout));
        let place = |name: &str| names.iter().position(|known| *known == name).unwrap();
        assert!(
            place(before) < place("node") && place("node") < place("kubelet"),
            "{names:?}"
        );
    }
}

#[test]
fn pods_are_kept_from_metadata_before_a_kubelet_runs_and_an_open_wall_is_asked_for() {
    let decision = |machine: &Machine| {
        let steps = plan(machine).unwrap().steps;
        let place = |name: &str| steps.iter().position(|step| step.name == name).unwrap();
        let wall = place("metadata-wall");
        assert!(wall < place("kubelet"));
        match steps[wall].action {
            Action::GuardMetadata(pods) => pods,
            _ => panic!("another step has the name"),
        }
    };
    for (role, layout) in [
        ("control-plane", "stacked"),
        ("control-plane", "external"),
        ("worker", ""),
    ] {
        let mut machine = machine(role, layout);
        assert_eq!(decision(&machine), PodMetadata::Blocked, "{role}");
        machine.config.network.pod_metadata = PodMetadata::Allowed;
        assert_eq!(decision(&machine), PodMetadata::Allowed, "{role}");
    }
}

#[test]
fn phases_follow_each_other_and_steps_have_names_of_their_own() {
    for (role, layout) in [("control-plane", "stacked"), ("etcd", "external"), ("worker", "")] {
        let plan = plan(&machine(role, layout)).unwrap();
        assert!(plan.steps.is_sorted_by_key(|step| step.phase), "{plan}");
        let names: std::collections::BTreeSet<_> = plan.steps.iter().map(|step| step.name).collect();
        assert_eq!(names.len(), plan.steps.len(), "{plan}");
    }
}

#[test]
fn a_printed_plan_shows_no_secret() {
    let machine = machine("control-plane", "stacked");
    let plan = plan(&machine).unwrap();
    let secrets = machine.config.secrets.as_ref().unwrap();
    for text in [plan.to_string(), format!("{plan:?}")] {
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        assert!(!text.contains(secrets.encryption_key.as_ref().unwrap().reveal()));
    }
}

#[test]
fn the_identity_is_that_of_the_cluster_and_not_of_its_name() {
    let (one, other) = (
        machine("control-plane", "stacked"),
        machine("control-plane", "stacked"),
    );
    assert_ne!(identity(&one).unwrap().cluster, identity(&other).unwrap().cluster);
    let mut external = one.clone();
    external.config.etcd.as_mut().unwrap().layout = EtcdLayout::External;
    assert_ne!(identity(&one).unwrap().fixed, identity(&external).unwrap().fixed);
}
