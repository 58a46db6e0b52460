//! Names, addresses, labels and taints of a machine.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Checked, ensure};
use crate::node_config::Node;
use crate::node_config::network::is_dns_name;

/// Labels of Kubernetes' own names that a kubelet may set on its Node (`pkg/kubelet/apis/well_known_labels.go`).
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Namespaces of Kubernetes' own in which a kubelet may set any label.
const KUBELET_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn check(node: &Node) -> Checked {
    if let Some(name) = &node.name {
        check_name(name, "node.name")?;
    }
    if let Some(address) = node.address {
        check_address(address, "node.address")?;
    }
    let value = "must be a label's value: up to 63 letters, digits, and inner `-`, `_`, `.`";
    for (path, text) in [("node.zone", &node.zone), ("node.region", &node.region)] {
        let fits = text
            .as_ref()
            .is_none_or(|text| !text.is_empty() && is_label_value(text));
        ensure(fits, path, value)?;
    }
    for (key, text) in &node.labels {
        // A key that is no key must not make the path unreadable.
        ensure(
            is_qualified_name(key),
            "node.labels",
            "a key is not `name` or `dns.name/name`",
        )?;
        let path = format!("node.labels[\"{key}\"]");
        ensure(
            may_kubelet_set(key),
            path.as_str(),
            "a kubelet may not set this label on its Node (NodeRestriction): set it with kubectl",
        )?;
        ensure(is_label_value(text), path, value)?;
    }
    let mut seen = BTreeSet::new();
    for (index, taint) in node.taints.iter().enumerate() {
        let path = format!("node.taints[{index}]");
        let Some((key, effect)) = parse_taint(taint) else {
            return ensure(
                false,
                path,
                "must be `key=value:Effect` or `key:Effect`, Effect NoSchedule, PreferNoSchedule or NoExecute",
            );
        };
        ensure(
            seen.insert((key, effect)),
            path,
            "another taint has this key and effect",
        )?;
    }
    Ok(())
}

/// Names of machines are Node names and the value of a label at once.
pub(super) fn check_name(name: &str, path: &str) -> Checked {
    ensure(
        name.len() <= 63 && is_dns_name(name),
        path,
        "must be a DNS name in lower case of at most 63 characters",
    )
}

/// An address that other machines can reach.
pub(super) fn check_address(address: IpAddr, path: &str) -> Checked {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let reachable =
        !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !link_local;
    ensure(
        reachable,
        path,
        format!("{address} is not an address that other machines can reach"),
    )
}

/// `name` or `dns.name/name` (apimachinery's `IsQualifiedName`).
fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && !name.is_empty() && is_label_value(name),
        None => !key.is_empty() && is_label_value(key),
    }
}

/// Up to 63 letters, digits, and inner `-`, `_`, `.` (apimachinery's `IsValidLabelValue`).
fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63 && bytes.iter().copied().all(inner) && end(bytes.first()) && end(bytes.last())
}

fn may_kubelet_set(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else {
        return true;
    };
    let within = |root: &str| {
        namespace == root
            || namespace
                .strip_suffix(root)
                .is_some_and(|before| before.ends_with('.'))
    };
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    KUBELET_LABELS.contains(&key) || KUBELET_NAMESPACES.iter().any(|root| within(root))
}

/// Key and effect.
fn parse_taint(taint: &str) -> Option<(&str, &str)> {
    let (left, effect) = taint.rsplit_once(':')?;
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    (is_qualified_name(key) && is_label_value(value) && EFFECTS.contains(&effect)).then_some((key, effect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_kubernetes_are_the_api_servers() {
        for good in [
            "team",
            "example.com/disk",
            "node.kubernetes.io/pool",
            "topology.kubernetes.io/zone",
            "a.kubelet.kubernetes.io/x",
            "notkubernetes.io/x",
        ] {
            assert!(may_kubelet_set(good), "{good}");
        }
        for bad in [
            "node-role.kubernetes.io/worker",
            "node-restriction.kubernetes.io/x",
            "kubernetes.io/x",
            "x.k8s.io/y",
        ] {
            assert!(!may_kubelet_set(bad), "{bad}");
        }
    }

    #[test]
    fn taints_have_a_key_and_a_known_effect() {
        assert_eq!(parse_taint("a.b/c=d:NoExecute"), Some(("a.b/c", "NoExecute")));
        assert_eq!(parse_taint("c:NoSchedule"), Some(("c", "NoSchedule")));
        for bad in [
            "",
            "c",
            "c:",
            ":NoSchedule",
            "c=d",
            "c=d:noschedule",
            "c=d=e:NoSchedule",
            "-c:NoSchedule",
            "a/b/c:NoExecute",
        ] {
            assert_eq!(parse_taint(bad), None, "{bad}");
        }
    }
}
