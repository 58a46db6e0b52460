//! Azure's instance metadata service
//! (<https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>): `userData`, which unlike
//! `customData` can be changed and needs no disk.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::server::{self, MetadataServer};
use super::{MAX_DOCUMENT, Platform, Raw};
use crate::failure::Failure;

const USER_DATA: &str = "/metadata/instance/compute/userData?api-version=2021-01-01&format=text";
const INSTANCE: &str = "/metadata/instance?api-version=2021-02-01";

#[derive(Deserialize)]
struct Instance {
    compute: Compute,
    network: Option<Network>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    vm_id: String,
    name: String,
    location: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    platform_fault_domain: String,
    resource_id: String,
    os_profile: Option<OsProfile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OsProfile {
    #[serde(default)]
    computer_name: String,
}

#[derive(Deserialize)]
struct Network {
    interface: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    ipv4: Addresses,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Addresses {
    ip_address: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    private_ip_address: IpAddr,
}

pub(super) fn fetch(server: &MetadataServer) -> Result<Raw, Failure> {
    let headers: server::Headers<'_> = &[("metadata", "true")];
    let encoded = server.get(USER_DATA, headers)?;
    let encoded = encoded.trim_ascii();
    if encoded.is_empty() {
        return Err(server::nothing("the virtual machine has no userData"));
    }
    let user_data = STANDARD
        .decode(encoded)
        .map_err(|_| server::broken("userData is not base64".to_owned()))?;
    if user_data.len() > MAX_DOCUMENT {
        return Err(server::too_large("userData"));
    }
    let instance: Instance = server::json(&server.get(INSTANCE, headers)?, "the instance's description")?;
    let compute = instance.compute;
    // Cloud provider's rule: a zone is `<region>-<number>`, without zones it is the fault domain's number.
    let zone = match (compute.zone.as_str(), compute.platform_fault_domain.as_str()) {
        ("", "") => None,
        ("", domain) => Some(domain.to_owned()),
        (zone, _) => Some(format!("{}-{zone}", compute.location)),
    };
    let computer = compute.os_profile.map(|profile| profile.computer_name);
    let name = computer.filter(|name| !name.is_empty()).unwrap_or(compute.name);
    let interfaces = instance.network.into_iter().flat_map(|network| network.interface);
    let address = interfaces.flat_map(|interface| interface.ipv4.ip_address).next();
    Ok(Raw {
        disk: None,
        platform: Platform::Azure,
        source: "instance metadata service, userData".to_owned(),
        user_data,
        instance_id: compute.vm_id,
        host_name: Some(name),
        address: address.map(|address| address.private_ip_address),
        zone,
        region: Some(compute.location),
        provider_id: Some(provider_id(&compute.resource_id)),
    })
}

/// `azure://` and the resource id, whose resource group is written in lower case as the cloud provider does.
fn provider_id(resource_id: &str) -> String {
    let mut after_group = false;
    let parts = resource_id.split('/').map(|part| {
        let lower = std::mem::replace(&mut after_group, part.eq_ignore_ascii_case("resourceGroups"));
        if lower {
            part.to_lowercase()
        } else {
            part.to_owned()
        }
    });
    format!("azure://{}", parts.collect::<Vec<_>>().join("/"))
}
