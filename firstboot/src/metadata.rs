//! From what the platform says to what this machine is: a checked NodeConfig, a name, an address, a place.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use flate2::read::MultiGzDecoder;
use kimage_roles::cause::Cause;
use kimage_roles::node_config::{Endpoint, MAX_NODE_CONFIG, NodeConfig, is_dns_name};

use crate::failure::Failure;
use crate::machine;
use crate::platform::{Platform, Raw};

pub(crate) mod remembered;
#[cfg(test)]
mod tests;

/// Longest name of a Node: it becomes a label's value.
const MAX_NAME: usize = 63;
/// How gzip begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How user-data for somebody else begins, and what it is.
const FOREIGN: [(&str, &str); 5] = [
    ("#cloud-config", "a #cloud-config document of cloud-init"),
    ("#!", "a script"),
    ("#include", "a list of includes of cloud-init"),
    ("## template:", "a template of cloud-init"),
    ("Content-Type:", "a MIME message of cloud-init"),
];

/// Who this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Where it runs.
    pub platform: Platform,
    /// What it is told to be.
    pub config: NodeConfig,
    /// Name of the Node and of the etcd member: a DNS name of at most 63 characters.
    pub name: String,
    /// Address that others reach it at.
    pub address: IpAddr,
    /// Failure domain.
    pub zone: Option<String>,
    /// Group of failure domains.
    pub region: Option<String>,
    /// The platform's name for this very machine.
    pub instance_id: String,
    /// `spec.providerID` of the Node.
    pub provider_id: Option<String>,
}

impl Machine {
    /// What it is to its cluster.
    pub fn node(&self) -> machine::Machine {
        machine::Machine {
            name: self.name.clone(),
            address: self.address,
            zone: self.zone.clone(),
            region: self.region.clone(),
            provider_id: self.provider_id.clone(),
        }
    }
}

/// Judges what the platform says. `role` is the image's; `own_address` gives the address towards the endpoint where
/// nobody names one.
///
/// # Errors
///
/// Causes `no-metadata`, `metadata-too-large`, `config-invalid`, `wrong-role`; `metadata-unreachable` when the machine
/// has no address yet.
pub fn judge(
    raw: Raw,
    role: &str,
    own_address: &dyn Fn(&Endpoint) -> Option<IpAddr>,
) -> Result<Machine, Failure> {
    let context = format!("user-data of platform {} ({})", raw.platform, raw.source);
    let config = read(&raw.user_data).map_err(|failure| failure.context(context))?;
    if config.role.as_str() != role {
        let message = format!(
            "role: the NodeConfig is for `{}`, this image is a `{role}`",
            config.role.as_str()
        );
        return Err(Failure::because(Cause::WrongRole, message));
    }
    let name = name(&config, raw.host_name.as_deref(), &raw.instance_id)?;
    let known = config.node.address.or(raw.address);
    let address = known.or_else(|| own_address(&config.cluster.endpoint));
    let address = address.ok_or_else(|| {
        let message =
            "this machine has no address yet: neither a route to cluster.endpoint nor a default route";
        Failure::because(Cause::MetadataUnreachable, message)
    })?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        let message = format!("node.address: nobody else reaches this machine at {address}");
        return Err(Failure::because(Cause::ConfigInvalid, message));
    }
    Ok(Machine {
        platform: raw.platform,
        name,
        address,
        zone: config.node.zone.clone().or(raw.zone),
        region: config.node.region.clone().or(raw.region),
        instance_id: raw.instance_id,
        provider_id: raw.provider_id,
        config,
    })
}

/// From user-data, plain or compressed, to a checked NodeConfig.
fn read(user_data: &[u8]) -> Result<NodeConfig, Failure> {
    let mut plain = Vec::new();
    let document = if user_data.starts_with(&GZIP) {
        let unpacked = MultiGzDecoder::new(user_data)
            .take(MAX_NODE_CONFIG as u64 + 1)
            .read_to_end(&mut plain);
        let message = |error| format!("begins like gzip but is none: {error}");
        unpacked.map_err(|error| Failure::because(Cause::ConfigInvalid, message(error)))?;
        &plain[..]
    } else {
        user_data
    };
    if document.len() > MAX_NODE_CONFIG {
        let message = format!("more than {MAX_NODE_CONFIG} bytes");
        return Err(Failure::because(Cause::MetadataTooLarge, message));
    }
    let document = document.trim_ascii();
    if document.is_empty() {
        return Err(Failure::because(Cause::NoMetadata, "it is empty"));
    }
    let foreign = FOREIGN
        .iter()
        .find(|(start, _)| document.starts_with(start.as_bytes()));
    if let Some((_, what)) = foreign {
        let message =
            format!("it is {what}; this image has no cloud-init and needs a kimage.dev/v1 NodeConfig");
        return Err(Failure::because(Cause::ConfigInvalid, message));
    }
    NodeConfig::from_yaml(document).map_err(|error| Failure::new(Cause::ConfigInvalid, error))
}

/// The NodeConfig's name, else the platform's in lower case, else one made of the instance's id.
fn name(config: &NodeConfig, host_name: Option<&str>, instance_id: &str) -> Result<String, Failure> {
    let (name, origin) = match (&config.node.name, host_name) {
        (Some(name), _) => (name.clone(), "node.name"),
        (None, Some(name)) => (
            name.trim_end_matches('.').to_ascii_lowercase(),
            "the platform's host name",
        ),
        (None, None) => (made_name(instance_id), "the name made of the instance's id"),
    };
    let shortened = match name.split_once('.') {
        // Clouds build host names of long domains; the first label alone is as unique within one.
        Some((first, _)) if config.node.name.is_none() && name.len() > MAX_NAME => first.to_owned(),
        _ => name,
    };
    if shortened.len() > MAX_NAME || !is_dns_name(&shortened) || shortened == "localhost" {
        let message =
            format!("{origin} `{shortened}` can't name a Node: at most {MAX_NAME} of a-z, 0-9, `-` and `.`");
        return Err(Failure::because(Cause::ConfigInvalid, message));
    }
    Ok(shortened)
}

fn made_name(instance_id: &str) -> String {
    let kept = instance_id.chars().filter(char::is_ascii_alphanumeric);
    let kept: String = kept.take(MAX_NAME - "node-".len()).collect();
    format!("node-{}", kept.to_ascii_lowercase())
}

/// The address of this machine towards `endpoint`. Where that is a name, the default route's address is as good and
/// needs no DNS; the name is only asked for where there is no default route.
pub fn own_address(endpoint: &Endpoint) -> Option<IpAddr> {
    let named = || (endpoint.host(), endpoint.port()).to_socket_addrs().ok()?.next();
    let towards = endpoint
        .address()
        .map(|address| SocketAddr::new(address, endpoint.port()));
    // Addresses for documentation (RFC 5737, RFC 3849): only the default route leads there.
    let anywhere = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    let anywhere = anywhere.map(|address| SocketAddr::new(address, endpoint.port()));
    let known = towards.into_iter().chain(anywhere).find_map(source_address);
    known.or_else(|| source_address(named()?))
}

/// The address that packets to `target` leave with. None is sent: connecting a UDP socket only looks up the route.
fn source_address(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}
