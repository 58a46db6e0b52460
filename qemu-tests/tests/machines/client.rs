//! Who looks at the cluster from outside, through the balancer: an administrator with `kubectl`, and with the API.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kimage_qemu_tests::components::component;
use kimage_qemu_tests::images::finish;
use kimage_qemu_tests::namespaces::network::Network;
use tempfile::TempDir;

use super::question::{self, Kind};
use super::workload;

const POLL: Duration = Duration::from_millis(500);

/// `kubectl` of the image's own component, and a kubeconfig.
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: TempDir,
}

impl Kubectl {
    /// For the cluster of `kubeconfig`.
    pub(crate) fn new(kubeconfig: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("kubectl");
        // One program with many names.
        symlink(&component("kubernetes-control-plane").files[0].source, &program)?;
        Ok(Self {
            program,
            kubeconfig: kubeconfig.to_owned(),
            home: folder,
        })
    }

    fn command(&self, network: &Network, words: &[&str]) -> Command {
        let mut command = network.command(&self.program.display().to_string());
        command
            .env("HOME", self.home.path())
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words);
        command
    }

    /// What it prints.
    pub(crate) fn run(&self, network: &Network, words: &[&str]) -> Result<String> {
        let output = finish(&mut self.command(network, words))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks the client pod, through a port that kubectl forwards.
    pub(crate) fn ask(&self, network: &Network, name: &str, kind: Kind) -> Result<Vec<Vec<u8>>> {
        let port = format!(":{}", workload::PORT);
        let words = ["port-forward", "--address=127.0.0.1", "pod/client", &port];
        let mut command = self.command(network, &words);
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
        let answer = network.within(|| question::ask(address, name, kind));
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

/// Tries until it works.
pub(crate) fn until<T>(deadline: Duration, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match work() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > deadline => {
                return Err(error).with_context(|| format!("{what}: not within {deadline:?}"));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
