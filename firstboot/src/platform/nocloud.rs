//! NoCloud (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>): `user-data` and
//! `meta-data` on a disk of that label, or below a URL that the SMBIOS serial number names.

use std::net::IpAddr;

use serde::Deserialize;

use super::disks::Disks;
use super::dmi::Dmi;
use super::server::{self, MetadataServer};
use super::{Platform, Raw};
use crate::failure::Failure;

/// Label of the disk, in any case.
pub(super) const LABEL: &str = "cidata";

/// What kimage reads of `meta-data`; other keys belong to others.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct MetaData {
    instance_id: Option<String>,
    local_hostname: Option<String>,
    hostname: Option<String>,
    local_ipv4: Option<IpAddr>,
    availability_zone: Option<String>,
    region: Option<String>,
    provider_id: Option<String>,
}

impl MetaData {
    /// Reads the document; an empty one is one without keys.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        match bytes.trim_ascii() {
            [] => Ok(Self::default()),
            bytes => server::yaml(bytes, "meta-data"),
        }
    }

    /// Puts both documents together. `id` is the machine's own, for a document that has none.
    pub(super) fn into_raw(
        self,
        platform: Platform,
        source: String,
        user_data: Vec<u8>,
        id: Option<String>,
    ) -> Result<Raw, Failure> {
        let given = self.instance_id.filter(|id| !id.is_empty());
        let instance_id = given.or(id).ok_or_else(|| {
            server::broken(format!(
                "{source}: neither meta-data nor the firmware has an id of this machine"
            ))
        })?;
        let provider_id = self
            .provider_id
            .unwrap_or_else(|| format!("kimage://{instance_id}"));
        Ok(Raw {
            disk: None,
            platform,
            source,
            user_data,
            instance_id,
            host_name: self.local_hostname.or(self.hostname),
            address: self.local_ipv4,
            zone: self.availability_zone,
            region: self.region,
            provider_id: Some(provider_id),
        })
    }
}

/// What a NoCloud disk says; `None` without one.
pub(super) fn from_disk(
    disks: &Disks<'_>,
    platform: Platform,
    id: Option<String>,
) -> Result<Option<Raw>, Failure> {
    let Some(disk) = disks.open(LABEL)? else {
        return Ok(None);
    };
    let user_data = disk.get("user-data")?;
    let meta_data = disk.find("meta-data")?.unwrap_or_default();
    let mut raw = MetaData::read(&meta_data)?.into_raw(platform, disk.to_string(), user_data, id)?;
    raw.disk = Some(disk.place());
    Ok(Some(raw))
}

/// What the server at an SMBIOS seed says; `None` without a seed.
pub(super) fn from_seed(dmi: &Dmi, server: &MetadataServer) -> Result<Option<Raw>, Failure> {
    let Some(seed) = Seed::of(&dmi.serial) else {
        return Ok(None);
    };
    let Some(url) = seed.url else {
        return Ok(None);
    };
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(server::broken(format!(
            "the SMBIOS seed `{url}` is neither an http nor an https URL"
        )));
    }
    if !url.ends_with('/') {
        return Err(server::broken(format!(
            "the SMBIOS seed `{url}` does not end in a slash"
        )));
    }
    let server = server.at(url);
    let user_data = server.get("user-data", &[])?;
    let mut known = MetaData::read(&server.find("meta-data", &[])?.unwrap_or_default())?;
    known.local_hostname = seed.host.map(str::to_owned).or(known.local_hostname);
    known.instance_id = seed.id.map(str::to_owned).or(known.instance_id);
    let source = format!("NoCloud server {url}");
    known
        .into_raw(Platform::Generic, source, user_data, dmi.uuid())
        .map(Some)
}

/// `ds=nocloud;s=URL;h=HOST;i=ID` in an SMBIOS serial number.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seed<'a> {
    url: Option<&'a str>,
    host: Option<&'a str>,
    id: Option<&'a str>,
}

impl<'a> Seed<'a> {
    fn of(serial: &'a str) -> Option<Self> {
        let word = serial.split(' ').find_map(|word| word.strip_prefix("ds="))?;
        let mut parts = word.split(';');
        if !matches!(parts.next(), Some("nocloud" | "nocloud-net")) {
            return None;
        }
        let mut seed = Self::default();
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key {
                "s" | "seedfrom" => seed.url = Some(value),
                "h" | "local-hostname" => seed.host = Some(value),
                "i" | "instance-id" => seed.id = Some(value),
                _ => {}
            }
        }
        Some(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_word_of_the_serial_number() {
        let seed = Seed::of("x ds=nocloud;s=http://10.0.0.1/a/;h=n1;i=i-1;z=9 y").unwrap();
        assert_eq!(
            (seed.url, seed.host, seed.id),
            (Some("http://10.0.0.1/a/"), Some("n1"), Some("i-1"))
        );
        assert_eq!(Seed::of("ds=nocloud").unwrap(), Seed::default());
        for serial in [
            "",
            "0",
            "xds=nocloud;s=http://a/",
            "ds=ec2;s=http://a/",
            "ds=nocloudy;s=http://a/",
        ] {
            assert_eq!(Seed::of(serial), None, "{serial}");
        }
    }
}
