//! What comes of a request.

use std::time::Duration;

use super::node_name::NodeName;

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is approved: for which node, and why.
    Approve(NodeName, &'static str),
    /// It is not what a node sends, whatever happens. A person, or another approver, may still judge it.
    Never(String),
    /// Not now: it is looked at again.
    Later {
        /// Whose certificate is asked for.
        node: NodeName,
        /// When it is looked at again.
        again: Duration,
        /// Why not now.
        why: String,
    },
}

impl Verdict {
    /// Not now.
    pub(super) fn later(node: &NodeName, again: Duration, why: String) -> Self {
        Self::Later {
            node: node.clone(),
            again,
            why,
        }
    }
}
