//! OpenStack: a config drive, which wins, else the metadata server
//! (<https://docs.openstack.org/nova/latest/user/metadata.html>). Both have the same files.

use serde::Deserialize;

use super::disks::Disks;
use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;

/// Label of a config drive; some installations write it in capitals.
pub(super) const LABEL: &str = "config-2";
const FOLDER: &str = "openstack/latest";

#[derive(Deserialize)]
struct MetaData {
    uuid: String,
    hostname: Option<String>,
    name: Option<String>,
    availability_zone: Option<String>,
}

pub(super) fn fetch(disks: &Disks<'_>, server: &MetadataServer) -> Result<Raw, Failure> {
    if let Some(raw) = from_drive(disks, Platform::OpenStack)? {
        return Ok(raw);
    }
    let file = |name: &str| server.get(&format!("/{FOLDER}/{name}"), &[]);
    let user_data = file("user_data")?;
    let meta_data = file("meta_data.json")?;
    raw(Platform::OpenStack, "metadata server", user_data, &meta_data)
}

/// What a config drive says; `None` without one.
pub(super) fn from_drive(disks: &Disks<'_>, platform: Platform) -> Result<Option<Raw>, Failure> {
    let Some(disk) = disks.open(LABEL)? else {
        return Ok(None);
    };
    let meta_data = disk.get(&format!("{FOLDER}/meta_data.json"))?;
    let user_data = disk.get(&format!("{FOLDER}/user_data"))?;
    let mut raw = raw(platform, &disk.to_string(), user_data, &meta_data)?;
    raw.disk = Some(disk.place());
    Ok(Some(raw))
}

fn raw(platform: Platform, source: &str, user_data: Vec<u8>, meta_data: &[u8]) -> Result<Raw, Failure> {
    let known: MetaData = server::json(meta_data, "meta_data.json")?;
    Ok(Raw {
        disk: None,
        platform,
        source: source.to_owned(),
        user_data,
        provider_id: Some(format!("openstack:///{}", known.uuid)),
        instance_id: known.uuid,
        host_name: known.hostname.or(known.name),
        // Only with static addressing would network_data.json have it; the default route has it always.
        address: None,
        zone: known.availability_zone.filter(|zone| !zone.is_empty()),
        region: None,
    })
}
