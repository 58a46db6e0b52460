//! Labels that a kubelet gives its own Node.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use kimage_roles::node_config::NodeConfig;

use crate::machine::Machine;

/// Labels of Kubernetes' own that a kubelet may set (`k8s.io/kubelet/pkg/apis/well_known_labels.go`): it exits at any other.
const ALLOWED: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Where the platform says the machine is, then the NodeConfig's labels.
pub(super) fn of(config: &NodeConfig, machine: &Machine) -> Result<BTreeMap<String, String>> {
    let places = [
        ("topology.kubernetes.io/region", &machine.region),
        ("topology.kubernetes.io/zone", &machine.zone),
    ];
    let mut labels: BTreeMap<String, String> = places
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .collect();
    labels.extend(config.node.labels.clone());
    for (key, value) in &labels {
        ensure!(
            is_allowed(key),
            "node.labels: a kubelet may not set `{key}` on its own Node; an administrator must"
        );
        ensure!(
            is_value(value),
            "node.labels: `{value}` is no value of a label (`{key}`)"
        );
    }
    Ok(labels)
}

/// Whether the kubelet and NodeRestriction let a node label itself so.
fn is_allowed(key: &str) -> bool {
    let Some((domain, name)) = key.rsplit_once('/') else {
        return is_value(key) && !key.is_empty();
    };
    let within = |parent: &str| {
        domain == parent
            || domain
                .strip_suffix(parent)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let open = within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    is_domain(domain)
        && is_value(name)
        && !name.is_empty()
        && !within("node-restriction.kubernetes.io")
        && (!kubernetes || open || ALLOWED.contains(&key))
}

/// Whether this is a name of DNS in lower case.
fn is_domain(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether a label may have this value: up to 63 letters, digits, `-`, `_` and `.`, the ends letters or digits.
fn is_value(text: &str) -> bool {
    let end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && end(text.bytes().next())
        && end(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{control_plane, machine};

    #[test]
    fn the_zone_is_the_platforms_unless_the_config_says_another() {
        let mut config = control_plane();
        let labels = of(&config, &machine()).unwrap();
        assert_eq!(labels["topology.kubernetes.io/zone"], "eu-1a");
        config
            .node
            .labels
            .insert("topology.kubernetes.io/zone".into(), "rack-7".into());
        assert_eq!(
            of(&config, &machine()).unwrap()["topology.kubernetes.io/zone"],
            "rack-7"
        );
    }

    #[test]
    fn labels_at_which_the_kubelet_would_exit_are_refused() {
        for key in [
            "a",
            "example.com/a",
            "node.kubernetes.io/pool",
            "x.kubelet.kubernetes.io/a",
        ] {
            assert!(is_allowed(key), "{key}");
        }
        for key in [
            "node-role.kubernetes.io/worker",
            "kubernetes.io/x",
            "a.k8s.io/x",
            "node-restriction.kubernetes.io/x",
            "/x",
            "example.com/",
            "a b",
            "",
            "A_B/c",
        ] {
            assert!(!is_allowed(key), "{key}");
        }
        assert!(!is_value("a,b=c") && !is_value("-a") && is_value(""));
    }
}
