//! Keys and user-data of a cluster, made by the real `kimage cluster`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use kimage_roles::certificate::{Authority, Profile, issue};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;

use crate::images::{command, finish, kimage};

const DAY: Duration = Duration::from_secs(86_400);

/// Where etcd runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etcd {
    /// On the control planes.
    Stacked,
    /// On machines of its own.
    External,
}

/// The folder that `kimage cluster new` made.
#[derive(Debug)]
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    /// Makes the keys of the cluster called `name` in the new `folder`.
    pub fn create(folder: PathBuf, name: &str, endpoint: &str, etcd: Etcd) -> Result<Self> {
        let keys = Self { folder };
        let etcd = match etcd {
            Etcd::Stacked => "stacked",
            Etcd::External => "external",
        };
        let words = ["--name", name, "--endpoint", endpoint, "--etcd", etcd];
        kimage_cluster(&[&["new", keys.path()?][..], &words].concat())?;
        Ok(keys)
    }

    /// Changes what the cluster's description (`cluster.toml`) says, before the first document is made of it.
    pub fn describe(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.folder.join("cluster.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(std::fs::write(&path, change(text))?)
    }

    fn path(&self) -> Result<&str> {
        text(&self.folder)
    }

    /// The NodeConfig of a role; `more` are options of `kimage cluster user-data`.
    pub fn user_data(&self, role: &str, more: &[&str]) -> Result<String> {
        kimage_cluster(&[&["user-data", "--dir", self.path()?, "--role", role][..], more].concat())
    }

    /// Writes an administrator's kubeconfig to the new file `output`.
    pub fn kubeconfig(&self, output: &Path) -> Result<()> {
        let words = ["kubeconfig", "--dir", self.path()?, "--output", text(output)?];
        kimage_cluster(&words).map(drop)
    }

    /// A file of the folder, such as `ca.crt`.
    pub fn text(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// A private key of the folder.
    pub(crate) fn secret(&self, name: &str) -> Result<Secret> {
        self.text(name).map(Secret::new)
    }

    /// A certificate for a day from `now` on, signed by `authority`: `ca`, `etcd-ca`.
    pub fn issue(&self, authority: &str, profile: &Profile, now: SystemTime) -> Result<KeyPair> {
        let pair = KeyPair {
            certificate: self.text(&format!("{authority}.crt"))?,
            key: self.secret(&format!("{authority}.key"))?,
        };
        Ok(issue(&Authority::from_pair(&pair)?, profile, now, DAY)?)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is text")
}

fn kimage_cluster(words: &[&str]) -> Result<String> {
    let output = finish(command(kimage()?).arg("cluster").args(words))?;
    Ok(String::from_utf8(output.stdout)?)
}
