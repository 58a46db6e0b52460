//! Files that first boot writes: pure modules say what is in them, actions put them on disk.

use std::fmt;

use serde_json::Value;

/// A file as it shall be. `Debug` shows where and how long it is, never what is in it: some hold keys.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedFile {
    /// Absolute path.
    pub path: String,
    /// Permission bits. The owner is root.
    pub mode: u32,
    /// The whole content.
    pub content: String,
}

impl RenderedFile {
    /// A file that root alone reads. CIS 1.1 and 4.1 want that of every configuration of Kubernetes.
    pub fn private(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
            content: content.into(),
        }
    }

    /// A file that everybody reads.
    pub fn public(path: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            mode: 0o644,
            ..Self::private(path, content)
        }
    }

    /// A private file of JSON, which every reader of YAML takes.
    pub fn json(path: impl Into<String>, value: &Value) -> Self {
        Self::private(path, format!("{value:#}\n"))
    }
}

impl fmt::Debug for RenderedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode, content } = self;
        write!(f, "{path} ({mode:04o}, {} bytes)", content.len())
    }
}
