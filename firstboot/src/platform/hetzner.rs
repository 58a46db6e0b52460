//! Hetzner Cloud's metadata server (<https://docs.hetzner.cloud/reference/cloud#server-metadata>).

use std::net::IpAddr;

use serde::Deserialize;

use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData {
    instance_id: u64,
    hostname: Option<String>,
    public_ipv4: Option<String>,
    availability_zone: Option<String>,
    region: Option<String>,
}

#[derive(Deserialize)]
struct PrivateNetwork {
    ip: IpAddr,
}

pub(super) fn fetch(server: &MetadataServer) -> Result<Raw, Failure> {
    let user_data = server.get("/hetzner/v1/userdata", &[])?;
    let known: MetaData = server::yaml(&server.get("/hetzner/v1/metadata", &[])?, "metadata")?;
    let networks = server
        .find("/hetzner/v1/metadata/private-networks", &[])?
        .unwrap_or_default();
    let networks: Vec<PrivateNetwork> = match networks.trim_ascii() {
        [] => Vec::new(),
        networks => server::yaml(networks, "private-networks")?,
    };
    let public = known.public_ipv4.and_then(|address| address.parse().ok());
    Ok(Raw {
        disk: None,
        platform: Platform::Hetzner,
        source: "metadata server".to_owned(),
        user_data,
        instance_id: known.instance_id.to_string(),
        host_name: known.hostname,
        address: networks.first().map(|network| network.ip).or(public),
        zone: known.availability_zone,
        region: known.region,
        provider_id: Some(format!("hcloud://{}", known.instance_id)),
    })
}
