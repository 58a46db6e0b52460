//! DigitalOcean's metadata server (<https://docs.digitalocean.com/reference/api/metadata/>).

use std::net::IpAddr;

use serde::Deserialize;

use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;

#[derive(Deserialize)]
struct MetaData {
    droplet_id: u64,
    hostname: Option<String>,
    region: Option<String>,
    #[serde(default)]
    interfaces: Interfaces,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interfaces {
    private: Vec<Interface>,
    public: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    ipv4: Option<Address>,
}

#[derive(Deserialize)]
struct Address {
    ip_address: IpAddr,
}

pub(super) fn fetch(server: &MetadataServer) -> Result<Raw, Failure> {
    let user_data = server.get("/metadata/v1/user-data", &[])?;
    let known: MetaData = server::json(&server.get("/metadata/v1.json", &[])?, "v1.json")?;
    let interfaces = known
        .interfaces
        .private
        .into_iter()
        .chain(known.interfaces.public);
    let address = interfaces.filter_map(|interface| interface.ipv4).next();
    Ok(Raw {
        disk: None,
        platform: Platform::DigitalOcean,
        source: "metadata server".to_owned(),
        user_data,
        instance_id: known.droplet_id.to_string(),
        host_name: known.hostname,
        address: address.map(|address| address.ip_address),
        // It has no zones: a region is one failure domain.
        zone: known.region.clone(),
        region: known.region,
        provider_id: Some(format!("digitalocean://{}", known.droplet_id)),
    })
}
