//! Every deliberate difference from kubeadm 1.36.3, with its reason. Any other fails a test, and so does an entry that
//! is none any more.

use super::difference::Deviation;

pub(crate) const API_SERVER: &[Deviation] = &[
    (
        "enable-admission-plugins",
        "CIS 1.2.9 EventRateLimit, CIS 1.2.3 DenyServiceExternalIPs",
    ),
    (
        "admission-control-config-file",
        "Pod Security baseline, event rates",
    ),
    ("audit-log-maxage", "CIS 1.2.17"),
    ("audit-log-maxbackup", "CIS 1.2.18"),
    ("audit-log-maxsize", "CIS 1.2.19"),
    ("audit-log-path", "CIS 1.2.16"),
    ("audit-policy-file", "CIS 3.2.1"),
    (
        "authentication-config",
        "CIS 1.2.1 as far as discovery and balancers allow",
    ),
    ("encryption-provider-config", "CIS 1.2.27 and 1.2.28"),
    ("goaway-chance", "connections move to a replaced server"),
    (
        "kubelet-certificate-authority",
        "CIS 1.2.5; our approver signs the serving certificates",
    ),
    ("profiling", "CIS 1.2.15"),
    ("service-account-extend-token-expiration", "CIS 1.2.30"),
    ("service-account-lookup", "CIS 1.2.22, explicit"),
    (
        "shutdown-delay-duration",
        "balancers see /readyz fail before connections do",
    ),
    (
        "shutdown-send-retry-after",
        "clients go to another server at once",
    ),
    ("tls-cipher-suites", "CIS 1.2.29"),
    ("tls-min-version", "TLS 1.2 and later, explicit"),
];

pub(crate) const CONTROLLER_MANAGER: &[Deviation] = &[
    ("leader-elect-lease-duration", "timing.leaderLeaseSeconds"),
    ("leader-elect-renew-deadline", "timing.leaderLeaseSeconds"),
    ("leader-elect-retry-period", "timing.leaderLeaseSeconds"),
    ("node-monitor-grace-period", "timing.nodeGraceSeconds"),
    ("profiling", "CIS 1.3.2"),
    ("terminated-pod-gc-threshold", "CIS 1.3.1"),
    ("tls-cipher-suites", "AEAD only"),
    ("tls-min-version", "TLS 1.2 and later, explicit"),
];

pub(crate) const SCHEDULER: &[Deviation] = &[
    ("leader-elect-lease-duration", "timing.leaderLeaseSeconds"),
    ("leader-elect-renew-deadline", "timing.leaderLeaseSeconds"),
    ("leader-elect-retry-period", "timing.leaderLeaseSeconds"),
    ("profiling", "CIS 1.4.1"),
    ("tls-cipher-suites", "AEAD only"),
    ("tls-min-version", "TLS 1.2 and later, explicit"),
];

pub(crate) const KUBELET_FLAGS: &[Deviation] = &[
    (
        "hostname-override",
        "the machine's host name is the Node's name (CIS 4.2.7)",
    ),
    (
        "register-with-taints",
        "no pod slips in before the Node is marked",
    ),
];

pub(crate) const KUBELET: &[Deviation] = &[
    ("eventRecordQPS", "CIS 4.2.8, explicit"),
    ("kubeReserved", "room for the control plane's services"),
    ("makeIPTablesUtilChains", "CIS 4.2.6, explicit"),
    ("podPidsLimit", "CIS 4.2.13"),
    ("protectKernelDefaults", "the image sets the sysctls"),
    ("providerID", "the platform's id of the machine"),
    ("readOnlyPort", "CIS 4.2.4, explicit"),
    (
        "resolvConf",
        "resolved runs on every machine; kubeadm looks whether it does here",
    ),
    ("seccompDefault", "CIS 4.2.14"),
    ("serverTLSBootstrap", "CIS 4.2.11; our approver signs them"),
    ("shutdownGracePeriod", "pods end before the machine does"),
    (
        "shutdownGracePeriodCriticalPods",
        "pods end before the machine does",
    ),
    ("streamingConnectionIdleTimeout", "CIS 4.2.5"),
    ("systemReserved", "room for the operating system"),
    ("tlsCipherSuites", "CIS 4.2.12"),
    ("tlsMinVersion", "TLS 1.2 and later, explicit"),
    ("volumePluginDir", "upstream's default, said: it is under verity"),
];

pub(crate) const CERTIFICATES: &[Deviation] = &[];

pub(crate) const KUBECONFIGS: &[Deviation] = &[
    (
        "admin_conf.clusters[0].cluster.server",
        "nothing on a control plane goes through the balancer",
    ),
    (
        "super-admin_conf",
        "a certificate past all authorization must not stay on a machine",
    ),
];

pub(crate) const OBJECTS: &[Deviation] = &[
    (
        "ClusterRole /kimage:flannel",
        "flannel is a service of the hosts and acts as the node",
    ),
    (
        "ClusterRoleBinding /kimage:flannel",
        "flannel is a service of the hosts and acts as the node",
    ),
    (
        "ClusterRole /kimage:kube-router",
        "kube-router is a service of the hosts and acts as the node",
    ),
    (
        "ClusterRoleBinding /kimage:kube-router",
        "kube-router is a service of the hosts and acts as the node",
    ),
    (
        "ClusterRoleBinding /kimage:node-proxier",
        "kube-proxy is a service of the hosts and acts as the node",
    ),
    (
        "DaemonSet kube-system/kube-proxy",
        "kube-proxy is a service of the hosts",
    ),
    (
        "ClusterRoleBinding /kubeadm:cluster-admins",
        "kubeadm makes it outside of the phases that run here",
    ),
    (
        "ClusterRoleBinding /kubeadm:node-autoapprove-bootstrap",
        "our approver gives a token no name of a node that lives",
    ),
    (
        "ClusterRoleBinding /kubeadm:node-autoapprove-certificate-rotation",
        "our approver renews nodes' certificates",
    ),
    (
        "ConfigMap kube-public/cluster-info.data.kubeconfig.clusters[0].cluster",
        "kubeadm copies how this test reaches the server",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.mode",
        "nftables",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.conntrack.maxPerCore",
        "the image's sysctls set the size of the table",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.conntrack.min",
        "the image's sysctls set the size of the table",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.bindAddressHardFail",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.conntrack.tcpBeLiberal",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.enableProfiling",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.iptables",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.ipvs",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.nftables",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.data.config.conf.winkernel",
        "the default, written out",
    ),
    (
        "ConfigMap kube-system/kube-proxy.metadata.annotations",
        "without the hash kubeadm takes the configuration as a person's and keeps it",
    ),
    (
        "ConfigMap kube-system/kubelet-config.metadata.annotations",
        "without the hash kubeadm takes the configuration as a person's and keeps it",
    ),
    (
        "ConfigMap kube-system/kubeadm-config.data.ClusterConfiguration.proxy",
        "kube-proxy is a service of the hosts",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.eventRecordQPS",
        "CIS 4.2.8, explicit",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.makeIPTablesUtilChains",
        "CIS 4.2.6, explicit",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.podPidsLimit",
        "CIS 4.2.13",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.readOnlyPort",
        "CIS 4.2.4, explicit",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.seccompDefault",
        "CIS 4.2.14",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.serverTLSBootstrap",
        "CIS 4.2.11",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.shutdownGracePeriod",
        "pods end before the machine",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.shutdownGracePeriodCriticalPods",
        "pods end before the machine",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.streamingConnectionIdleTimeout",
        "CIS 4.2.5",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.tlsCipherSuites",
        "CIS 4.2.12",
    ),
    (
        "ConfigMap kube-system/kubelet-config.data.kubelet.tlsMinVersion",
        "TLS 1.2 and later, explicit",
    ),
    (
        "Deployment kube-system/coredns.spec.template.spec.topologySpreadConstraints",
        "replicas on two hosts and over zones, also when the first node was alone",
    ),
];
