//! Where compilers run: a sandbox without a network and without the host's files, with the same paths and the same
//! environment on every host. What a compiler is not shown here can't be in the bytes.
//!
//! ```text
//! /             the compile root of locked packages, or nothing; read-only
//! /build        this build's scratch folder: sources, caches, results
//! /tools        the compiler that is no package; read-only
//! ```

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::progress::Task;
use crate::store::Store;
use crate::tree::compile_root;
use crate::tree::sandbox::Sandbox;

/// Bytes of a compiler's output that are kept: all of any answer that is read, the end of a long log.
const KEPT_BYTES: usize = 16 << 20;

/// The sandbox of one component's build.
pub(super) struct Workroom {
    sandbox: Sandbox,
    scratch: tempfile::TempDir,
}

/// What a finished compiler left.
pub(super) struct Finished {
    pub(super) success: bool,
    /// The last lines of standard output and standard error, in the order in which they came.
    pub(super) output: String,
}

impl Workroom {
    /// A room with `root` as root filesystem and an empty `/build`. `program` is the sandbox's inside
    /// ([`Sandbox::program`]).
    pub(super) fn new(root: &Path, store: &Store, program: Option<&Path>) -> Result<Self> {
        let scratch = store.scratch()?;
        for name in ["home", "tmp"] {
            make(&scratch.path().join(name))?;
        }
        let mut sandbox = Sandbox::read_only(root).bind_writable(scratch.path(), &inside(""));
        // Not /tmp, which is memory: linkers write gigabytes.
        sandbox = sandbox
            .env("HOME", inside("home"))
            .env("TMPDIR", inside("tmp"))
            .env("SOURCE_DATE_EPOCH", "1");
        if let Some(program) = program {
            sandbox = sandbox.program(program);
        }
        Ok(Self { sandbox, scratch })
    }

    /// A path of `/build`, on the host.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A folder of `/build`, on the host, made if absent.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        make(&path)?;
        Ok(path)
    }

    /// Shows `host` as `/tools`.
    #[must_use]
    pub(super) fn tools(self, host: &Path) -> Self {
        let at = Path::new("/").join(compile_root::TOOLS);
        Self {
            sandbox: self.sandbox.bind(host, &at),
            ..self
        }
    }

    /// Shows `host` as the folder `name` of `/build`, read-only.
    #[must_use]
    pub(super) fn show(self, host: &Path, name: &str) -> Self {
        Self {
            sandbox: self.sandbox.bind(host, &inside(name)),
            ..self
        }
    }

    /// Shows `host` as the folder `name` of `/build`, to be written to.
    #[must_use]
    pub(super) fn lend(self, host: &Path, name: &str) -> Self {
        Self {
            sandbox: self.sandbox.bind_writable(host, &inside(name)),
            ..self
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub(super) fn env(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        Self {
            sandbox: self.sandbox.env(name, value),
            ..self
        }
    }

    /// Runs a compiler to its end. Each line that it prints goes to `line`, which returns what it is at now, if the line
    /// says so.
    pub(super) fn run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        task: &Task,
        mut line: impl FnMut(&str) -> Option<String>,
    ) -> Result<Finished> {
        let mut kept = Kept::default();
        let mut sandbox = self.sandbox.clone();
        let outcome = sandbox.run(arguments, &mut |bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            if let Some(now) = line(&text) {
                task.message(&now);
            }
            kept.add(text);
        })?;
        Ok(Finished {
            success: outcome.ending.success(),
            output: kept.text(),
        })
    }
}

/// The path of `name` in `/build`, as compilers see it.
pub(super) fn inside(name: &str) -> PathBuf {
    Path::new("/").join(compile_root::WORK).join(name)
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

/// The end of an output.
#[derive(Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Kept {
    fn add(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > KEPT_BYTES {
            let Some(first) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= first.len() + 1;
        }
    }

    fn text(self) -> String {
        self.lines.into_iter().map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_endless_output_is_kept() {
        let mut kept = Kept::default();
        for number in 0..300_000 {
            kept.add(format!("{number:0100}"));
        }
        let text = kept.text();
        assert!(text.len() <= KEPT_BYTES && text.ends_with("299999\n"));
    }
}
