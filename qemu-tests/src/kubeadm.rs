//! The real kubeadm, built from its Go module: what it would write on a machine, and what it puts into a cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::components::component;
use crate::images::{command, finish};

/// kubeadm with a configuration. Dropping it removes what it wrote.
#[derive(Debug)]
pub struct Kubeadm {
    program: PathBuf,
    folder: TempDir,
}

impl Kubeadm {
    /// kubeadm with this configuration (YAML of `kubeadm.k8s.io/v1beta4`).
    pub fn new(configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for kubeadm")?;
        std::fs::write(folder.path().join("kubeadm.yaml"), configuration)?;
        std::fs::create_dir(folder.path().join("files"))?;
        let program = program();
        Ok(Self { program, folder })
    }

    /// Where a dry run writes what would be in `/etc/kubernetes/pki`, `/etc/kubernetes`, its `manifests` and
    /// `/var/lib/kubelet`.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Runs a phase of `kubeadm init`.
    pub fn phase(&self, phase: &str, more: &[&str]) -> Result<()> {
        let mut kubeadm = command(&self.program);
        kubeadm.args(self.phase_words(phase)).args(more);
        finish(kubeadm.env("KUBEADM_INIT_DRYRUN_DIR", self.files())).map(drop)
    }

    /// Arguments that make [`program`] run a phase of `kubeadm init`.
    pub fn phase_words(&self, phase: &str) -> Vec<OsString> {
        let words = ["init", "phase"].into_iter().chain(phase.split(' '));
        let mut words: Vec<OsString> = words.map(OsString::from).collect();
        words.push("--config".into());
        words.push(self.folder.path().join("kubeadm.yaml").into());
        words
    }
}

/// The program.
pub fn program() -> PathBuf {
    component("kubeadm").files.remove(0).source
}

/// Where a machine's files below `/etc/kubernetes` lie when a dry run has written them to `files`.
pub fn moved(words: &str, files: &Path) -> String {
    let files = files.display().to_string();
    words
        .replace("/etc/kubernetes/pki", &files)
        .replace("/etc/kubernetes", &files)
}
