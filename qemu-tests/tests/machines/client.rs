//! Who looks at the cluster from outside, through the balancer: an administrator with `kubectl`, and with the API.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use kimage_qemu_tests::cluster::Cluster;
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::images::finish;
use kimage_qemu_tests::namespaces::network::Network;
use kimage_qemu_tests::shipped::Shipped;
use tempfile::TempDir;

use super::question::{self, Kind};
use super::workload;

/// Address of the cluster's DNS.
pub(crate) const DNS: &str = "10.96.0.10";

/// `kubectl` of the image's own component, and a kubeconfig.
pub(crate) struct Kubectl<'a> {
    network: &'a Network,
    program: PathBuf,
    kubeconfig: PathBuf,
    home: TempDir,
}

impl<'a> Kubectl<'a> {
    /// For an administrator of the cluster.
    pub(crate) fn new(cluster: &'a Cluster<Shipped>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("kubectl");
        // One program with many names.
        symlink(&component("kubernetes-control-plane").files[0].source, &program)?;
        let kubeconfig = folder.path().join("kubeconfig");
        cluster.keys().kubeconfig(&kubeconfig)?;
        Ok(Self {
            network: cluster.network(),
            program,
            kubeconfig,
            home: folder,
        })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.network.command(&self.program.display().to_string());
        command
            .env("HOME", self.home.path())
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words);
        command
    }

    /// What it prints.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = finish(&mut self.command(words))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks the client pod, through a port that kubectl forwards.
    pub(crate) fn ask(&self, name: &str, kind: Kind) -> Result<Vec<Vec<u8>>> {
        let port = format!(":{}", workload::PORT);
        let words = ["port-forward", "--address=127.0.0.1", "pod/client", &port];
        let mut command = self.command(&words);
        let mut forward = Forward(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        let output = forward.0.stdout.take().context("no standard output")?;
        // Open until the answer is there: kubectl writes a line for every connection, and ends when nobody reads.
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let address = line
            .split_ascii_whitespace()
            .find_map(|word| word.parse::<SocketAddr>().ok())
            .with_context(|| format!("kubectl port-forward says `{}`", line.trim()))?;
        let answer = self.network.within(|| question::ask(address, name, kind));
        drop(output);
        answer
    }
}

/// A kubectl that ends with the value.
struct Forward(Child);

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
