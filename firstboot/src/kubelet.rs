//! Files of the kubelet: its configuration (what the cluster says, then what is this machine's own), its arguments and
//! its kubeconfigs.

use anyhow::{Context, Result, bail, ensure};
use kimage_roles::node_config::{NodeConfig, NodeRole};
use serde_json::{Map, Value, json};

use crate::arguments::{Arguments, assignment};
use crate::layout;
use crate::machine::Machine;
use crate::rendered::RenderedFile;

pub(crate) mod certificate;
mod labels;

/// The taint of control planes, as kubeadm sets it.
pub const CONTROL_PLANE_TAINT: &str = "node-role.kubernetes.io/control-plane:NoSchedule";

/// Where kubeadm has static pods, too.
const STATIC_PODS: &str = "/etc/kubernetes/manifests";

/// What a cluster may not say: it would have the kubelet run pods that are in no cluster.
const LEFT_OUT: [&str; 2] = ["staticPodURL", "staticPodURLHeader"];

/// Longest kubelet configuration of a cluster that is read, in bytes: a ConfigMap can't be longer.
const MAX_CONFIGURATION: usize = 1 << 20;

/// What all kubelets of a cluster share: the content of the ConfigMap `kube-system/kubelet-config`. First kubeadm's
/// values (`cmd/kubeadm/app/componentconfigs/kubelet.go`), then those that CIS asks for.
pub fn cluster_configuration(config: &NodeConfig) -> Value {
    let cluster = &config.cluster;
    let dns: Vec<String> = cluster
        .service_subnet
        .nth(10)
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout::CA_CERTIFICATE},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "systemd",
        "clusterDNS": dns,
        "clusterDomain": cluster.dns_domain,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "rotateCertificates": true,
        "staticPodPath": STATIC_PODS,

        "eventRecordQPS": 50,
        "makeIPTablesUtilChains": true,
        "podPidsLimit": 4096,
        "readOnlyPort": 0,
        "seccompDefault": true,
        "serverTLSBootstrap": true,
        "shutdownGracePeriod": "30s",
        "shutdownGracePeriodCriticalPods": "10s",
        "streamingConnectionIdleTimeout": "5m0s",
        "tlsCipherSuites": crate::tls::CIPHER_SUITES,
        "tlsMinVersion": crate::tls::MIN_VERSION,
    })
}

/// Reads the key `kubelet` of a cluster's ConfigMap `kubelet-config`. Any kubeadm may have written it.
pub fn read_cluster_configuration(text: &str) -> Result<Value> {
    ensure!(
        text.len() <= MAX_CONFIGURATION,
        "the cluster's kubelet configuration has {} bytes, more than {MAX_CONFIGURATION}",
        text.len()
    );
    let value: Value =
        serde_saphyr::from_str(text).context("the cluster's kubelet configuration is not YAML")?;
    let says = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("nothing");
    if says("kind") != "KubeletConfiguration" || says("apiVersion") != "kubelet.config.k8s.io/v1beta1" {
        bail!(
            "the cluster's kubelet configuration is {} of {}, not KubeletConfiguration of kubelet.config.k8s.io/v1beta1",
            says("kind"),
            says("apiVersion")
        );
    }
    Ok(value)
}

/// The kubelet's configuration on this machine: `cluster` verbatim, what the image's layout dictates in place of it,
/// and good values where the cluster says nothing.
pub fn configuration(cluster: &Value, config: &NodeConfig, machine: &Machine) -> Result<Value> {
    let mut merged: Map<String, Value> = cluster
        .as_object()
        .context("a kubelet configuration that is no object")?
        .clone();
    for (key, value) in dictated(machine) {
        merged.insert(key, value);
    }
    for key in LEFT_OUT {
        merged.remove(key);
    }
    for (key, value) in wanting(config.role) {
        merged.entry(key).or_insert(value);
    }
    Ok(Value::Object(merged))
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// What only the image knows: its sockets, its resolver, and that /usr is read-only.
fn dictated(machine: &Machine) -> Map<String, Value> {
    let mut members = members(json!({
        "containerRuntimeEndpoint": layout::CONTAINERD,
        "resolvConf": "/run/systemd/resolve/resolv.conf",
        // The kubelet runs what lies there as root: under verity, where nobody can put anything.
        "volumePluginDir": "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
        // So are static pods. A worker keeps the cluster's word on /var; nothing that was left there may name another
        // folder or server: /etc is made anew at each boot.
        "staticPodPath": STATIC_PODS,
        // The image sets every sysctl that this makes the kubelet check.
        "protectKernelDefaults": true,
    }));
    if let Some(id) = &machine.provider_id {
        members.insert("providerID".into(), json!(id));
    }
    members
}

/// Room for what does not run in pods. On a control plane that is also etcd and the three services.
fn wanting(role: NodeRole) -> Map<String, Value> {
    let (cpu, memory) = match role {
        NodeRole::ControlPlane => ("300m", "1Gi"),
        NodeRole::Etcd | NodeRole::Worker => ("100m", "256Mi"),
    };
    members(json!({
        "kubeReserved": {"cpu": cpu, "memory": memory, "ephemeral-storage": "512Mi"},
        "systemReserved": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "512Mi"},
    }))
}

/// Everything that the kubelet reads, kubeconfigs aside. `cluster` is [`cluster_configuration`] on a control plane and
/// [`read_cluster_configuration`] on a worker.
pub fn files(config: &NodeConfig, machine: &Machine, cluster: &Value) -> Result<Vec<RenderedFile>> {
    // kubeadm writes this one for itself and later versions insist on it.
    let instance = json!({"containerRuntimeEndpoint": layout::CONTAINERD});
    let taints = taints(config).join(",");
    let flags = match taints.as_str() {
        "" => String::new(),
        taints => format!("--register-with-taints={taints}"),
    };
    Ok(vec![
        RenderedFile::json(
            layout::KUBELET_CONFIGURATION,
            &configuration(cluster, config, machine)?,
        ),
        RenderedFile::json(layout::KUBELET_INSTANCE, &instance),
        RenderedFile::private(layout::KUBELET_FLAGS, assignment("KUBELET_KUBEADM_ARGS", &flags)),
        RenderedFile::private(
            layout::environment("kubelet"),
            arguments(config, machine)?.environment_file(),
        ),
    ])
}

/// Taints that the Node registers with. A control plane has its taint from the first moment, so that no pod slips in
/// before it is marked.
fn taints(config: &NodeConfig) -> Vec<&str> {
    let own = (config.role == NodeRole::ControlPlane).then_some(CONTROL_PLANE_TAINT);
    let mut taints: Vec<&str> = own
        .into_iter()
        .chain(config.node.taints.iter().map(String::as_str))
        .collect();
    taints.dedup();
    taints
}

/// The Node as its kubelet would register it, but for what only the kubelet knows. One that is there before the kubelet
/// runs gets its pods' addresses meanwhile, and whoever waits for it (flannel, kube-proxy, the CSINode) need not.
pub fn node(config: &NodeConfig, machine: &Machine) -> Result<Value> {
    let taints: Vec<Value> = taints(config).into_iter().map(taint).collect();
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": machine.name, "labels": labels::of(config, machine)?},
        "spec": {"taints": taints},
        "status": {"addresses": [
            {"type": "InternalIP", "address": machine.address},
            {"type": "Hostname", "address": machine.name},
        ]},
    });
    // The kubelet gives it to a Node only when it makes it.
    if let Some(id) = &machine.provider_id {
        node["spec"]["providerID"] = json!(id);
    }
    Ok(node)
}

/// `key=value:effect` or `key:effect`, as the kubelet's `--register-with-taints` has them.
fn taint(text: &str) -> Value {
    let (rest, effect) = text.rsplit_once(':').unwrap_or((text, ""));
    match rest.split_once('=') {
        Some((key, value)) => json!({"key": key, "value": value, "effect": effect}),
        None => json!({"key": rest, "effect": effect}),
    }
}

/// Arguments: the three of kubeadm's unit, and what has no field in the configuration.
pub fn arguments(config: &NodeConfig, machine: &Machine) -> Result<Arguments> {
    let arguments = Arguments::new()
        .flag("bootstrap-kubeconfig", layout::BOOTSTRAP_KUBECONFIG)
        .flag("kubeconfig", layout::KUBELET_KUBECONFIG)
        .flag("config", layout::KUBELET_CONFIGURATION)
        .flag("node-ip", machine.address.to_string());
    let labels = labels::of(config, machine)?;
    if labels.is_empty() {
        return Ok(arguments);
    }
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    Ok(arguments.flag("node-labels", labels.join(",")))
}

/// kubeconfig of whoever acts as this machine: the kubelet once it has a certificate, and the services of the host.
/// The names are those that the kubelet itself writes. Server certificates are checked against the cluster's CA.
pub fn node_kubeconfig(path: &str, server: &str) -> RenderedFile {
    let (cluster, user, context) = ("default-cluster", "default-auth", "default-context");
    RenderedFile::json(
        path,
        &json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": cluster,
                "cluster": {"certificate-authority": layout::CA_CERTIFICATE, "server": server},
            }],
            "users": [{
                "name": user,
                "user": {"client-certificate": layout::KUBELET_CLIENT, "client-key": layout::KUBELET_CLIENT},
            }],
            "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
            "current-context": context,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{control_plane, machine};

    #[test]
    fn a_foreign_clusters_values_stay_and_the_images_layout_wins() {
        let foreign = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
            podPidsLimit: 17\nkubeReserved: {cpu: 1m}\nvolumePluginDir: /usr/libexec/x\nresolvConf: /x\n\
            staticPodPath: /var/lib/left\nstaticPodURL: http://left.example/pods\n";
        let cluster = read_cluster_configuration(foreign).unwrap();
        let mut config = control_plane();
        config.role = NodeRole::Worker;
        let merged = configuration(&cluster, &config, &machine()).unwrap();
        assert_eq!(merged["podPidsLimit"], 17);
        assert_eq!(merged["kubeReserved"], json!({"cpu": "1m"}));
        assert_eq!(
            merged["volumePluginDir"],
            "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
        );
        assert_eq!(merged["resolvConf"], "/run/systemd/resolve/resolv.conf");
        assert_eq!(merged["staticPodPath"], "/etc/kubernetes/manifests");
        assert_eq!(merged.get("staticPodURL"), None);
        assert_eq!(merged["providerID"], "aws:///eu-1a/i-0123");
        assert_eq!(merged["systemReserved"]["cpu"], "100m");
        assert_eq!(
            merged.get("serverTLSBootstrap"),
            None,
            "nobody there approves them"
        );
    }

    #[test]
    fn what_is_no_kubelet_configuration_is_refused() {
        for text in [
            "",
            "[]",
            "kind: Pod\napiVersion: v1",
            "{",
            &"a".repeat(MAX_CONFIGURATION + 1),
        ] {
            assert!(read_cluster_configuration(text).is_err());
        }
    }

    #[test]
    fn the_node_is_what_the_kubelet_would_make_of_the_same_config() {
        let mut config = control_plane();
        config.node.taints = vec!["gpu=yes:NoSchedule".into()];
        let node = node(&config, &machine()).unwrap();
        assert_eq!(
            node["spec"],
            json!({"providerID": "aws:///eu-1a/i-0123", "taints": [
                {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                {"key": "gpu", "value": "yes", "effect": "NoSchedule"}]})
        );
        let labels = &node["metadata"]["labels"];
        assert_eq!(labels["topology.kubernetes.io/zone"], "eu-1a");
        assert_eq!(node["status"]["addresses"][0]["address"], "10.0.0.5");
    }

    #[test]
    fn a_control_plane_registers_tainted_and_a_worker_as_told() {
        let mut config = control_plane();
        let flags = |config: &NodeConfig| {
            files(config, &machine(), &cluster_configuration(config))
                .unwrap()
                .swap_remove(2)
                .content
        };
        assert_eq!(
            flags(&config),
            "KUBELET_KUBEADM_ARGS=\"--register-with-taints=node-role.kubernetes.io/control-plane:NoSchedule\"\n"
        );
        config.role = NodeRole::Worker;
        assert_eq!(flags(&config), "KUBELET_KUBEADM_ARGS=\"\"\n");
        config.node.taints = vec!["gpu=yes:NoSchedule".into()];
        assert_eq!(
            flags(&config),
            "KUBELET_KUBEADM_ARGS=\"--register-with-taints=gpu=yes:NoSchedule\"\n"
        );
    }
}
