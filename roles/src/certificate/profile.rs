//! What each leaf certificate says: kubeadm 1.36's `phases/certs/certlist.go` and `phases/kubeconfig`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::CertificateError;
use super::authority::serial;
use crate::node_config::Cluster;

/// What a leaf certificate says. Which authority signs it stands with each constructor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    common_name: String,
    organization: Option<String>,
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
    usages: Usages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usages {
    Server,
    Client,
    Both,
}

impl Profile {
    /// `apiserver`, signed by `ca`. `node` is the machine's name, `address` the one that it advertises.
    pub fn api_server(cluster: &Cluster, node: &str, address: IpAddr) -> Self {
        let mut names: BTreeSet<String> =
            [node, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
                .map(str::to_owned)
                .into();
        names.insert(format!("kubernetes.default.svc.{}", cluster.dns_domain));
        let mut addresses: BTreeSet<IpAddr> = cluster.service_subnet.nth(1).into_iter().collect();
        addresses.insert(address);
        let more = cluster.api_names.iter().map(String::as_str);
        for name in more.chain([cluster.endpoint.host()]) {
            match name.parse() {
                Ok(address) => addresses.insert(address),
                Err(_) => names.insert(name.to_owned()),
            };
        }
        Self {
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            names,
            addresses,
            usages: Usages::Server,
        }
    }

    /// A client that is `user` and, where given, in `group`. Signed by `ca`.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            names: BTreeSet::new(),
            addresses: BTreeSet::new(),
            usages: Usages::Client,
        }
    }

    /// `apiserver-kubelet-client`, signed by `ca`: no group, the binding `kubeadm:apiserver-kubelet-client` gives it its
    /// rights.
    pub fn api_server_kubelet_client() -> Self {
        Self::client("kube-apiserver-kubelet-client", None)
    }

    /// `front-proxy-client`, signed by `front-proxy-ca`.
    pub fn front_proxy_client() -> Self {
        Self::client("front-proxy-client", None)
    }

    /// `apiserver-etcd-client`, signed by `etcd-ca`.
    pub fn api_server_etcd_client() -> Self {
        Self::client("kube-apiserver-etcd-client", None)
    }

    /// `etcd/healthcheck-client`, signed by `etcd-ca`.
    pub fn etcd_healthcheck_client() -> Self {
        Self::client("kube-etcd-healthcheck-client", None)
    }

    /// `etcd/server`, signed by `etcd-ca`.
    pub fn etcd_server(node: &str, address: IpAddr) -> Self {
        Self {
            common_name: node.to_owned(),
            organization: None,
            names: [node, "localhost"].map(str::to_owned).into(),
            addresses: [address, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into(),
            usages: Usages::Both,
        }
    }

    /// `etcd/peer`, signed by `etcd-ca`: says the same as the server's.
    pub fn etcd_peer(node: &str, address: IpAddr) -> Self {
        Self::etcd_server(node, address)
    }

    /// Client of `admin.conf`, signed by `ca`.
    pub fn admin() -> Self {
        Self::client("kubernetes-admin", Some("kubeadm:cluster-admins"))
    }

    /// Client of `super-admin.conf`, signed by `ca`: may do everything before any RBAC object exists.
    pub fn super_admin() -> Self {
        Self::client("kubernetes-super-admin", Some("system:masters"))
    }

    /// Client of `controller-manager.conf`, signed by `ca`.
    pub fn controller_manager() -> Self {
        Self::client("system:kube-controller-manager", None)
    }

    /// Client of `scheduler.conf`, signed by `ca`.
    pub fn scheduler() -> Self {
        Self::client("system:kube-scheduler", None)
    }

    /// Client of a kubelet, signed by `ca`.
    pub fn kubelet_client(node: &str) -> Self {
        Self::client(&format!("system:node:{node}"), Some("system:nodes"))
    }

    /// The common name, which is the user's name for a client.
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// The organization, which is the user's group for a client.
    pub fn organization(&self) -> Option<&str> {
        self.organization.as_deref()
    }

    /// All that rcgen must know but the time.
    pub(super) fn parameters(&self) -> Result<CertificateParams, CertificateError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        if let Some(organization) = &self.organization {
            parameters
                .distinguished_name
                .push(DnType::OrganizationName, organization.as_str());
        }
        parameters
            .distinguished_name
            .push(DnType::CommonName, self.common_name.as_str());
        for name in &self.names {
            let name = name.as_str().try_into()?;
            parameters.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = self.addresses.iter().copied().map(SanType::IpAddress);
        parameters.subject_alt_names.extend(addresses);
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        parameters.extended_key_usages = match self.usages {
            Usages::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usages::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usages::Both => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        };
        parameters.use_authority_key_identifier_extension = true;
        parameters.serial_number = Some(serial()?);
        Ok(parameters)
    }

    /// Whether a certificate says the same.
    pub(super) fn matches(&self, certificate: &X509Certificate<'_>) -> bool {
        self.is_subject_of(certificate)
            && !certificate.is_ca()
            && self.has_usages(certificate)
            && self.has_names(certificate)
    }

    /// Whether a certificate is of the same user and group.
    pub(super) fn is_subject_of(&self, certificate: &X509Certificate<'_>) -> bool {
        let subject = certificate.subject();
        let common_names: Vec<_> = subject
            .iter_common_name()
            .map(|name| name.as_str().ok())
            .collect();
        let organizations: Vec<_> = subject
            .iter_organization()
            .map(|name| name.as_str().ok())
            .collect();
        let expected: Vec<_> = self.organization.iter().map(|name| Some(name.as_str())).collect();
        common_names == [Some(self.common_name.as_str())] && organizations == expected
    }

    fn has_usages(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(Some(usage)) = certificate.extended_key_usage() else {
            return false;
        };
        let expected = match self.usages {
            Usages::Server => (true, false),
            Usages::Client => (false, true),
            Usages::Both => (true, true),
        };
        (usage.value.server_auth, usage.value.client_auth) == expected
    }

    fn has_names(&self, certificate: &X509Certificate<'_>) -> bool {
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let Ok(extension) = certificate.subject_alternative_name() else {
            return false;
        };
        for name in extension
            .into_iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => {
                    names.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let Ok(address) = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)) else {
                        return false;
                    };
                    addresses.insert(address);
                }
                _ => return false,
            }
        }
        names == self.names && addresses == self.addresses
    }
}
