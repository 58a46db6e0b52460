//! How a worker finds and joins its cluster, the way `kubeadm join` does (cluster-info, token, pinned CA, TLS
//! bootstrap), so that it joins anybody's kubeadm cluster too.

use std::time::Duration;

use anyhow::anyhow;
use kimage_roles::cause::Cause;
use kimage_roles::node_config::{Endpoint, Join};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;
use crate::http::{Client, HttpError, Request, Settings, Trust};
use crate::kubernetes::{Api, ApiError, Caller, cause_of};

mod discovery;
mod token;

pub use discovery::Discovered;
pub use token::Token;

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const KUBELET_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";
const KUBEADM_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config";
/// By so much a clock may be off before we blame it: certificates are back-dated by as much.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// What a worker learns before it starts its kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Joined {
    /// Where the API is and who signs it, as the cluster itself says.
    pub cluster: Discovered,
    /// The cluster's KubeletConfiguration (YAML), verbatim.
    pub kubelet_config: String,
    /// The cluster runs kube-proxy in pods, as kubeadm's clusters do.
    pub has_kube_proxy: bool,
}

/// Whether the cluster runs kube-proxy in pods: unless its kubeadm configuration says that it doesn't. A joining node
/// may read that; the DaemonSet itself it may not.
fn has_kube_proxy(api: &Api) -> Result<bool, Failure> {
    let config = api
        .get(KUBEADM_CONFIG)
        .map_err(|error| with_token(error, "read kubeadm-config"))?;
    let text = config
        .as_ref()
        .and_then(|config| config.pointer("/data/ClusterConfiguration"));
    let Some(text) = text.and_then(Value::as_str) else {
        return Ok(true);
    };
    let config: Value = serde_saphyr::from_str(text)
        .map_err(|error| Failure::because(Cause::ApiServerNotReady, format!("kubeadm-config: {error}")))?;
    Ok(config.pointer("/proxy/disabled") != Some(&Value::Bool(true)))
}

/// Finds the cluster behind `endpoint`, proves that it is ours, and asks it for what a kubelet needs.
pub fn join(endpoint: &Endpoint, join: &Join, node: &str) -> Result<Joined, Failure> {
    let token = Token::parse(&join.token)?;
    let cluster = discover(endpoint, &token, &join.ca_cert_hashes)?;
    let trust = Trust::Pinned(cluster.ca_certificate.clone());
    let api = Api::new(&cluster.server, trust, Caller::Token(join.token.clone()))
        .map_err(|error| Failure::new(Cause::ForeignCluster, error))?;
    refuse_duplicate(&api, node)?;
    let config = api
        .get(KUBELET_CONFIG)
        .map_err(|error| with_token(error, "read kubelet-config"))?;
    let config = config
        .ok_or_else(|| Failure::because(Cause::ApiServerNotReady, "the cluster has no kubelet-config yet"))?;
    let text = config.pointer("/data/kubelet").and_then(Value::as_str);
    let text = text.ok_or_else(|| {
        Failure::because(
            Cause::ApiServerNotReady,
            "ConfigMap kube-system/kubelet-config has no key `kubelet`",
        )
    })?;
    Ok(Joined {
        has_kube_proxy: has_kube_proxy(&api)?,
        cluster,
        kubelet_config: text.to_owned(),
    })
}

/// Reads cluster-info without trusting anybody, believes it by the token's signature and the pinned hash, then reads
/// it again from the server that it names.
fn discover(endpoint: &Endpoint, token: &Token, hashes: &[String]) -> Result<Discovered, Failure> {
    let object = cluster_info(&endpoint.url(), Trust::Unverified)?;
    let found = discovery::check(&object, token, hashes)?;
    let again = cluster_info(&endpoint.url(), Trust::Pinned(found.ca_certificate.clone()))?;
    let again = discovery::check(&again, token, hashes)?;
    if again != found {
        return Err(Failure::because(
            Cause::ForeignCluster,
            format!("{endpoint} answers differently to a caller that checks its certificate"),
        ));
    }
    Ok(found)
}

fn cluster_info(server: &str, trust: Trust) -> Result<Value, Failure> {
    let failed = |error: HttpError| {
        let cause = cause_of(&error.fault, Cause::BalancerUnreachable);
        Failure::new(cause, error).context("discover the cluster")
    };
    let settings = Settings {
        trust,
        ..Settings::default()
    };
    let client = Client::new(&settings).map_err(failed)?;
    let answer = client
        .send(&Request::get(format!("{server}{CLUSTER_INFO}")))
        .map_err(failed)?;
    if let Some(date) = answer.header("date") {
        check_clock(date)?;
    }
    answer.success().and_then(|answer| answer.json()).map_err(failed)
}

/// Compares our clock with the server's `Date` (RFC 9110, 5.6.7).
fn check_clock(date: &str) -> Result<(), Failure> {
    let Ok(theirs) = jiff::fmt::rfc2822::parse(date) else {
        return Ok(());
    };
    let off = jiff::Timestamp::now().duration_since(theirs.timestamp());
    if off.unsigned_abs() <= CLOCK_TOLERANCE {
        return Ok(());
    }
    Err(Failure::because(
        Cause::ClockWrong,
        format!("this machine's clock is {} s off the API server's", off.as_secs()),
    ))
}

/// A living machine may have this name; a dead one's Node is taken over.
fn refuse_duplicate(api: &Api, node: &str) -> Result<(), Failure> {
    let found = api
        .get(&format!("/api/v1/nodes/{node}"))
        .map_err(|error| with_token(error, "ask for the Node"))?;
    let Some(found) = found else {
        return Ok(());
    };
    if !is_ready(&found) {
        return Ok(());
    }
    Err(Failure::new(
        Cause::DuplicateNodeName,
        anyhow!("a Node called {node} is there and Ready"),
    ))
}

/// Whether a Node's condition `Ready` is true.
pub fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

/// A refused token is no fault of the API server.
pub(crate) fn with_token(error: ApiError, doing: &str) -> Failure {
    let cause = match error.code() {
        Some(401) => Cause::TokenRejected,
        _ => error.cause(Cause::BalancerUnreachable),
    };
    Failure::new(cause, error).context(doing)
}
