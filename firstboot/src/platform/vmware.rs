//! VMware: `guestinfo.userdata` and `guestinfo.metadata`, each with an `.encoding`
//! (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/vmware.html>); without them a NoCloud disk.

use std::io::{self, Read};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;

use super::disks::Disks;
use super::dmi::Dmi;
use super::nocloud::{self, MetaData};
use super::server;
use super::{MAX_DOCUMENT, Platform, Raw};
use crate::failure::Failure;
use crate::host::Host;

mod backdoor;

pub(super) use backdoor::Backdoor;

/// Values that whoever runs the machine gave it.
pub(super) trait GuestInfo {
    /// The value of `guestinfo.<key>`; `None` when it has none.
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>>;
}

pub(super) fn fetch(host: &Host, guest_info: &dyn GuestInfo, disks: &Disks<'_>) -> Result<Raw, Failure> {
    let uuid = Dmi::read(host).uuid();
    let mut raw = match decoded(guest_info, "userdata")? {
        Some(user_data) => {
            let known = decoded(guest_info, "metadata")?.unwrap_or_default();
            let source = "guestinfo.userdata".to_owned();
            MetaData::read(&known)?.into_raw(Platform::Vmware, source, user_data, uuid.clone())?
        }
        None => nocloud::from_disk(disks, Platform::Vmware, uuid.clone())?
            .ok_or_else(|| server::nothing("no guestinfo.userdata and no disk with the label cidata"))?,
    };
    if let Some(uuid) = uuid {
        raw.provider_id = Some(format!("vsphere://{uuid}"));
    }
    Ok(raw)
}

/// The value of a key, decoded as `<key>.encoding` says.
fn decoded(guest_info: &dyn GuestInfo, key: &str) -> Result<Option<Vec<u8>>, Failure> {
    let get = |key: &str| {
        let value = guest_info.get(key);
        value.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => server::too_large(&format!("guestinfo.{key}")),
            _ => server::broken(format!("read guestinfo.{key}: {error}")),
        })
    };
    // An unset key may also be empty or a pair of dashes: that is how clearing one is done.
    let set = |value: Vec<u8>| (!matches!(value.trim_ascii(), b"" | b"---")).then_some(value);
    let Some(value) = get(key)?.and_then(set) else {
        return Ok(None);
    };
    let encoding = get(&format!("{key}.encoding"))?.unwrap_or_default();
    let encoding = String::from_utf8_lossy(&encoding).trim().to_ascii_lowercase();
    let bytes = match encoding.as_str() {
        "" | "text/plain" => value,
        "base64" | "b64" => base64(&value, key)?,
        "gzip+base64" | "gz+b64" => gunzip(&base64(&value, key)?, key)?,
        other => {
            return Err(server::broken(format!(
                "guestinfo.{key}.encoding `{other}` is not known"
            )));
        }
    };
    if bytes.len() > MAX_DOCUMENT {
        return Err(server::too_large(&format!("guestinfo.{key}")));
    }
    Ok(Some(bytes))
}

fn base64(value: &[u8], key: &str) -> Result<Vec<u8>, Failure> {
    let value: Vec<u8> = value
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD
        .decode(value)
        .map_err(|_| server::broken(format!("guestinfo.{key} is not base64")))
}

fn gunzip(value: &[u8], key: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = GzDecoder::new(value)
        .take(MAX_DOCUMENT as u64 + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| server::broken(format!("guestinfo.{key} is not gzip: {error}")))?;
    Ok(bytes)
}
