//! A cluster as a folder: its authorities and keys, made once and offline, and what is made from them: the NodeConfig
//! of each role and kubeconfigs.
//!
//! | file | what |
//! |---|---|
//! | `cluster.toml` | name, endpoint, ranges, layout of etcd, pod network, timing: the sections of a NodeConfig |
//! | `ca.*`, `front-proxy-ca.*`, `etcd-ca.*` | authorities, `.crt` and `.key`, PEM, ECDSA P-256, 10 years |
//! | `sa.key`, `sa.pub` | signs service-account tokens (ES256) |
//! | `encryption.key` | base64 of the 32 bytes that encrypt Secrets in etcd |
//! | `bootstrap-tokens.json` | tokens that machines join with; the last is handed out |
//! | `inventory.key`, `inventory.pub` | Ed25519: signs the list of instances that exist |

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::certificate::{Authority, new_key, public_key_pem};
use kimage_roles::inventory;
use kimage_roles::node_config::{
    BootstrapToken, Certificates, Cluster, EtcdLayout, KeyPair, Network, Timing,
};
use kimage_roles::secret::Secret;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::failure::{ExitCode, Failure};
use crate::private;

mod kubeconfig;
mod token;
mod user_data;

pub use kubeconfig::{KubeconfigOrder, kubeconfig};
pub use token::{TokenLife, token_life};
pub use user_data::{Order, user_data};

/// No file of a cluster folder is larger, in bytes.
const MAX_FILE: u64 = 64 * 1024;

const HEADER: &str = "\
# A cluster's description: the keys of a NodeConfig, which `kimage cluster user-data` copies into every document.
# Change `network` and `timing` before the first machine boots; `cluster` and `etcd` stay as they are for good.

";

/// `cluster.toml`: what all NodeConfigs of the cluster share, by the same keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Description {
    /// Name, endpoint, ranges.
    pub cluster: Cluster,
    /// Where etcd runs.
    pub etcd: EtcdSection,
    /// Pod network.
    #[serde(default)]
    pub network: Network,
    /// Knobs for slow machines.
    #[serde(default)]
    pub timing: Timing,
    /// Certificates that the cluster issues.
    #[serde(default, skip_serializing_if = "Certificates::is_default")]
    pub certificates: Certificates,
}

/// `[etcd]` of `cluster.toml`; how its members find each other is said with each document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdSection {
    /// On the control planes or on machines of its own.
    pub layout: EtcdLayout,
}

/// Makes the folder of a new cluster, which must be absent or empty. It appears with all its files or not at all. The
/// bootstrap token lives for `token_lifetime`, or until it is deleted.
pub fn create(
    folder: &Path,
    description: &Description,
    now: SystemTime,
    token_lifetime: Option<Duration>,
) -> Result<()> {
    user_data::check(description)?;
    let token = BootstrapToken {
        token: token::new()?,
        expires: token_lifetime
            .map(|lifetime| token::expiry(now, lifetime))
            .transpose()?,
    };
    private::create_folder(folder, |inside| {
        let write = |name: &str, text: &str| private::write_new(&inside.join(name), text.as_bytes());
        for (file, name) in [
            ("ca", "kubernetes"),
            ("front-proxy-ca", "front-proxy-ca"),
            ("etcd-ca", "etcd-ca"),
        ] {
            let pair = Authority::create(name, now)?;
            write(&format!("{file}.crt"), &pair.certificate)?;
            write(&format!("{file}.key"), pair.key.reveal())?;
        }
        let service_account = new_key()?;
        write("sa.key", service_account.reveal())?;
        write("sa.pub", &public_key_pem(&service_account)?)?;
        let mut encryption = [0; 32];
        random(&mut encryption)?;
        write("encryption.key", &format!("{}\n", STANDARD.encode(encryption)))?;
        let tokens = serde_json::to_string_pretty(&[&token]).context("write bootstrap token")?;
        write("bootstrap-tokens.json", &format!("{tokens}\n"))?;
        let (private, public) = inventory::new_key().ok_or_else(|| anyhow!("the system gives no entropy"))?;
        write("inventory.key", private.reveal())?;
        write("inventory.pub", &public)?;
        let text = toml::to_string_pretty(description).context("write cluster.toml")?;
        write("cluster.toml", &format!("{HEADER}{text}"))
    })
}

fn random(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| anyhow!("the system gives no entropy"))
}

/// A cluster's folder, opened. Private keys are read only when asked for, so a folder from which they were taken away
/// still serves workers.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// `cluster.toml`.
    pub description: Description,
}

impl Folder {
    /// Opens what [`create`] made.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join("cluster.toml");
        let text = read(&file)?;
        let description: Description = toml::from_str(&text).map_err(|error| {
            let message = format!("read {}: {}", file.display(), error.message());
            Failure::new(ExitCode::Usage, message)
        })?;
        user_data::check(&description).with_context(|| format!("read {}", file.display()))?;
        Ok(Self {
            path: path.to_owned(),
            description,
        })
    }

    /// Text of a public file.
    pub fn text(&self, name: &str) -> Result<String> {
        read(&self.path.join(name))
    }

    /// Text of a secret file.
    pub fn secret(&self, name: &str) -> Result<Secret> {
        Ok(Secret::new(read(&self.path.join(name))?))
    }

    /// An authority's certificate and key: `ca`, `front-proxy-ca` or `etcd-ca`. They must belong together.
    pub fn authority(&self, name: &str) -> Result<KeyPair> {
        let pair = KeyPair {
            certificate: self.text(&format!("{name}.crt"))?,
            key: self.secret(&format!("{name}.key"))?,
        };
        Authority::from_pair(&pair).with_context(|| format!("read {}", self.path.join(name).display()))?;
        Ok(pair)
    }

    /// The key that encrypts Secrets, base64.
    pub fn encryption_key(&self) -> Result<Secret> {
        Ok(Secret::new(self.secret("encryption.key")?.reveal().trim()))
    }

    /// All bootstrap tokens of the cluster, at least one.
    pub fn bootstrap_tokens(&self) -> Result<Vec<BootstrapToken>> {
        let name = "bootstrap-tokens.json";
        // serde's own text could repeat a token.
        let tokens: Vec<BootstrapToken> =
            serde_json::from_str(self.secret(name)?.reveal()).map_err(|error| {
                anyhow!(
                    "{}: not a list of tokens (line {})",
                    self.path.join(name).display(),
                    error.line()
                )
            })?;
        ensure!(
            !tokens.is_empty(),
            "{} holds no token",
            self.path.join(name).display()
        );
        Ok(tokens)
    }
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match result {
        Ok(_) if text.len() as u64 <= MAX_FILE => Ok(text),
        Ok(_) => bail!("{} is too large for a file of a cluster folder", path.display()),
        Err(error) => {
            let failure = Failure::new(ExitCode::Usage, format!("read {}: {error}", path.display()));
            bail!(match error.kind() {
                io::ErrorKind::NotFound => failure.hint(
                    "`kimage cluster new DIR --name NAME --endpoint HOST:PORT` makes a cluster's folder"
                ),
                _ => failure,
            })
        }
    }
}
