//! A worker image joins a cluster in which everything was made by the real kubeadm, and kimage nothing. Bench A: the
//! image's own root filesystem and systemd, in namespaces, through HAProxy.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::time::Duration;

use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase};
use serde_json::{Value, json};

use cluster::{Cluster, DNS_DOMAIN, DNS_SERVER, JoinCommand, POD_SUBNET};

#[path = "foreign/cluster.rs"]
mod cluster;

/// Generous: two cores may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(180);
const NAME: &str = "w1";

/// What an operator writes who has kubeadm's join command in hand, and a network add-on in the cluster.
fn node_config(join: &JoinCommand) -> String {
    let document = json!({
        "apiVersion": "kimage.dev/v1",
        "kind": "NodeConfig",
        "role": "worker",
        "cluster": {"name": "foreign", "endpoint": join.endpoint},
        "network": {"plugin": "none", "networkPolicy": "none"},
        "join": {"token": join.token, "caCertHashes": [join.ca_cert_hash]},
    });
    document.to_string()
}

/// What the DaemonSet of a network add-on does on a node: a plugin and its configuration, in the usual places.
fn install_network(machine: &Contained) {
    let configuration = json!({"cniVersion": "1.0.0", "name": "foreign", "plugins": [
        {"type": "foreign", "ipam": {"type": "host-local", "subnet": POD_SUBNET}}]});
    let script = "printf '#!/bin/sh\\n' > /opt/cni/bin/foreign && chmod 755 /opt/cni/bin/foreign && \
        printf %s \"$1\" > /etc/cni/net.d/10-foreign.conflist";
    machine
        .run(&["sh", "-euc", script, "sh", &configuration.to_string()])
        .unwrap();
}

fn state_of(machine: &Contained, unit: &str) -> String {
    let words = ["systemctl", "show", "--property=ActiveState", "--value", unit];
    machine.run(&words).unwrap().trim().to_owned()
}

/// The kubelet's certificate was asked for with kubeadm's token and signed by kubeadm's rules.
fn bootstrapped_with_token(cluster: &Cluster, machine: &Contained, join: &JoinCommand) {
    let (id, _) = join.token.split_once('.').unwrap();
    let requests = cluster.get("certificatesigningrequests").unwrap();
    let requests: Vec<&Value> = requests["items"].as_array().unwrap().iter().collect();
    let [request] = requests[..] else {
        panic!("{} requests for certificates", requests.len());
    };
    assert_eq!(
        request["spec"]["signerName"],
        "kubernetes.io/kube-apiserver-client-kubelet"
    );
    assert_eq!(request["spec"]["username"], format!("system:bootstrap:{id}"));
    assert!(request["status"]["certificate"].is_string());
    let left = "test ! -e /etc/kubernetes/bootstrap-kubelet.conf && grep -q 'PRIVATE KEY' \
        /var/lib/kubelet/pki/kubelet-client-current.pem";
    machine.run(&["sh", "-euc", left]).unwrap();
}

#[test]
fn a_worker_joins_a_cluster_that_kubeadm_made() {
    let cluster = Cluster::start().unwrap();
    let join = cluster.join_command().unwrap();
    let mut machine = cluster.worker(NAME, &node_config(&join)).unwrap();
    machine.start().unwrap();

    // All that is missing is what an add-on of the cluster's own brings, and the report says so.
    let waits = machine.wait_until(PATIENCE, "the machine waits for a network", |status| {
        let text = status.message.as_deref().unwrap_or_default();
        Ok(status.cause == Some(Cause::NodeNotReady) && text.contains("cni"))
    });
    let waits = waits.unwrap();
    assert_eq!((waits.phase, waits.outcome), (Phase::Node, Outcome::Retrying));
    install_network(&machine);
    machine.wait_for(Phase::InService, PATIENCE).unwrap();

    let node = cluster.get(&format!("node/{NAME}")).unwrap();
    assert!(kimage_firstboot::join::is_ready(&node));
    assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.36.3");
    assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "a");
    bootstrapped_with_token(&cluster, &machine, &join);

    // The kubelet does as that cluster says, and lets its API server in.
    let kubelet = cluster
        .raw(&format!("/api/v1/nodes/{NAME}/proxy/configz"))
        .unwrap();
    let kubelet = &kubelet["kubeletconfig"];
    assert_eq!(kubelet["clusterDomain"], DNS_DOMAIN);
    assert_eq!(kubelet["clusterDNS"], json!([DNS_SERVER]));
    assert_eq!(
        kubelet["volumePluginDir"],
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
    );

    // kubeadm's kube-proxy comes as a DaemonSet, which has this node; the image's own stays quiet, as do the others.
    let proxy = cluster.get("daemonset/kube-proxy").unwrap();
    assert_eq!(proxy["status"]["desiredNumberScheduled"], 1);
    for unit in ["kube-proxy.service", "flanneld.service", "kube-router.service"] {
        assert_eq!(state_of(&machine, unit), "inactive", "{unit}");
    }
}
