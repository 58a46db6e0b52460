//! The one list of everything on this machine that has an end: what it is, where it is, from when until when it holds,
//! and how it gets a successor. `/run/kimage/lifetimes.json` is this list for people and their monitoring.

use std::time::SystemTime;

use kimage_roles::certificate::{Validity, certificate_in, validity_of};
use kimage_roles::node_config::NodeRole;
use serde::Serialize;

use crate::control_plane::identity::{Client, Leaf, certificates, etcd_certificates, kubeconfigs};
use crate::host::{Host, read_bounded};
use crate::layout::{CA_CERTIFICATE, KUBELET_CLIENT, KUBELET_SERVER};
use crate::metadata::Machine;

/// The list, written by the agent.
pub const PATH: &str = "/run/kimage/lifetimes.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 256 << 10;

/// Services of a control plane that hold a certificate in memory for as long as they run: the API server that of its
/// connections to itself (`apiserver/pkg/server/options/serving_with_loopback.go`), the others those that they serve
/// health and metrics with (`apiserver/pkg/server/options/serving.go`) and those of their kubeconfigs.
pub const HOLDERS: [&str; 3] = [
    "kube-apiserver.service",
    "kube-controller-manager.service",
    "kube-scheduler.service",
];
/// How many days what each of them makes at its start holds: the API server's `maxAge` of Kubernetes 1.36, and what
/// `GenerateSelfSignedCertKey` (`client-go/util/cert`) gives, which begins an hour early.
const HELD: [i64; 3] = [3 * 365 + 1, 365, 365];
const HOUR: i64 = 3600;

/// Something that has an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mortal {
    /// Where it is.
    pub place: Place,
    /// How it gets a successor.
    pub successor: Successor,
}

/// Where something with an end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of PEM.
    File(String),
    /// A certificate inside a kubeconfig.
    Kubeconfig(String),
    /// The memory of a service.
    Memory(&'static str),
    /// The NodeConfig, under this key; what stands there is PEM, or a time.
    NodeConfig(&'static str, Given),
}

/// What a NodeConfig says about an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// PEM of a certificate.
    Certificate(String),
    /// RFC 3339.
    Expiry(String),
}

/// How something with an end gets a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Successor {
    /// The agent issues it at two thirds of its life; who uses it reads the file again at the next connection: the API
    /// server, etcd.
    Agent,
    /// The agent issues it, or finds it old, and starts the service anew, one control plane after the other.
    Restart,
    /// The kubelet asks for it; a lost one makes the machine join anew.
    Kubelet,
    /// A person. The agent says so when a third of its life is left.
    Person,
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// A path, a unit, or a key of the NodeConfig.
    what: String,
    successor: Successor,
    /// RFC 3339; absent where it is not there, or can't be read.
    from: Option<String>,
    /// RFC 3339.
    until: Option<String>,
}

/// Leaf certificates that this machine issues to itself.
pub fn leaves(machine: &Machine) -> Vec<Leaf> {
    match machine.config.role {
        NodeRole::ControlPlane => certificates(&machine.config, &machine.node()),
        NodeRole::Etcd => etcd_certificates(&machine.node()).into(),
        NodeRole::Worker => Vec::new(),
    }
}

/// kubeconfigs that this machine writes with certificates in them.
pub fn clients(machine: &Machine) -> Vec<Client> {
    match machine.config.role {
        NodeRole::ControlPlane => kubeconfigs(&machine.config, &machine.node()),
        NodeRole::Etcd | NodeRole::Worker => Vec::new(),
    }
}

/// The service that uses a kubeconfig and reads it at its start only.
pub fn holder(client: &Client) -> Option<&'static str> {
    use crate::layout::{CONTROLLER_MANAGER_KUBECONFIG, SCHEDULER_KUBECONFIG};

    match client.path {
        CONTROLLER_MANAGER_KUBECONFIG => Some(HOLDERS[1]),
        SCHEDULER_KUBECONFIG => Some(HOLDERS[2]),
        _ => None,
    }
}

/// Everything on this machine that has an end.
pub fn all(machine: &Machine) -> Vec<Mortal> {
    let config = &machine.config;
    let file = |path: String, successor| Mortal {
        place: Place::File(path),
        successor,
    };
    let mut all: Vec<Mortal> = leaves(machine)
        .into_iter()
        .map(|leaf| file(format!("{}.crt", leaf.path), Successor::Agent))
        .collect();
    all.extend(clients(machine).iter().map(|client| Mortal {
        place: Place::Kubeconfig(client.path.to_owned()),
        successor: holder(client).map_or(Successor::Agent, |_| Successor::Restart),
    }));
    if config.role == NodeRole::ControlPlane {
        all.extend(HOLDERS.map(|unit| Mortal {
            place: Place::Memory(unit),
            successor: Successor::Restart,
        }));
    }
    if config.role != NodeRole::Etcd {
        let kept = [KUBELET_CLIENT, KUBELET_SERVER];
        all.extend(kept.map(|path| file(path.to_owned(), Successor::Kubelet)));
    }
    if config.role == NodeRole::Worker {
        all.push(file(CA_CERTIFICATE.to_owned(), Successor::Person));
    }
    all.extend(given(machine));
    all
}

/// What has an end in the NodeConfig.
fn given(machine: &Machine) -> Vec<Mortal> {
    let Some(secrets) = &machine.config.secrets else {
        return Vec::new();
    };
    let authorities = [
        ("secrets.etcdCa", Some(&secrets.etcd_ca)),
        ("secrets.ca", secrets.ca.as_ref()),
        ("secrets.frontProxyCa", secrets.front_proxy_ca.as_ref()),
    ];
    let authorities = authorities.into_iter().filter_map(|(key, pair)| {
        let certificate = pair?.certificate.clone();
        Some((key, Given::Certificate(certificate)))
    });
    let tokens = secrets.bootstrap_tokens.iter().filter_map(|token| {
        let expires = token.expires.clone()?;
        Some(("secrets.bootstrapTokens", Given::Expiry(expires)))
    });
    let mortal = |(key, given)| Mortal {
        place: Place::NodeConfig(key, given),
        successor: Successor::Person,
    };
    authorities.chain(tokens).map(mortal).collect()
}

impl Mortal {
    /// Its name in the list.
    pub fn name(&self) -> &str {
        match &self.place {
            Place::File(path) | Place::Kubeconfig(path) => path,
            Place::Memory(unit) => unit,
            Place::NodeConfig(key, _) => key,
        }
    }

    /// The time for which it holds; `None` where it is not there, or can't be read. `started` knows since when a service
    /// runs.
    pub fn validity(&self, host: &Host, started: &dyn Fn(&str) -> Option<SystemTime>) -> Option<Validity> {
        let text = |path: &str| String::from_utf8(read_bounded(&host.path(path), MAX_FILE).ok()?).ok();
        match &self.place {
            Place::File(path) => validity_of(&text(path)?).ok(),
            Place::Kubeconfig(path) => validity_of(&certificate_in(&text(path)?)?.certificate).ok(),
            Place::Memory(unit) => held_since(unit, started(unit)?),
            Place::NodeConfig(_, Given::Certificate(pem)) => validity_of(pem).ok(),
            Place::NodeConfig(_, Given::Expiry(text)) => {
                let until: jiff::Timestamp = text.parse().ok()?;
                Some(Validity {
                    // A token holds from its making on, and nobody wrote down when that was.
                    from: 0,
                    until: until.as_second(),
                })
            }
        }
    }

    /// Its line in the list.
    pub fn line(&self, validity: Option<Validity>) -> Line {
        let time = |seconds: i64| Some(jiff::Timestamp::from_second(seconds).ok()?.to_string());
        Line {
            what: self.name().to_owned(),
            successor: self.successor,
            from: validity.and_then(|validity| time(validity.from)),
            until: validity.and_then(|validity| time(validity.until)),
        }
    }
}

/// What a service that was started then holds in memory.
fn held_since(unit: &str, start: SystemTime) -> Option<Validity> {
    let (_, days) = HOLDERS.iter().zip(HELD).find(|(known, _)| **known == unit)?;
    let from = jiff::Timestamp::try_from(start)
        .ok()?
        .as_second()
        .saturating_sub(HOUR);
    Some(Validity {
        from,
        until: from.saturating_add(days * 24 * HOUR),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::tests::machine;

    fn names(machine: &Machine, successor: Successor) -> Vec<String> {
        let all = all(machine);
        let chosen = all.iter().filter(|mortal| mortal.successor == successor);
        chosen.map(|mortal| mortal.name().to_owned()).collect()
    }

    #[test]
    fn the_list_of_a_control_plane_has_every_certificate_kubeconfig_and_token() {
        let mut machine = machine("control-plane", "stacked");
        let secrets = machine.config.secrets.as_mut().unwrap();
        secrets.bootstrap_tokens = vec![kimage_roles::node_config::BootstrapToken {
            token: kimage_roles::secret::Secret::new("abcdef.0123456789abcdef"),
            expires: Some("2030-01-01T00:00:00Z".to_owned()),
        }];
        let pki = |name: &str| format!("/etc/kubernetes/pki/{name}.crt");
        let mut issued = [
            "apiserver",
            "apiserver-kubelet-client",
            "front-proxy-client",
            "apiserver-etcd-client",
            "etcd/server",
            "etcd/peer",
            "etcd/healthcheck-client",
        ]
        .map(pki)
        .to_vec();
        issued.extend(["admin", "kubelet"].map(|name| format!("/etc/kubernetes/{name}.conf")));
        assert_eq!(names(&machine, Successor::Agent), issued);
        assert_eq!(
            names(&machine, Successor::Restart),
            [
                "/etc/kubernetes/controller-manager.conf",
                "/etc/kubernetes/scheduler.conf",
                HOLDERS[0],
                HOLDERS[1],
                HOLDERS[2],
            ]
        );
        assert_eq!(
            names(&machine, Successor::Person),
            [
                "secrets.etcdCa",
                "secrets.ca",
                "secrets.frontProxyCa",
                "secrets.bootstrapTokens"
            ]
        );
    }

    #[test]
    fn a_worker_watches_its_kubelets_certificates_and_its_authority() {
        let worker = machine("worker", "");
        assert_eq!(
            names(&worker, Successor::Kubelet),
            [KUBELET_CLIENT, KUBELET_SERVER]
        );
        assert_eq!(names(&worker, Successor::Person), [CA_CERTIFICATE]);
        assert!(names(&worker, Successor::Agent).is_empty());
    }

    #[test]
    fn what_a_service_holds_in_memory_is_old_two_thirds_of_its_life_after_its_start() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let day = Duration::from_secs(86_400);
        for (unit, days) in HOLDERS.iter().zip([730, 243, 243]) {
            let held = held_since(unit, start).unwrap();
            assert!(
                held.is_young(start) && held.is_young(start + days * day),
                "{unit}"
            );
            assert!(!held.is_young(start + (days + 1) * day), "{unit}");
            // The clock was wrong when it started, and was set back: nobody believes what it serves.
            assert!(!held.is_young(start - day));
        }
        assert_eq!(held_since("other.service", start), None);
    }

    #[test]
    fn the_list_shows_no_secret() {
        let machine = machine("control-plane", "stacked");
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let lines: Vec<Line> = all(&machine)
            .iter()
            .map(|mortal| mortal.line(mortal.validity(&host, &|_| None)))
            .collect();
        let text = serde_json::to_string(&lines).unwrap();
        assert!(!text.contains("PRIVATE") && !text.contains("BEGIN"), "{text}");
        assert!(
            text.contains(r#"{"what":"secrets.ca","successor":"person","from":"2"#),
            "{text}"
        );
    }
}
