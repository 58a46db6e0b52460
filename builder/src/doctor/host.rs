//! The host as far as the checks look at it, so that tests can show them another one.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::tool::Tool;

/// A file tree with `/proc` in it, and programs.
pub(super) struct Host {
    root: PathBuf,
    /// Folders of programs.
    programs: Vec<PathBuf>,
}

impl Host {
    /// The host we run on.
    pub(super) fn this() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            root: PathBuf::from("/"),
            programs: std::env::split_paths(&path).collect(),
        }
    }

    /// A host whose files are below `root`.
    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            programs: vec![root.join("bin")],
        }
    }

    /// The trimmed text of a small file such as a kernel parameter.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    pub(super) fn open_read_write(&self, path: &str) -> io::Result<()> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(path))
            .map(drop)
    }

    /// The first line that a program of the PATH prints, if it is there and runs.
    pub(super) fn version(&self, command: &[&str]) -> Option<String> {
        let (name, arguments) = command.split_first()?;
        let program = self
            .programs
            .iter()
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())?;
        let tool = Tool::new(program)
            .args(arguments)
            .inherit(&["PATH", "HOME", "RUSTUP_HOME", "CARGO_HOME"]);
        let output = tool.run().ok()?;
        Some(String::from_utf8_lossy(&output).lines().next()?.trim().to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root
            .join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)))
    }
}
