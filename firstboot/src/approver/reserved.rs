//! Names and addresses that no node may have, whatever it says: they are the API's, the Services', the pods', or nobody's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kimage_roles::node_config::{Cidr, Formation, NodeConfig};

use super::node_name::NodeName;

/// What is known from the NodeConfig.
#[derive(Debug, Clone)]
pub(super) struct Reserved {
    names: BTreeSet<String>,
    /// Services are called so, at the end.
    domains: [String; 3],
    addresses: BTreeSet<IpAddr>,
    services: Cidr,
    pods: Cidr,
    /// Control planes that the NodeConfig names.
    control_planes: BTreeSet<String>,
}

impl Reserved {
    /// What the cluster of this NodeConfig reserves.
    pub(super) fn of(config: &NodeConfig) -> Self {
        let cluster = &config.cluster;
        let api = cluster.api_names.iter().map(String::as_str);
        let api = api.chain([cluster.endpoint.host(), "kubernetes", "kubernetes.default"]);
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for name in api {
            match name.parse::<IpAddr>() {
                Ok(address) => addresses.insert(address),
                Err(_) => names.insert(name.to_ascii_lowercase()),
            };
        }
        let mut control_planes = BTreeSet::new();
        if let Some(Formation::Static(members)) = config.etcd.as_ref().map(|etcd| &etcd.formation) {
            for member in members {
                addresses.insert(member.address);
                control_planes.insert(member.name.clone());
            }
        }
        Self {
            names,
            domains: [
                "svc".to_owned(),
                cluster.dns_domain.clone(),
                "localhost".to_owned(),
            ],
            addresses,
            services: cluster.service_subnet,
            pods: cluster.pod_subnet,
            control_planes,
        }
    }

    /// Refuses a name that the API server or a Service answers to: it would be in the node's certificate.
    pub(super) fn check_name(&self, node: &NodeName) -> Result<(), String> {
        let name = node.as_str();
        let is_service = |name: &str| {
            let within = |domain: &String| {
                let rest = name.strip_suffix(domain.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            self.domains.iter().any(within)
        };
        if self.names.contains(name) || is_service(name) {
            return Err(format!(
                "`{name}` is a name of the API or of a Service, which no node may have"
            ));
        }
        Ok(())
    }

    /// Whether a control plane has this name by the NodeConfig.
    pub(super) fn is_control_plane(&self, node: &NodeName) -> bool {
        self.control_planes.contains(node.as_str())
    }

    /// Refuses an address that is no machine's.
    pub(super) fn check_address(&self, address: IpAddr) -> Result<(), String> {
        let what = if is_nobodys(address) {
            "is not one that a machine is reached at"
        } else if self.services.contains(address) {
            "is in the range of Services"
        } else if self.pods.contains(address) {
            "is in the range of pods"
        } else {
            return Ok(());
        };
        Err(format!("address {address} {what}"))
    }

    /// Whether the endpoint, a control plane or another name of the API has this address, which may be a control
    /// plane's own.
    pub(super) fn is_the_apis(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// Whether no machine has this address as its own among others (RFC 6890).
fn is_nobodys(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    special
        || match address {
            IpAddr::V4(address) => {
                address.is_link_local()
                    || address.is_broadcast()
                    || address.octets()[0] == 0
                    || address.octets()[0] >= 240
            }
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::control_plane;

    #[test]
    fn what_the_api_and_services_answer_to_is_no_nodes() {
        let reserved = Reserved::of(&control_plane());
        let check = |name: &str| reserved.check_name(&NodeName::parse(name).unwrap());
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "lb.example.com",
            "api.example.com",
            "localhost",
            "a.localhost",
            "webhook.team.svc",
            "kube-dns.kube-system.svc.cluster.local",
            "cluster.local",
            "svc",
        ] {
            assert!(check(name).is_err(), "{name}");
        }
        for name in [
            "w1",
            "kubernetes-1",
            "ip-10-0-0-7.example.com",
            "mysvc",
            "xcluster.local",
        ] {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn addresses_that_are_no_machines_are_refused() {
        let mut config = control_plane();
        config.cluster.api_names.push("192.168.7.7".to_owned());
        let reserved = Reserved::of(&config);
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "10.96.0.1",
            "10.100.3.4",
            "10.244.1.2",
        ] {
            assert!(
                reserved.check_address(address.parse().unwrap()).is_err(),
                "{address}"
            );
        }
        for address in ["10.0.0.7", "192.168.7.8", "fd00::7", "2001:db8::1", "8.8.8.8"] {
            assert!(
                reserved.check_address(address.parse().unwrap()).is_ok(),
                "{address}"
            );
        }
        let apis = ["10.0.0.5", "192.168.7.7", "192.168.7.8"];
        assert_eq!(
            apis.map(|address| reserved.is_the_apis(address.parse().unwrap())),
            [true, true, false]
        );
        config.cluster.service_subnet = "fd00:1::/108".parse().unwrap();
        let reserved = Reserved::of(&config);
        assert!(reserved.check_address("fd00:1::9".parse().unwrap()).is_err());
    }
}
