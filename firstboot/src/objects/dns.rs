//! CoreDNS, as kubeadm installs it (`cmd/kubeadm/app/phases/addons/dns/manifests.go`), from the baked image.

use anyhow::{Context, Result};
use kimage_roles::node_config::NodeConfig;
use serde_json::{Value, json};

use super::{config_map, rbac, service_account};

/// The image that every role carries in its container store (images/components/coredns).
pub const IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.14.7";

/// The tag of [`IMAGE`].
pub(super) fn tag() -> &'static str {
    IMAGE.rsplit_once(':').map_or("", |(_, tag)| tag)
}

pub(super) fn objects(config: &NodeConfig) -> Result<Vec<Value>> {
    let cluster = &config.cluster;
    let address = cluster.service_subnet.nth(10).with_context(|| {
        format!(
            "cluster.serviceSubnet {} has no tenth address",
            cluster.service_subnet
        )
    })?;
    let watch = ["list", "watch"];
    Ok(vec![
        service_account("coredns"),
        rbac::cluster_role(
            "system:coredns",
            &[
                rbac::rule("", &["endpoints", "services", "pods", "namespaces"], &watch),
                rbac::rule("discovery.k8s.io", &["endpointslices"], &watch),
            ],
        ),
        rbac::cluster_role_binding(
            "system:coredns",
            "system:coredns",
            &[rbac::service_account("coredns")],
        ),
        config_map(
            "kube-system",
            "coredns",
            &json!({"Corefile": corefile(&cluster.dns_domain)}),
        ),
        deployment(),
        service(&address.to_string()),
    ])
}

fn corefile(domain: &str) -> String {
    format!(
        "\
.:53 {{
    errors
    health {{
       lameduck 5s
    }}
    ready
    kubernetes {domain} in-addr.arpa ip6.arpa {{
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }}
    prometheus :9153
    forward . /etc/resolv.conf {{
       max_concurrent 1000
    }}
    cache 30 {{
       disable success {domain}
       disable denial {domain}
    }}
    loop
    reload
    loadbalance
}}
"
    )
}

fn service(address: &str) -> Value {
    let port = |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": protocol, "targetPort": port});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
        },
        "spec": {
            "clusterIP": address,
            "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", 9153, "TCP")],
            "selector": {"k8s-app": "kube-dns"},
        },
    })
}

fn deployment() -> Value {
    let labels = json!({"k8s-app": "kube-dns"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "system-cluster-critical",
                    "serviceAccountName": "coredns",
                    "affinity": {"podAntiAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [{
                            "weight": 100,
                            "podAffinityTerm": {
                                "labelSelector": {"matchExpressions": [
                                    {"key": "k8s-app", "operator": "In", "values": ["kube-dns"]},
                                ]},
                                "topologyKey": "kubernetes.io/hostname",
                            },
                        }],
                    }},
                    "topologySpreadConstraints": spread(),
                    "tolerations": [
                        {"key": "CriticalAddonsOnly", "operator": "Exists"},
                        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                    ],
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "containers": [container()],
                    "dnsPolicy": "Default",
                    "volumes": [{"name": "config-volume", "configMap": {
                        "name": "coredns",
                        "items": [{"key": "Corefile", "path": "Corefile"}],
                    }}],
                },
            },
        },
    })
}

/// One replica a host, over zones where there are some. The first node of a cluster is alone for a while: a mere
/// preference would put both replicas there for good, so the second one waits for a second host.
fn spread() -> Value {
    let selector = json!({"matchLabels": {"k8s-app": "kube-dns"}});
    json!([
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 1,
            "minDomains": 2,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector,
            "matchLabelKeys": ["pod-template-hash"],
        },
        {
            "topologyKey": "topology.kubernetes.io/zone",
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
            "matchLabelKeys": ["pod-template-hash"],
        },
    ])
}

fn container() -> Value {
    let port = |name: &str, number: u16, protocol: &str| json!({"containerPort": number, "name": name, "protocol": protocol});
    json!({
        "name": "coredns",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true}],
        "ports": [
            port("dns", 53, "UDP"),
            port("dns-tcp", 53, "TCP"),
            port("metrics", 9153, "TCP"),
            port("liveness-probe", 8080, "TCP"),
            port("readiness-probe", 8181, "TCP"),
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "liveness-probe", "scheme": "HTTP"},
            "initialDelaySeconds": 60,
            "timeoutSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": 5,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "readiness-probe", "scheme": "HTTP"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_spread_over_hosts_always_and_over_zones_where_there_are_some() {
        let deployment = deployment();
        let replicas = &deployment["spec"]["replicas"];
        let constraints = deployment.pointer("/spec/template/spec/topologySpreadConstraints");
        let constraints = constraints.and_then(Value::as_array).unwrap();
        let over = |topology: &str| {
            let found = constraints.iter().filter(|one| one["topologyKey"] == topology);
            let found: Vec<_> = found.collect();
            assert_eq!(found.len(), 1, "{topology}");
            assert_eq!(found[0]["maxSkew"], 1);
            // A constraint that counts other pods spreads nothing.
            assert_eq!(
                found[0]["labelSelector"]["matchLabels"],
                deployment["spec"]["template"]["metadata"]["labels"]
            );
            found[0]
        };
        let hosts = over("kubernetes.io/hostname");
        assert_eq!(hosts["whenUnsatisfiable"], "DoNotSchedule");
        assert_eq!(&hosts["minDomains"], replicas);
        // Nodes without a zone must get pods too, and a cluster in one zone both replicas.
        let zones = over("topology.kubernetes.io/zone");
        assert_eq!(zones["whenUnsatisfiable"], "ScheduleAnyway");
    }
}
