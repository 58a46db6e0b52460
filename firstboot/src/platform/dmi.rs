//! What the firmware says about the machine (Documentation/ABI/testing/sysfs-firmware-dmi-tables; `/sys/class/dmi/id`).

use super::Platform;
use crate::host::{Host, read_bounded};

/// Longest value that is read, in bytes.
const MAX_VALUE: u64 = 4096;
/// Chassis asset tag of every machine of Azure.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
/// Chassis asset tags of clouds that are OpenStack under another name.
const OPENSTACK_TAGS: [&str; 4] = [
    "OpenTelekomCloud",
    "SAP CCloud VM",
    "HUAWEICLOUD",
    "Samsung Cloud Platform",
];

/// The values that tell platforms apart; empty where the firmware has none.
#[derive(Debug, Default)]
pub(super) struct Dmi {
    vendor: String,
    product: String,
    /// May hold a NoCloud seed.
    pub(super) serial: String,
    uuid: String,
    chassis_tag: String,
    bios_version: String,
}

impl Dmi {
    pub(super) fn read(host: &Host) -> Self {
        let value = |name: &str| {
            let bytes = read_bounded(&host.path(format!("/sys/class/dmi/id/{name}")), MAX_VALUE);
            let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
            text.unwrap_or_default()
        };
        Self {
            vendor: value("sys_vendor"),
            product: value("product_name"),
            serial: value("product_serial"),
            uuid: value("product_uuid"),
            chassis_tag: value("chassis_asset_tag"),
            bios_version: value("bios_version"),
        }
    }

    /// The machine's UUID in lower case; `None` where the firmware has none or fills in a blank.
    pub(super) fn uuid(&self) -> Option<String> {
        let uuid = self.uuid.to_ascii_lowercase();
        let digits: Vec<u8> = uuid.bytes().filter(|byte| *byte != b'-').collect();
        let is_uuid = digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
        let is_blank = digits.iter().all(|byte| Some(byte) == digits.first());
        (is_uuid && !is_blank).then_some(uuid)
    }

    /// EC2 comes after OpenStack, which can imitate it, and is never guessed from anything that a clone also has.
    pub(super) fn platform(&self) -> Platform {
        let old_ec2 = self.vendor == "Xen"
            && self.bios_version.ends_with(".amazon")
            && self.uuid.to_ascii_lowercase().starts_with("ec2");
        let openstack = matches!(self.product.as_str(), "OpenStack Nova" | "OpenStack Compute")
            || OPENSTACK_TAGS.contains(&self.chassis_tag.as_str());
        match self.vendor.as_str() {
            _ if self.chassis_tag == AZURE_TAG => Platform::Azure,
            _ if openstack => Platform::OpenStack,
            "Amazon EC2" => Platform::Ec2,
            _ if old_ec2 => Platform::Ec2,
            _ if self.product == "Google Compute Engine" || self.serial.starts_with("GoogleCloud-") => {
                Platform::Gce
            }
            "Hetzner" => Platform::Hetzner,
            "DigitalOcean" => Platform::DigitalOcean,
            vendor if vendor.starts_with("VMware") => Platform::Vmware,
            _ => Platform::Generic,
        }
    }
}
