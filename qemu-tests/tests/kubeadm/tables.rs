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
    ("volumePluginDir", "/usr is read-only"),
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

pub(crate) const OBJECTS: &[Deviation] = &[];
