//! etcd: being a member of it, or knowing where it is.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::node_config;

use super::Worker;
use crate::etcd::client::Gateway;
use crate::etcd::config::Settings;
use crate::etcd::formation::{Formation, Patience, Settled, Step};
use crate::etcd::leave::Departure;
use crate::etcd::site::{Site, Systemd};
use crate::etcd::{self, CLIENT_PORT, PEER_PORT};
use crate::failure::{Failure, OrFailure};
use crate::host::Host;
use crate::http::{self, Client, Trust};
use crate::inventory::SeenLists;
use crate::layout::{SEEN_LISTS, pki};
use crate::metadata::Machine;
use crate::{inventory, record};

const CONFIG: &str = "/etc/etcd/etcd.yaml";
const MARK: &str = "/var/lib/kimage/etcd.json";
const DATA: &str = "/var/lib/etcd";

/// This machine as a member, or on its way to be one.
pub struct Member {
    formation: Formation,
    site: Site,
}

impl Member {
    /// A member of the etcd that the NodeConfig describes.
    pub fn new(host: &Host, machine: &Machine) -> Result<Self, Failure> {
        let config = etcd_of(machine)?;
        let store = match &config.formation {
            node_config::Formation::Static(_) => None,
            node_config::Formation::Record(place) => Some(record::open(place)?),
        };
        let (identity, means) = etcd::identify(&config.formation, &machine.instance_id, machine.address)?;
        let settings = Settings {
            identity: identity.clone(),
            loopback_client_url: url(loopback(machine.address), CLIENT_PORT),
            loopback_peer_url: url(loopback(machine.address), PEER_PORT),
            metrics_url: "http://127.0.0.1:2381".to_owned(),
            data: host.path(DATA),
            certificates: host.path(pki("etcd")),
            cluster: machine.config.cluster.name.clone(),
            timing: machine.config.timing.clone(),
        };
        let site = Site {
            store,
            inventory: inventory::open(
                machine.config.inventory.as_ref(),
                &machine.config.cluster.name,
                &machine.instance_id,
                SeenLists::at(host.path(SEEN_LISTS)),
            )?,
            gateway: gateway(host)?,
            service: Box::new(Systemd),
            settings,
            config: host.path(CONFIG),
            mark: host.path(MARK),
            begin: Instant::now(),
        };
        Ok(Self {
            formation: Formation::new(identity, means, Patience::default()),
            site,
        })
    }

    /// Leaves, as far as that goes without waiting for others. Done when this machine has no member and no data of one.
    pub fn leave(&mut self) -> Result<(), Failure> {
        loop {
            match self.formation.leave(&mut self.site)? {
                Departure::Working => {}
                Departure::Waiting(failure) => return Err(failure),
                Departure::Gone => return Ok(()),
            }
        }
    }

    /// Goes as far as it can without waiting for others; the members' client URLs and remarks once it is settled.
    pub fn advance(&mut self) -> Result<Settled, Failure> {
        loop {
            match self.formation.step(&mut self.site)? {
                Step::Working => {}
                Step::Waiting(failure) => return Err(failure),
                Step::Settled(settled) => return Ok(settled),
            }
        }
    }
}

impl Worker<'_> {
    pub(super) fn form_etcd(&mut self) -> Result<(), Failure> {
        let member = match &mut self.formation {
            Some(member) => member,
            none => none.insert(Member::new(self.host, self.machine)?),
        };
        self.findings.etcd = member.advance()?.endpoints;
        Ok(())
    }

    pub(super) fn find_etcd(&mut self) -> Result<(), Failure> {
        let endpoints = match &etcd_of(self.machine)?.formation {
            node_config::Formation::Static(list) => list
                .iter()
                .map(|member| url(member.address, CLIENT_PORT))
                .collect(),
            node_config::Formation::Record(place) => {
                let found = record::open(place)?.get()?;
                let formed = found.filter(|(record, _)| record.phase == record::Phase::Formed);
                let (record, _) = formed.ok_or_else(|| {
                    Failure::because(
                        Cause::EtcdForming,
                        "the record doesn't say yet that etcd is formed",
                    )
                })?;
                record.endpoints
            }
        };
        self.findings.etcd = endpoints;
        Ok(())
    }
}

fn etcd_of(machine: &Machine) -> Result<&node_config::Etcd, Failure> {
    let etcd = machine.config.etcd.as_ref();
    etcd.ok_or_else(|| Failure::because(Cause::ConfigInvalid, "etcd: missing"))
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", SocketAddr::new(address, port))
}

fn gateway(host: &Host) -> Result<Gateway, Failure> {
    let read = |path: &str| {
        let bytes =
            crate::host::read_bounded(&host.path(Path::new(path)), 64 << 10).or_failure(Cause::Internal)?;
        String::from_utf8(bytes).or_failure(Cause::Internal)
    };
    let settings = http::Settings {
        connect: Duration::from_secs(3),
        total: Duration::from_secs(10),
        trust: Trust::Pinned(read(&pki("etcd/ca.crt"))?),
        identity: Some(http::Identity {
            certificate: read(&pki("etcd/healthcheck-client.crt"))?,
            key: kimage_roles::secret::Secret::new(read(&pki("etcd/healthcheck-client.key"))?),
        }),
        ..http::Settings::default()
    };
    Ok(Gateway::new(Client::new(&settings).or_failure(Cause::Internal)?))
}
