//! The store of etcd's formation record: an etcd of the bench's own, which stands for the one that an operator has
//! elsewhere.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::components::component;
use crate::namespaces::network::{BENCH, Network};
use crate::processes::start_for_good;

const CLIENTS: u16 = 22379;

/// A running etcd. Dropping it ends it.
#[derive(Debug)]
pub(super) struct RecordKeeper {
    child: Child,
    _folder: TempDir,
}

impl RecordKeeper {
    /// Starts it in `network`.
    pub(super) fn start(network: &Network) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the record")?;
        let etcd = component("etcd");
        let program = etcd.files.iter().find(|file| file.path.ends_with("/etcd"));
        let program = &program.context("component etcd has no etcd")?.source;
        let log = std::fs::File::create(folder.path().join("log")).context("make the record's log")?;
        let url = Self::url();
        let mut etcd = network.command(&program.display().to_string());
        etcd.arg(format!("--data-dir={}", folder.path().join("data").display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = start_for_good(etcd).context("start etcd for the record")?;
        Ok(Self {
            child,
            _folder: folder,
        })
    }

    /// Where it answers.
    pub(super) fn url() -> String {
        format!("http://{BENCH}:{CLIENTS}")
    }
}

impl Drop for RecordKeeper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
