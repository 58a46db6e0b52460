//! What the platform said last that made sense: kept for whoever starts while it says nothing.
//!
//! It lies in memory (`/run`), not on the disk: on a control plane it holds the keys of the cluster's authorities and the
//! key that Secrets are encrypted with, beside etcd's data. A boot asks the platform anyway.

use std::net::IpAddr;

use kimage_roles::cause::Cause;
use kimage_roles::node_config::Endpoint;

use super::{Machine, judge as judged};
use crate::failure::{Failure, OrFailure};
use crate::host::{self, Host};
use crate::platform::Raw;

/// Root's alone.
const PATH: &str = "/run/kimage/metadata.json";
/// A NodeConfig of the largest size, four characters for each byte.
const MAX: u64 = 5 << 20;

/// Judges what the platform says, and remembers it when it makes sense.
pub(crate) fn judge(
    host: &Host,
    raw: Raw,
    role: &str,
    own_address: &dyn Fn(&Endpoint) -> Option<IpAddr>,
) -> Result<Machine, Failure> {
    let bytes = serde_json::to_vec(&raw).map_err(Failure::internal)?;
    let machine = judged(raw, role, own_address)?;
    host::write(&host.path(PATH), &bytes, 0o600).map_err(Failure::internal)?;
    Ok(machine)
}

/// What is remembered, judged anew.
pub(crate) fn recall(
    host: &Host,
    role: &str,
    own_address: &dyn Fn(&Endpoint) -> Option<IpAddr>,
) -> Result<Machine, Failure> {
    let bytes = host::read_bounded(&host.path(PATH), MAX).or_failure(Cause::NoMetadata)?;
    let raw: Raw = serde_json::from_slice(&bytes).or_failure(Cause::NoMetadata)?;
    judged(raw, role, own_address)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::plan::tests::machine;
    use crate::platform::Platform;

    fn raw(document: &str) -> Raw {
        Raw {
            platform: Platform::Ec2,
            source: "test".to_owned(),
            disk: None,
            user_data: document.as_bytes().to_vec(),
            instance_id: "i-1".to_owned(),
            host_name: Some("w1".to_owned()),
            address: Some([10, 0, 0, 7].into()),
            zone: None,
            region: None,
            provider_id: None,
        }
    }

    #[test]
    fn what_made_sense_is_recalled_and_what_made_none_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        assert!(recall(&host, "worker", &|_| None).is_err());
        let config = serde_json::to_string(&machine("worker", "").config).unwrap();
        let told = judge(&host, raw(&config), "worker", &|_| None).unwrap();
        for nonsense in ["", "kind: Pod", "#cloud-config"] {
            assert!(judge(&host, raw(nonsense), "worker", &|_| None).is_err());
            assert_eq!(recall(&host, "worker", &|_| None).unwrap(), told);
        }
        let mode = std::fs::metadata(host.path(PATH)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        std::fs::write(host.path(PATH), "{").unwrap();
        assert!(recall(&host, "worker", &|_| None).is_err());
    }
}
