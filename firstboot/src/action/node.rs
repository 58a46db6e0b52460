//! The kubelet of this machine, its pod network, and its Node.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::node_config::NetworkPlugin;
use serde_json::{Value, json};

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::http::{Client, Request, Settings};
use crate::join::is_ready;
use crate::kubernetes::{Api, ApiError};
use crate::layout::{CA_CERTIFICATE, KUBELET_KUBECONFIG};
use crate::rendered::RenderedFile;
use crate::{kubelet, layout, objects, pod_network};

/// How long a registration may take before its absence is a trouble to report; and between two looks.
const REGISTRATION: Duration = Duration::from_secs(3);
const REGISTRATION_PAUSE: Duration = Duration::from_millis(100);
/// How long a service of this machine may take to say how it is.
const HEALTH: Duration = Duration::from_secs(5);
const NETWORK_UNITS: [(&str, &str); 3] = [
    ("flanneld", "flanneld.service"),
    ("kube-proxy", "kube-proxy.service"),
    ("kube-router", "kube-router.service"),
];

impl Worker<'_> {
    /// Makes the Node, on a worker as the node itself: nothing passes that its kubelet could not do.
    pub(super) fn register_node(&self) -> Result<(), Failure> {
        let node = kubelet::node(&self.machine.config, &self.machine.node());
        let (api, unreachable) = self.cluster_api()?;
        match api.create("/api/v1/nodes", &node.or_failure(Cause::ConfigInvalid)?) {
            // An earlier boot has made it, or a machine that had this name: the kubelet takes it over.
            Err(error) if error.code() == Some(409) => Ok(()),
            other => other.map(drop).map_err(|error| error.failure(unreachable)),
        }
    }

    pub(super) fn configure_kubelet(&mut self) -> Result<(), Failure> {
        let (config, node) = (&self.machine.config, self.machine.node());
        let mut files = Vec::new();
        let shared = match &self.findings.joined {
            None => kubelet::cluster_configuration(config),
            Some(joined) => {
                let ca = joined.cluster.ca_certificate.clone();
                files.push(RenderedFile::public(CA_CERTIFICATE, ca));
                files.push(kubelet::node_kubeconfig(
                    KUBELET_KUBECONFIG,
                    &joined.cluster.server,
                ));
                kubelet::read_cluster_configuration(&joined.kubelet_config)
                    .or_failure(Cause::ApiServerNotReady)?
            }
        };
        files.extend(kubelet::files(config, &node, &shared).or_failure(Cause::ConfigInvalid)?);
        // A node without static pods still needs the folder that its kubelet watches.
        fs::create_dir_all(self.host.path("/etc/kubernetes/manifests")).map_err(Failure::internal)?;
        self.write(&files)
    }

    pub(super) fn configure_pod_network(&mut self) -> Result<(), Failure> {
        let (config, node) = (&self.machine.config, self.machine.node());
        let joined = self.findings.joined.as_ref();
        let server = joined.map_or_else(|| node.own_api_server(), |joined| joined.cluster.server.clone());
        let files = pod_network::files(config, &node, &server, self.cluster_facts());
        self.write(&files)?;
        let chosen = |name: &str| {
            let path = layout::environment(name);
            files.iter().any(|file| file.path == path)
        };
        let units = NETWORK_UNITS.iter().filter(|(name, _)| chosen(name));
        let units: Vec<&str> = units.map(|(_, unit)| *unit).collect();
        if units.is_empty() {
            return Ok(());
        }
        self.await_registration(config.network.plugin == NetworkPlugin::Flannel)?;
        self.start(&units)
    }

    fn cluster_facts(&self) -> pod_network::Cluster {
        let joined = self.findings.joined.as_ref();
        pod_network::Cluster {
            has_kube_proxy: joined.is_some_and(|joined| joined.has_kube_proxy),
        }
    }

    /// Waits a while until the Node is there, and has its part of the pods' addresses. What starts before it is pauses
    /// for seconds: flanneld three, kube-router until systemd starts it again.
    fn await_registration(&self, with_addresses: bool) -> Result<(), Failure> {
        let (api, unreachable) = self.cluster_api()?;
        let began = Instant::now();
        loop {
            let node = self.node(&api, unreachable)?;
            let has_addresses = |node: &Value| node["spec"]["podCIDR"].is_string();
            match &node {
                Some(node) if !with_addresses || has_addresses(node) => return Ok(()),
                _ if began.elapsed() < REGISTRATION => thread::sleep(REGISTRATION_PAUSE),
                Some(_) => {
                    let text = "the cluster has given the Node no addresses for pods yet (podCIDR)";
                    return Err(Failure::because(Cause::NodeNotReady, text));
                }
                None => return Err(self.not_registered()),
            }
        }
    }

    pub(super) fn mark_control_plane(&mut self) -> Result<(), Failure> {
        let name = &self.machine.name;
        let labels = objects::control_plane_node(name);
        let patch = json!({"metadata": {"labels": labels["metadata"]["labels"]}});
        match self.own_api()?.merge(&format!("/api/v1/nodes/{name}"), &patch) {
            Err(error) if error.code() == Some(404) => Err(self.not_registered()),
            other => other
                .map(drop)
                .map_err(|error| error.failure(Cause::ApiServerNotReady)),
        }
    }

    pub(super) fn await_node(&mut self) -> Result<(), Failure> {
        let (api, unreachable) = self.cluster_api()?;
        let found = self.node(&api, unreachable)?;
        let found = found.ok_or_else(|| self.not_registered())?;
        if !is_ready(&found) {
            return Err(Failure::because(Cause::NodeNotReady, why_not_ready(&found)));
        }
        if !was_heard_since(&found, super::units::boot_began()?) {
            let text = "the Node is Ready from before this boot; its kubelet has not spoken since";
            return Err(Failure::because(Cause::NodeNotReady, text));
        }
        self.check_kube_proxy()
    }

    /// A Node is Ready without Services, which make half of its pods useless. Where kube-proxy is baked in, it has to have
    /// written its rules once.
    fn check_kube_proxy(&self) -> Result<(), Failure> {
        if !pod_network::runs_kube_proxy(&self.machine.config, self.cluster_facts()) {
            return Ok(());
        }
        let settings = Settings {
            connect: HEALTH,
            total: HEALTH,
            ..Settings::default()
        };
        let url = pod_network::kube_proxy::health(self.machine.address);
        let answer = Client::new(&settings).and_then(|client| client.send(&Request::get(url))?.success());
        answer.map(drop).map_err(|error| {
            let last = super::units::last_line("kube-proxy.service").unwrap_or_default();
            Failure::because(
                Cause::UnitFailed,
                format!("kube-proxy.service does not serve ({error}); it last said: {last}"),
            )
        })
    }

    /// The cluster as this machine sees it, and the cause when nobody answers there.
    fn cluster_api(&self) -> Result<(Api, Cause), Failure> {
        match &self.findings.joined {
            Some(joined) => Ok((self.node_api(joined)?, Cause::BalancerUnreachable)),
            None => Ok((self.own_api()?, Cause::ApiServerNotReady)),
        }
    }

    /// The Node of this machine, if there is one.
    fn node(&self, api: &Api, unreachable: Cause) -> Result<Option<Value>, Failure> {
        let found = api.get(&format!("/api/v1/nodes/{}", self.machine.name));
        found.map_err(|error: ApiError| error.failure(unreachable))
    }

    fn not_registered(&self) -> Failure {
        if let Err(failure) = self.check_units(&["containerd.service", "kubelet.service"]) {
            return failure;
        }
        let last = super::units::last_line("kubelet.service").unwrap_or_default();
        Failure::because(
            Cause::NodeNotReady,
            format!("the kubelet has not registered yet: {last}"),
        )
    }
}

fn ready_condition(node: &Value) -> Option<&Value> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array)?;
    conditions.iter().find(|condition| condition["type"] == "Ready")
}

/// Whether the kubelet has reported since `moment`. Its clock is this machine's; it writes whole seconds.
fn was_heard_since(node: &Value, moment: jiff::Timestamp) -> bool {
    let heard = ready_condition(node).and_then(|ready| ready["lastHeartbeatTime"].as_str());
    let heard = heard.and_then(|heard| heard.parse::<jiff::Timestamp>().ok());
    heard.is_some_and(|heard| heard.as_second() >= moment.as_second())
}

/// What the condition `Ready` says.
fn why_not_ready(node: &Value) -> String {
    let message = ready_condition(node).and_then(|ready| ready["message"].as_str());
    message
        .unwrap_or("the Node has no condition Ready yet")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_ready_before_this_boot_is_not_heard_yet() {
        let node = json!({"status": {"conditions": [
            {"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:09Z"},
            {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:05Z", "message": "fine"}]}});
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        assert!(was_heard_since(&node, at("2026-01-01T00:00:05.9Z")));
        assert!(!was_heard_since(&node, at("2026-01-01T00:00:06Z")));
        assert!(!was_heard_since(&json!({}), at("2026-01-01T00:00:06Z")));
        assert_eq!(why_not_ready(&node), "fine");
    }
}
