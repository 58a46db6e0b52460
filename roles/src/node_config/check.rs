//! What the types alone can't say about a NodeConfig.

use super::{API_VERSION, KIND, NodeConfig, NodeConfigError};

impl NodeConfig {
    /// Refuses what no machine could work with.
    pub(super) fn check(&self) -> Result<(), NodeConfigError> {
        let wrong = |path: &str, problem: String| {
            Err(NodeConfigError {
                path: path.to_owned(),
                problem,
            })
        };
        if self.api_version != API_VERSION {
            return wrong(
                "apiVersion",
                format!("`{}` is not {API_VERSION}", self.api_version),
            );
        }
        if self.kind != KIND {
            return wrong("kind", format!("`{}` is not {KIND}", self.kind));
        }
        Ok(())
    }
}
