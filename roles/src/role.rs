//! `/usr/lib/kimage/role.json`: what the machine knows about the image it runs from. Under verity, so as
//! trustworthy as the signature on the UKI.

use serde::{Deserialize, Serialize};

/// Where the file lies in the image.
pub const ROLE_PATH: &str = "/usr/lib/kimage/role.json";

/// Largest file that a reader accepts, in bytes.
pub const MAX_ROLE: usize = 1 << 20;

/// Version of the format.
pub const SCHEMA: u32 = 1;

/// The content of `role.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Role {
    /// Version of this format: 1.
    pub schema: u32,
    /// `control-plane`, `etcd` or `worker`.
    pub role: String,
    /// Base image: `ubuntu-24.04`.
    pub image: String,
    /// Kernel that the modules belong to: `6.8.0-149-generic`.
    pub kernel: String,
    /// Size of a root partition in MiB that the role declares, see [`crate::slot::Slot`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_size_mib: Option<u32>,
    /// What was baked in, sorted by name.
    pub components: Vec<Component>,
}

/// A baked component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Component {
    /// Folder below `images/components`: `etcd`.
    pub name: String,
    /// Locked version: `v3.6.14`.
    pub version: String,
    /// Commands that print the version, each with its arguments. The self-test runs them.
    pub version_commands: Vec<Vec<String>>,
}

/// Why a file is no `role.json` that this code can read.
#[derive(Debug)]
pub enum RoleError {
    /// More than [`MAX_ROLE`] bytes.
    TooLarge(usize),
    /// Not JSON, an unknown key or a wrong type.
    Syntax(serde_json::Error),
    /// A version of the format that this code doesn't know.
    Schema(u32),
}

impl std::fmt::Display for RoleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(size) => write!(f, "{size} bytes, more than {MAX_ROLE}"),
            Self::Syntax(error) => error.fmt(f),
            Self::Schema(schema) => write!(f, "schema {schema} is not the known {SCHEMA}"),
        }
    }
}

impl std::error::Error for RoleError {}

impl Role {
    /// The bytes of the file: JSON with a final newline.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads what [`Role::to_json`] wrote.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RoleError> {
        if bytes.len() > MAX_ROLE {
            return Err(RoleError::TooLarge(bytes.len()));
        }
        let role: Self = serde_json::from_slice(bytes).map_err(RoleError::Syntax)?;
        if role.schema == SCHEMA {
            Ok(role)
        } else {
            Err(RoleError::Schema(role.schema))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Role {
        let version_commands = vec![vec!["/usr/bin/etcd".to_owned(), "--version".to_owned()]];
        Role {
            schema: SCHEMA,
            role: "etcd".to_owned(),
            image: "ubuntu-24.04".to_owned(),
            kernel: "6.8.0-149-generic".to_owned(),
            root_size_mib: Some(512),
            components: vec![Component {
                name: "etcd".to_owned(),
                version: "v3.6.14".to_owned(),
                version_commands,
            }],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(Role::from_json(&sample().to_json().unwrap()).unwrap(), sample());
    }

    #[test]
    fn another_schema_an_unknown_key_and_an_oversize_file_are_refused() {
        let other = Role {
            schema: 2,
            ..sample()
        };
        assert!(matches!(
            Role::from_json(&other.to_json().unwrap()),
            Err(RoleError::Schema(2))
        ));
        let text = String::from_utf8(sample().to_json().unwrap()).unwrap();
        let unknown = text.replacen("\"role\"", "\"rule\": 1, \"role\"", 1);
        assert!(matches!(
            Role::from_json(unknown.as_bytes()),
            Err(RoleError::Syntax(_))
        ));
        assert!(matches!(
            Role::from_json(&vec![b' '; MAX_ROLE + 1]),
            Err(RoleError::TooLarge(_))
        ));
    }
}
