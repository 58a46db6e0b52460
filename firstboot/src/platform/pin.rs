//! Where this machine got its metadata at first boot: `/var/lib/kimage/metadata-source.json`, on the machine's own disk.
//!
//! A disk with metadata is told by its label, and everybody who may attach a volume may label it. At first boot there is
//! one such disk, or the machine says which ones and waits. What was found is written down here, and at later boots a
//! disk counts only if it
//!
//! - is plugged in where the first one was, has its serial number, and names the same instance, or
//! - says word for word what the first one said, wherever it is: then nothing is different, and who could say it knows
//!   every secret of it already. So a machine survives that its slots are numbered anew.
//!
//! Where no disk was asked at first boot, none is asked later. All this holds for one machine: where the firmware has
//! another UUID, the disk with the state was moved, cloned or restored, and its pin says nothing about the new machine.
//! That word is the hypervisor's; no tenant's volume can give it.

use kimage_roles::cause::Cause;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Platform, Raw};
use crate::failure::{Failure, OrFailure};
use crate::host::{self, Host};

/// Where the file lies in the machine.
pub const PIN_PATH: &str = "/var/lib/kimage/metadata-source.json";
/// Version of the format.
const SCHEMA: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_PIN: u64 = 64 << 10;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pin {
    schema: u32,
    platform: String,
    /// The firmware's UUID of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
    /// The platform's name for the machine.
    instance_id: String,
    /// The disk; without one the firmware or a metadata server answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<PinnedDisk>,
}

/// A disk with metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PinnedDisk {
    place: Place,
    /// SHA-256 of what it said, in hex.
    said: String,
}

/// What tells a disk from others, whatever the kernel calls it this time and whatever is written on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Place {
    /// The path of controllers and slots that leads to it: udev's `ID_PATH`, and the number of a partition.
    pub path: String,
    /// The serial number that the hypervisor gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

impl Pin {
    /// What `raw` was got from, on the machine whose firmware has this UUID.
    pub(super) fn of(raw: &Raw, machine: Option<String>) -> Self {
        let disk = raw.disk.clone().map(|place| PinnedDisk {
            place,
            said: said(raw),
        });
        Self {
            schema: SCHEMA,
            platform: raw.platform.as_str().to_owned(),
            machine,
            instance_id: raw.instance_id.clone(),
            disk,
        }
    }

    /// Reads the file; `None` before the first boot was done.
    ///
    /// # Errors
    ///
    /// There is a file that can't be read: the source is not guessed then.
    pub(super) fn read(host: &Host) -> Result<Option<Self>, Failure> {
        let bytes = match host::read_bounded(&host.path(PIN_PATH), MAX_PIN) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.or_failure(Cause::Internal),
        };
        let broken = |failure: Failure| failure.context(PIN_PATH);
        let pin: Self = bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).or_failure(Cause::Internal))
            .map_err(broken)?;
        if pin.schema != SCHEMA {
            let message = format!("schema {}, not the known {SCHEMA}", pin.schema);
            return Err(broken(Failure::because(Cause::Internal, message)));
        }
        Ok(Some(pin))
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, host: &Host) -> Result<(), Failure> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(Failure::internal)?;
        bytes.push(b'\n');
        let written = host::write(&host.path(PIN_PATH), &bytes, 0o600).map(drop);
        written.map_err(Failure::internal)
    }

    /// Whether the state was made on another machine than this one.
    pub(super) fn is_of_another(&self, platform: Platform, machine: Option<&str>) -> bool {
        let other_uuid = self
            .machine
            .as_deref()
            .zip(machine)
            .is_some_and(|(then, now)| then != now);
        other_uuid || self.platform != platform.as_str()
    }

    /// Where the disk was plugged in.
    pub(super) fn place(&self) -> Option<&Place> {
        self.disk.as_ref().map(|disk| &disk.place)
    }

    /// The pin to keep after `raw` was got; `None` if that doesn't come from where it must.
    pub(super) fn after(&self, raw: &Raw) -> Option<Self> {
        let (Some(pinned), Some(place)) = (&self.disk, &raw.disk) else {
            // Firmware and metadata servers are the platform's own voice: no tenant speaks through them.
            return raw.disk.is_none().then(|| Self {
                instance_id: raw.instance_id.clone(),
                ..self.clone()
            });
        };
        if *place == pinned.place && raw.instance_id == self.instance_id {
            return Some(Self::of(raw, self.machine.clone()));
        }
        // The place stays what it was: what is written here can change later, and then the place must vouch for it.
        (said(raw) == pinned.said).then(|| self.clone())
    }
}

/// SHA-256 of everything that a platform says about a machine, in hex.
fn said(raw: &Raw) -> String {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default().into_bytes();
    let address = raw.address.map(|address| address.to_string());
    let parts = [
        raw.user_data.clone(),
        raw.instance_id.clone().into_bytes(),
        optional(&raw.host_name),
        optional(&address),
        optional(&raw.zone),
        optional(&raw.region),
        optional(&raw.provider_id),
    ];
    let mut bytes = Vec::new();
    for part in parts {
        // Lengths keep one part's end from being another one's beginning.
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    }
    let hash = digest(&SHA256, &bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
