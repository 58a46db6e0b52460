//! `/usr/lib/kimage/role.json`: what an image is. The builder writes it below verity, first boot reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the file is in the image, without the leading slash.
pub const PATH: &str = "usr/lib/kimage/role.json";

/// The version of the format that this crate reads and writes.
pub const SCHEMA: u32 = 1;

/// What one image is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Role {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `control-plane`, `etcd` or `worker`.
    pub role: String,
    /// The base image's name (`ubuntu-24.04`).
    pub image: String,
    /// Version of each component by name (`etcd`: `v3.6.5`).
    pub components: BTreeMap<String, String>,
    /// The newest archive date of the image's packages, seconds since 1970.
    pub epoch: u32,
}

impl Role {
    /// Version of Kubernetes, when the image has a component of it.
    pub fn kubernetes_version(&self) -> Option<&str> {
        let mut found = self.components.iter().filter(|(name, _)| name.starts_with("kubernetes"));
        found.next().map(|(_, version)| version.as_str())
    }

    /// The file's bytes: the same for the same value.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_survives_a_round_trip_and_refuses_unknown_keys() {
        let components = BTreeMap::from([("kubernetes-worker".to_owned(), "v1.36.3".to_owned())]);
        let role = Role { schema: SCHEMA, role: "worker".into(), image: "ubuntu-24.04".into(), components, epoch: 5 };
        assert_eq!(serde_json::from_slice::<Role>(&role.to_json()).unwrap(), role);
        assert_eq!(role.kubernetes_version(), Some("v1.36.3"));
        let text = String::from_utf8(role.to_json()).unwrap().replace("\"epoch\"", "\"epoc\"");
        assert!(serde_json::from_str::<Role>(&text).is_err());
    }
}
