//! Kubernetes objects of a cluster, in the order in which they are applied: those that `kubeadm init` makes under the
//! same names, and what the services of kimage's hosts need.
//!
//! Every control plane computes the same objects from the same NodeConfig; whoever holds the lease applies them
//! ([`apply`]), once for each [`version`]. Whoever changes an object raises the version.

use std::time::SystemTime;

use anyhow::{Context, Result};
use kimage_roles::node_config::{NodeConfig, Secrets};
use serde_json::{Value, json};

pub mod apply;
mod bootstrap;
mod configuration;
mod dns;
pub mod made;
mod namespace;
mod network;
mod rbac;
pub mod retired;
pub mod version;

pub use bootstrap::cluster_info;
pub use dns::IMAGE as DNS_IMAGE;

/// Version of the Kubernetes that is in the images.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// What every token of `kubeadm token create` belongs to.
pub(crate) const NODE_TOKEN_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// All kubelets.
pub(crate) const NODES_GROUP: &str = "system:nodes";

/// All objects but bootstrap tokens. `etcd` are the client URLs of all members.
pub fn all(config: &NodeConfig, etcd: &[String]) -> Result<Vec<Value>> {
    let ca = secrets(config)?.ca.as_ref();
    let ca = ca.context("a control plane needs `secrets.ca` in its NodeConfig")?;
    let mut objects = vec![administrators(), namespace::kube_system()];
    objects.extend(configuration::objects(config, etcd));
    objects.extend(bootstrap::objects(config, &ca.certificate));
    objects.extend(dns::objects(config)?);
    objects.extend(network::objects(config));
    Ok(objects)
}

/// The bootstrap tokens that still serve at the moment `now`: id and Secret. They are secrets: never print them.
pub fn tokens(config: &NodeConfig, now: SystemTime) -> Result<Vec<(String, Value)>> {
    let mut tokens = Vec::new();
    for token in &secrets(config)?.bootstrap_tokens {
        // Kubernetes has deleted an expired one and would do so again.
        if !bootstrap::is_expired(token, now)? {
            tokens.push(bootstrap::token_secret(token)?);
        }
    }
    Ok(tokens)
}

fn secrets(config: &NodeConfig) -> Result<&Secrets> {
    let secrets = config.secrets.as_ref();
    secrets.context("a control plane needs `secrets` in its NodeConfig")
}

/// kubeadm's admin.conf is of a group that this binding makes administrators. `kubeadm init` applies it first, with
/// super-admin.conf.
pub fn administrators() -> Value {
    rbac::cluster_role_binding(
        "kubeadm:cluster-admins",
        "cluster-admin",
        &[rbac::group("kubeadm:cluster-admins")],
    )
}

/// Labels of a control plane's Node (kubeadm's phase mark-control-plane), which a kubelet may not give itself. The
/// taint comes with the registration ([`crate::kubelet::CONTROL_PLANE_TAINT`]).
pub fn control_plane_node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "node-role.kubernetes.io/control-plane": "",
            "node.kubernetes.io/exclude-from-external-load-balancers": "",
        }},
    })
}

fn config_map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    })
}

fn service_account(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": "kube-system"},
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::machine::tests::control_plane;

    fn objects() -> Vec<Value> {
        all(&control_plane(), &["https://10.0.0.5:2379".to_owned()]).unwrap()
    }

    /// Raise [`version::OWN`] with every change that makes this fail, then write down the digest that it says: otherwise
    /// no cluster that lives would see the change.
    #[test]
    fn objects_that_change_have_another_version() {
        let text: String = objects().iter().map(|object| format!("{object}\n")).collect();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let hex: String = digest.as_ref()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let known = ("v1.36.3-kimage.1", "d56fb12696aecdf6");
        assert_eq!((version::OWN.to_string().as_str(), hex.as_str()), known);
    }

    #[test]
    fn an_expired_token_is_not_put_back() {
        let tokens = |now: &str| {
            let now: jiff::Timestamp = now.parse().unwrap();
            tokens(&control_plane(), now.into()).unwrap()
        };
        let before = tokens("2029-12-31T23:59:59Z");
        assert_eq!(
            before.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
            ["abcdef"]
        );
        assert_eq!(before[0].1["type"], "bootstrap.kubernetes.io/token");
        assert_eq!(tokens("2030-01-01T00:00:00Z"), []);
    }

    #[test]
    fn no_object_is_secret_or_retired() {
        for object in objects() {
            assert_ne!(object["kind"], "Secret");
            let name = made::name(&object);
            assert!(
                retired::ALL.iter().all(|old| made::name(&old.object()) != name),
                "{name}"
            );
        }
    }

    #[test]
    fn every_object_is_named_once_and_has_no_field_of_the_server() {
        let objects = objects();
        let mut names = BTreeSet::new();
        for object in &objects {
            let metadata = &object["metadata"];
            let name = format!(
                "{} {}/{}",
                object["kind"], metadata["namespace"], metadata["name"]
            );
            assert!(
                object["apiVersion"].is_string() && metadata["name"].is_string(),
                "{name}"
            );
            assert!(names.insert(name.clone()), "{name} twice");
            for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields"] {
                assert_eq!(metadata.get(field), None, "{name}");
            }
            assert_eq!(object.get("status"), None, "{name}");
        }
        assert!(names.contains("\"ClusterRoleBinding\" null/\"kubeadm:apiserver-kubelet-client\""));
    }

    #[test]
    fn objects_are_the_same_on_every_control_plane() {
        let mut other = control_plane();
        other.node.name = Some("cp-2".into());
        let etcd = ["https://10.0.0.5:2379".to_owned()];
        let of = |config: &NodeConfig| all(config, &etcd).unwrap();
        assert_eq!(of(&control_plane()), of(&other));
    }

    #[test]
    fn versions_are_those_of_the_baked_components() {
        let component = |name: &str| {
            let path = format!(
                "{}/../images/components/{name}/component.toml",
                env!("CARGO_MANIFEST_DIR")
            );
            std::fs::read_to_string(path).unwrap()
        };
        let kubernetes = component("kubernetes-control-plane");
        assert!(kubernetes.contains(&format!("\nversion = \"{KUBERNETES_VERSION}\"\n")));
        let (name, tag) = DNS_IMAGE.rsplit_once(':').unwrap();
        let coredns = component("coredns");
        assert!(coredns.contains(&format!("\nversion = \"{tag}\"\n")));
        assert!(coredns.contains(&format!("reference = \"{name}:{{version}}\"")));
    }
}
