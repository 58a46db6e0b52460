//! A cluster of virtual machines on this host, for trying things, without root: QEMU's own user-mode network leads out,
//! an Ethernet switch and a balancer of kimage's connect the machines, and one supervisor process holds all of it.
//!
//! ```text
//! kubectl -> 127.0.0.1:PORT  balancer  -> 127.0.0.1:FORWARD -> gateway (QEMU, user network) -> switch -> control planes
//! machine -> 10.0.2.2:PORT -> switch -> gateway -> 127.0.0.1:PORT  balancer
//! ```
//!
//! A playground is a folder (0700) that `kimage cluster up` makes whole or not at all and `kimage cluster down` removes:
//!
//! | file | what |
//! |---|---|
//! | `playground.json` | what it consists of; [`Playground`] |
//! | `kubeconfig` | an administrator's |
//! | `cluster/` | what `kimage cluster new` makes |
//! | `machines/NAME/` | disk, firmware variables, NodeConfig, `console.log` of each machine |
//! | `net/` | sockets of the switch |
//! | `*.pid`, `*.log` | processes by number and start time, and what they said |

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kimage_roles::node_config::NodeRole;
use serde::{Deserialize, Serialize};

use crate::failure::{ExitCode, Failure};
use crate::qemu::Accelerator;

mod balancer;
mod border;
mod console;
mod frame;
mod hardware;
mod make;
mod process;
mod supervisor;
mod switch;
mod take_down;

pub use console::Watch;
pub use make::{Order, make, refuse};
pub use process::Identity;
pub use supervisor::{serve, start};
pub use take_down::take_down;

/// What marks a folder as a playground.
pub const MARKER: &str = "playground.json";
/// An administrator's kubeconfig.
pub const KUBECONFIG: &str = "kubeconfig";
/// Keys and description of the cluster.
pub const CLUSTER: &str = "cluster";
const MACHINES: &str = "machines";
const NETWORK: &str = "net";
const SCHEMA: u32 = 1;
/// No description is longer, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// The host, as machines see it: gateway, and the balancer behind it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server that the gateway stands in for.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The port of API servers.
const API_PORT: u16 = 6443;

/// A playground: `playground.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Playground {
    /// Version of the format.
    pub schema: u32,
    /// Name of the cluster.
    pub name: String,
    /// Port of the balancer on 127.0.0.1.
    pub port: u16,
    /// Whether machines run on the processor itself (KVM) or are emulated.
    pub kvm: bool,
    /// The machines, in the order in which they start.
    pub machines: Vec<Machine>,
}

/// A machine of a playground.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Machine {
    /// Name of the machine and its Node.
    pub name: String,
    /// Its role.
    pub role: NodeRole,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its firmware's id, which is the instance's.
    pub uuid: String,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
    /// Port on 127.0.0.1 that leads to its API server; control planes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<u16>,
}

impl Machine {
    /// Its hardware address; locally administered, the last bytes are those of its IP address.
    pub fn mac(&self) -> [u8; 6] {
        let [_, b, c, d] = self.address.octets();
        [0x52, 0x54, 0x00, b, c, d]
    }

    /// Its folder within the playground's.
    pub fn folder(&self) -> PathBuf {
        Path::new(MACHINES).join(&self.name)
    }

    /// What its serial port says.
    pub fn console(&self) -> PathBuf {
        self.folder().join("console.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.folder().join("qemu.pid")
    }

    /// Exists once it has ended; says how.
    pub fn ended(&self) -> PathBuf {
        self.folder().join("ended")
    }

    fn log(&self) -> PathBuf {
        self.folder().join("qemu.log")
    }

    /// The end of its cable at the machine.
    fn socket(&self) -> PathBuf {
        Path::new(NETWORK).join(&self.name)
    }
}

impl Playground {
    /// Reads the playground in `folder`.
    ///
    /// # Errors
    /// There is none: exit code 2, with a hint.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MARKER);
        let missing = |why: &str| {
            Failure::new(ExitCode::Usage, format!("{}: {why}", folder.display()))
                .hint("name a folder that `kimage cluster up` made")
        };
        match std::fs::metadata(&path) {
            Ok(file) if file.len() > MAX_DESCRIPTION => bail!(missing("its playground.json is none")),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(missing("no cluster of `kimage cluster up` is here"))
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let playground: Self = serde_json::from_slice(&bytes)
            .map_err(|error| missing(&format!("its playground.json is none: {error}")))?;
        // Names become paths, which are removed one day.
        let plain = |name: &str| kimage_roles::node_config::is_dns_label(name);
        if playground.schema != SCHEMA || !playground.machines.iter().all(|machine| plain(&machine.name)) {
            bail!(missing("its playground.json is of another kimage"));
        }
        Ok(playground)
    }

    /// What executes the machines.
    pub fn accelerator(&self) -> Accelerator {
        if self.kvm {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }
}

/// Whether a supervisor holds the playground in `folder`.
pub fn is_running(folder: &Path) -> bool {
    Identity::read(&folder.join(supervisor::PID_FILE)).is_some_and(|identity| identity.is_running())
}
