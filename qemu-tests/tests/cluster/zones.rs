//! The cluster's own pods are spread over zones. On bench A they don't run, but the scheduler decides where they would.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{Cluster, until};
use serde_json::{Value, json};

use super::{FORMATION, SOON};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/kube-system/deployments/coredns";
const PODS: &str = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns";
const ZONE: &str = "/metadata/labels/topology.kubernetes.io~1zone";
/// Set on the pods of the rollout that this claim is about.
const ROLLOUT: &str = "/metadata/annotations/kimage.dev~1rollout";

/// Rolls CoreDNS out anew, now that all Nodes are there, and checks that its replicas are in different zones. Those of
/// the formation went where the first Nodes were.
pub(crate) fn system_pods_are_spread_over_zones<M: Machine>(cluster: &Cluster<M>) -> Result<()> {
    let annotation = json!({"kimage.dev/rollout": "zones"});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
    let api = cluster.api()?;
    until(SOON, "roll CoreDNS out", || {
        cluster.network().within(|| Ok(api.merge(DEPLOYMENT, &patch)?))
    })?;
    // API servers may just be starting anew to follow etcd's members, and controllers with them.
    let places = until(FORMATION, "replicas of CoreDNS", || places(cluster))?;
    println!("CoreDNS is on {places:?}");
    let zones: BTreeSet<&String> = places.values().collect();
    ensure!(
        zones.len() == places.len(),
        "two replicas in one zone: {places:?}"
    );
    Ok(())
}

/// Node and zone of each replica, once both have one.
fn places<M: Machine>(cluster: &Cluster<M>) -> Result<BTreeMap<String, String>> {
    let nodes = cluster.items("/api/v1/nodes")?;
    let zone = |name: &str| -> Result<String> {
        let node = nodes.iter().find(|node| node["metadata"]["name"] == name);
        let zone = node.and_then(|node| node.pointer(ZONE)).and_then(Value::as_str);
        Ok(zone.with_context(|| format!("{name} has no zone"))?.to_owned())
    };
    let pods = cluster.items(PODS)?;
    let of_rollout = pods.iter().filter(|pod| pod.pointer(ROLLOUT).is_some());
    let living = of_rollout.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let hosts: Vec<&str> = living
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    ensure!(hosts.len() == 2, "replicas on {hosts:?}");
    hosts
        .iter()
        .map(|host| Ok(((*host).to_owned(), zone(host)?)))
        .collect()
}
