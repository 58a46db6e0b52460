//! GCE's metadata server (<https://cloud.google.com/compute/docs/metadata/querying-metadata>): every request and every
//! answer carries `Metadata-Flavor: Google`.

use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;

pub(super) fn fetch(server: &MetadataServer) -> Result<Raw, Failure> {
    let user_data = ask(server, "instance/attributes/user-data")?;
    let line = |path: &str| server::text(&ask(server, path)?, path);
    let instance_id = line("instance/id")?;
    let name = line("instance/name")?;
    let host_name = line("instance/hostname")?;
    let project = line("project/project-id")?;
    // `projects/<number>/zones/<zone>`
    let zone = line("instance/zone")?;
    let zone = zone.rsplit('/').next().unwrap_or_default().to_owned();
    let (region, _) = zone
        .rsplit_once('-')
        .ok_or_else(|| server::broken(format!("zone `{zone}` has no region")))?;
    let address = line("instance/network-interfaces/0/ip")?;
    let address = address
        .parse()
        .map_err(|_| server::broken(format!("address `{address}` is none")))?;
    Ok(Raw {
        disk: None,
        platform: Platform::Gce,
        source: "metadata server, attribute user-data".to_owned(),
        user_data,
        instance_id,
        host_name: Some(host_name),
        address: Some(address),
        region: Some(region.to_owned()),
        provider_id: Some(format!("gce://{project}/{zone}/{name}")),
        zone: Some(zone),
    })
}

fn ask(server: &MetadataServer, path: &str) -> Result<Vec<u8>, Failure> {
    let answer = server.ask(
        &format!("/computeMetadata/v1/{path}"),
        &[("metadata-flavor", "Google")],
    )?;
    let is_google = answer.header("metadata-flavor") == Some("Google");
    let body = server::succeeded(answer)?;
    if is_google {
        Ok(body)
    } else {
        Err(server::broken(format!(
            "the answer for {path} is not from the metadata server of GCE"
        )))
    }
}
