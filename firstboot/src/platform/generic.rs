//! QEMU and whatever has no metadata server of its own. Who starts the machine speaks first: a systemd credential
//! (systemd.system-credentials(7)), then fw_cfg (docs/specs/fw_cfg.rst of QEMU), then NoCloud, then a config drive.

use std::io;

use super::disks::Disks;
use super::dmi::Dmi;
use super::nocloud::{self, MetaData};
use super::server::{self, MetadataServer};
use super::{MAX_DOCUMENT, Platform, Raw, openstack};
use crate::failure::Failure;
use crate::host::{Host, read_bounded};

/// Where systemd puts what the machine was started with.
const CREDENTIALS: &str = "/run/credentials/@system";
/// Where `qemu_fw_cfg` puts what QEMU was started with.
const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/dev.kimage";
/// Longest host name of the kernel.
const MAX_HOST_NAME: u64 = 256;

pub(super) fn fetch(host: &Host, server: &MetadataServer, disks: &Disks<'_>) -> Result<Raw, Failure> {
    let dmi = Dmi::read(host);
    if let Some(raw) = from_credential(host, Platform::Generic, dmi.uuid())? {
        return Ok(raw);
    }
    if let Some(raw) = from_fw_cfg(host, &dmi)? {
        return Ok(raw);
    }
    if let Some(raw) = nocloud::from_seed(&dmi, server)? {
        return Ok(raw);
    }
    disks.wait_for(&[nocloud::LABEL, openstack::LABEL])?;
    // Two disks of different kinds are two answers as well.
    disks.only(&[nocloud::LABEL, openstack::LABEL])?;
    if let Some(raw) = nocloud::from_disk(disks, Platform::Generic, dmi.uuid())? {
        return Ok(raw);
    }
    if let Some(raw) = openstack::from_drive(disks, Platform::Generic)? {
        return Ok(raw);
    }
    Err(server::nothing(
        "no credential kimage.node-config, no fw_cfg file opt/dev.kimage/node-config, no NoCloud seed in the SMBIOS \
         serial number, no disk with the label cidata or config-2",
    ))
}

/// A container's DMI and disks are its host's.
pub(super) fn fetch_container(host: &Host) -> Result<Raw, Failure> {
    from_credential(host, Platform::Container, None)?
        .ok_or_else(|| server::nothing("the container was started without the credential kimage.node-config"))
}

fn from_credential(host: &Host, platform: Platform, id: Option<String>) -> Result<Option<Raw>, Failure> {
    let file = |name: &str| find(host, &format!("{CREDENTIALS}/kimage.{name}"));
    let Some(user_data) = file("node-config")? else {
        return Ok(None);
    };
    let known = MetaData::read(&file("meta-data")?.unwrap_or_default())?;
    let source = "systemd credential kimage.node-config".to_owned();
    let raw = known.into_raw(platform, source, user_data, id.or_else(|| machine_id(host)))?;
    Ok(Some(with_kernel_name(host, raw)))
}

fn from_fw_cfg(host: &Host, dmi: &Dmi) -> Result<Option<Raw>, Failure> {
    let file = |name: &str| find(host, &format!("{FW_CFG}/{name}/raw"));
    let Some(user_data) = file("node-config")? else {
        return Ok(None);
    };
    let known = MetaData::read(&file("meta-data")?.unwrap_or_default())?;
    let source = "fw_cfg file opt/dev.kimage/node-config".to_owned();
    let id = dmi.uuid().or_else(|| machine_id(host));
    let raw = known.into_raw(Platform::Generic, source, user_data, id)?;
    Ok(Some(with_kernel_name(host, raw)))
}

/// A host name that systemd or DHCP gave stands in for one that nobody gave here.
fn with_kernel_name(host: &Host, mut raw: Raw) -> Raw {
    if raw.host_name.is_none() {
        let name = read_bounded(&host.path("/proc/sys/kernel/hostname"), MAX_HOST_NAME);
        let name = name.ok().and_then(|name| String::from_utf8(name).ok());
        let name = name.map(|name| name.trim().to_owned());
        raw.host_name = name.filter(|name| !matches!(name.as_str(), "" | "localhost" | "(none)"));
    }
    raw
}

fn machine_id(host: &Host) -> Option<String> {
    let id = read_bounded(&host.path("/etc/machine-id"), 64).ok()?;
    let id = String::from_utf8(id).ok()?.trim().to_owned();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

fn find(host: &Host, path: &str) -> Result<Option<Vec<u8>>, Failure> {
    match read_bounded(&host.path(path), MAX_DOCUMENT as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(server::too_large(path)),
        Err(error) => Err(server::broken(format!("read {path}: {error}"))),
    }
}
