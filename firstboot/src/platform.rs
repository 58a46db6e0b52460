//! Where the machine runs, and what its platform says about it. The platform is told by DMI and by the labels of disks
//! alone: whoever answers at a metadata server's address on unknown hardware may be anybody.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use kimage_roles::node_config::MAX_NODE_CONFIG;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::host::Host;
use crate::http::{Client, Settings};

mod azure;
mod digitalocean;
mod disks;
mod dmi;
mod ec2;
mod gce;
mod generic;
mod hetzner;
mod nocloud;
mod openstack;
pub mod pin;
mod server;
pub mod source;
#[cfg(test)]
mod tests;
mod vmware;

use disks::Disks;
use pin::{Pin, Place};
use server::MetadataServer;
use source::Answer;
use vmware::GuestInfo;

/// Largest document that any platform may hand over, in bytes.
const MAX_DOCUMENT: usize = MAX_NODE_CONFIG;
/// How long a metadata server may take to accept a connection, and for a whole answer.
const SERVER_TIME: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// Address of the metadata server on every cloud that has one. No name: DNS comes up later.
const SERVER: &str = "http://169.254.169.254";

/// Where a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
    /// Microsoft Azure.
    Azure,
    /// OpenStack: a config drive, else its own metadata server.
    OpenStack,
    /// VMware: guestinfo, else a NoCloud disk.
    Vmware,
    /// Hetzner Cloud.
    Hetzner,
    /// DigitalOcean.
    DigitalOcean,
    /// A container, which sees the DMI and the disks of its host: a credential alone counts.
    Container,
    /// QEMU and everything else: credential, fw_cfg, SMBIOS seed, NoCloud disk, config drive, in this order.
    Generic,
}

impl Platform {
    /// The name as it stands in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
            Self::Azure => "azure",
            Self::OpenStack => "openstack",
            Self::Vmware => "vmware",
            Self::Hetzner => "hetzner",
            Self::DigitalOcean => "digitalocean",
            Self::Container => "container",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a platform says about a machine, not yet judged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Raw {
    /// Where the machine runs.
    pub platform: Platform,
    /// Which door the document came through, in words.
    pub source: String,
    /// The disk that it stood on, if it came on one.
    pub disk: Option<Place>,
    /// The document as it came; may be compressed.
    pub user_data: Vec<u8>,
    /// The platform's name for this very machine; a fresh machine has a fresh one.
    pub instance_id: String,
    /// Host name.
    pub host_name: Option<String>,
    /// Address that the machine's neighbours reach it at.
    pub address: Option<IpAddr>,
    /// Failure domain.
    pub zone: Option<String>,
    /// Group of failure domains.
    pub region: Option<String>,
    /// `spec.providerID` of the Node.
    pub provider_id: Option<String>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("platform", &self.platform)
            .field("source", &self.source)
            .field("disk", &self.disk)
            .field("user_data", &format_args!("{} bytes", self.user_data.len()))
            .field("instance_id", &self.instance_id)
            .field("host_name", &self.host_name)
            .field("address", &self.address)
            .field("zone", &self.zone)
            .field("region", &self.region)
            .field("provider_id", &self.provider_id)
            .finish()
    }
}

/// Tells the platform.
pub fn detect(host: &Host) -> Platform {
    if host.path("/run/host/container-manager").exists() {
        return Platform::Container;
    }
    dmi::Dmi::read(host).platform()
}

/// Asks the platform about this machine: at first boot any way there is, later the way that worked then.
///
/// # Errors
///
/// Causes `no-metadata` and `metadata-*`.
pub fn fetch(platform: Platform, host: &Host) -> Result<Answer, Failure> {
    let settings = Settings {
        connect: SERVER_TIME.0,
        total: SERVER_TIME.1,
        max_body: MAX_DOCUMENT,
        ..Settings::default()
    };
    let client = Client::new(&settings).map_err(Failure::internal)?;
    let mut doors = Doors {
        server: MetadataServer::new(client, SERVER),
        disks: Disks::of(host),
        guest_info: &vmware::Backdoor,
        host,
    };
    doors.ask(platform, Pin::read(host)?)
}

/// The ways that lead out of a machine to its platform. Tests put others in their place.
struct Doors<'a> {
    host: &'a Host,
    server: MetadataServer,
    disks: Disks<'a>,
    guest_info: &'a dyn GuestInfo,
}

impl Doors<'_> {
    fn fetch(&self, platform: Platform) -> Result<Raw, Failure> {
        let raw = match platform {
            Platform::Ec2 => ec2::fetch(&self.server),
            Platform::Gce => gce::fetch(&self.server),
            Platform::Azure => azure::fetch(&self.server),
            Platform::OpenStack => openstack::fetch(&self.disks, &self.server),
            Platform::Vmware => vmware::fetch(self.host, self.guest_info, &self.disks),
            Platform::Hetzner => hetzner::fetch(&self.server),
            Platform::DigitalOcean => digitalocean::fetch(&self.server),
            Platform::Container => generic::fetch_container(self.host),
            Platform::Generic => generic::fetch(self.host, &self.server, &self.disks),
        };
        raw.map_err(|failure| failure.context(format!("platform {platform}")))
    }
}
