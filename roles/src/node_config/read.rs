//! From bytes to a checked NodeConfig.

use std::fmt;

use super::NodeConfig;

/// Largest document that is read, in bytes.
pub const MAX_NODE_CONFIG: usize = 1 << 20;

/// Why a document is no NodeConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfigError {
    /// Path of the key: `cluster.endpoint`; `.` for the whole document.
    pub path: String,
    /// What is wrong there; never the value of a secret.
    pub problem: String,
}

impl fmt::Display for NodeConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for NodeConfigError {}

impl NodeConfig {
    /// Reads and checks a document.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, NodeConfigError> {
        let whole = |problem: String| NodeConfigError {
            path: ".".to_owned(),
            problem,
        };
        if bytes.len() > MAX_NODE_CONFIG {
            return Err(whole(format!(
                "{} bytes, more than {MAX_NODE_CONFIG}",
                bytes.len()
            )));
        }
        let value: serde_json::Value =
            serde_saphyr::from_slice(bytes).map_err(|error| whole(format!("not YAML: {error}")))?;
        let config: Self = serde_path_to_error::deserialize(value).map_err(|error| NodeConfigError {
            path: error.path().to_string(),
            problem: error.into_inner().to_string(),
        })?;
        config.check()?;
        Ok(config)
    }
}
