//! Arguments of kube-apiserver.

use kimage_roles::node_config::NodeConfig;

use super::{admission, audit, authentication, encryption, tls};
use crate::arguments::Arguments;
use crate::layout::CA_CERTIFICATE;
use crate::machine::{API_SERVER_PORT, Machine};

/// How long a stopping server still serves while `/readyz` fails, so that balancers look elsewhere first: three checks
/// of two seconds and some.
const SHUTDOWN_DELAY: &str = "10s";
/// CIS 1.2.17 to 1.2.19: days, files and megabytes of audit log that are kept.
const AUDIT_KEPT: [(&str, &str); 3] = [
    ("audit-log-maxage", "30"),
    ("audit-log-maxbackup", "10"),
    ("audit-log-maxsize", "100"),
];

/// All arguments; `etcd` are client URLs of members.
pub fn arguments(config: &NodeConfig, machine: &Machine, etcd: &[String]) -> Arguments {
    hardening(kubeadm(config, machine, etcd))
}

/// What kubeadm gives (`cmd/kubeadm/app/phases/controlplane/manifests.go`).
fn kubeadm(config: &NodeConfig, machine: &Machine, etcd: &[String]) -> Arguments {
    let cluster = &config.cluster;
    let issuer = format!("https://kubernetes.default.svc.{}", cluster.dns_domain);
    Arguments::new()
        .flag("advertise-address", machine.address.to_string())
        .flag("allow-privileged", "true")
        .flag("authorization-mode", "Node,RBAC")
        .flag("client-ca-file", CA_CERTIFICATE)
        .flag("enable-admission-plugins", admission::PLUGINS.join(","))
        .flag("enable-bootstrap-token-auth", "true")
        .flag("etcd-servers", etcd.join(","))
        .pki("etcd-cafile", "etcd/ca.crt")
        .pki("etcd-certfile", "apiserver-etcd-client.crt")
        .pki("etcd-keyfile", "apiserver-etcd-client.key")
        .pki("kubelet-client-certificate", "apiserver-kubelet-client.crt")
        .pki("kubelet-client-key", "apiserver-kubelet-client.key")
        .flag(
            "kubelet-preferred-address-types",
            "InternalIP,ExternalIP,Hostname",
        )
        .pki("proxy-client-cert-file", "front-proxy-client.crt")
        .pki("proxy-client-key-file", "front-proxy-client.key")
        .flag("requestheader-allowed-names", "front-proxy-client")
        .pki("requestheader-client-ca-file", "front-proxy-ca.crt")
        .flag("requestheader-extra-headers-prefix", "X-Remote-Extra-")
        .flag("requestheader-group-headers", "X-Remote-Group")
        .flag("requestheader-username-headers", "X-Remote-User")
        .flag("secure-port", API_SERVER_PORT.to_string())
        .flag("service-account-issuer", issuer)
        .pki("service-account-key-file", "sa.pub")
        .pki("service-account-signing-key-file", "sa.key")
        .flag("service-cluster-ip-range", cluster.service_subnet.to_string())
        .pki("tls-cert-file", "apiserver.crt")
        .pki("tls-private-key-file", "apiserver.key")
}

/// What CIS asks for besides, and what serves behind a balancer need.
fn hardening(arguments: Arguments) -> Arguments {
    let arguments = arguments
        .flag("admission-control-config-file", admission::PATH)
        .flag("audit-policy-file", audit::PATH)
        .flag("audit-log-path", audit::LOG);
    let arguments = AUDIT_KEPT
        .iter()
        .fold(arguments, |arguments, (name, value)| arguments.flag(name, *value));
    tls(arguments)
        .flag("authentication-config", authentication::PATH)
        .flag("encryption-provider-config", encryption::PATH)
        .flag("kubelet-certificate-authority", CA_CERTIFICATE)
        .flag("profiling", "false")
        .flag("service-account-extend-token-expiration", "false")
        .flag("service-account-lookup", "true")
        .flag("shutdown-delay-duration", SHUTDOWN_DELAY)
        .flag("shutdown-send-retry-after", "true")
        // Connections live for weeks and stay where they were made: without this a replaced server gets no load.
        .flag("goaway-chance", "0.001")
}
