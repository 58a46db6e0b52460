//! A network of the bench's own: a network namespace with a bridge, and one more for each machine, joined by a cable
//! that can be pulled. Nothing of it reaches the host's network. It ends with the value that stands for it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::images::{command, finish};

/// The bench's own address: balancer, metadata and clients are there.
pub const BENCH: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
const PREFIX: u8 = 16;
/// Where iproute2 keeps named namespaces (ip-netns(8)).
const FOLDER: &str = "/run/netns";

/// A bridge in a namespace.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// A new network with the bench at [`BENCH`].
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("kimage-{}-{number}", std::process::id()),
        };
        ip(&format!("netns add {}", network.name))?;
        network.ip("link set lo up")?;
        // No spanning tree: a cable that is plugged in carries frames at once.
        network.ip("link add bench type bridge forward_delay 0 stp_state 0")?;
        network.ip(&format!("addr add {BENCH}/{PREFIX} dev bench"))?;
        network.ip("link set bench up")?;
        Ok(network)
    }

    /// Name of the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects a machine called `name`, of at most 12 letters, which gets `address`.
    pub fn connect(&self, name: &str, address: Ipv4Addr) -> Result<Cable> {
        let cable = Cable {
            network: self.name.clone(),
            namespace: format!("{}-{name}", self.name),
            port: name.to_owned(),
        };
        ip(&format!("netns add {}", cable.namespace))?;
        self.ip(&format!(
            "link add {name} type veth peer name host0 netns {}",
            cable.namespace
        ))?;
        self.ip(&format!("link set {name} master bench"))?;
        self.ip(&format!("link set {name} up"))?;
        let inside = |words: &str| ip(&format!("-n {} {words}", cable.namespace));
        inside("link set lo up")?;
        inside(&format!("addr add {address}/{PREFIX} dev host0"))?;
        inside("link set host0 up")?;
        inside(&format!("route add default via {BENCH}"))?;
        Ok(cable)
    }

    /// Does `work` with the network as this bench sees it, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.name, work)
    }

    /// From now on this thread sees the network called `name`, and no other any more.
    pub fn enter(name: &str) -> Result<()> {
        Self::enter_opened(&Self::open(name)?).with_context(|| format!("enter network {name}"))
    }

    /// The namespace of the network called `name`, for [`Network::enter_opened`].
    pub(crate) fn open(name: &str) -> Result<File> {
        let path = format!("{FOLDER}/{name}");
        File::open(&path).with_context(|| format!("open {path}"))
    }

    /// As [`Network::enter`], with nothing but a system call.
    pub(crate) fn enter_opened(namespace: &File) -> Result<(), Errno> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
    }

    /// Connects a virtual machine called `name`, of at most 12 letters. What address it gets is DHCP's matter.
    pub fn tap(&self, name: &str, address: Ipv4Addr) -> Result<Tap> {
        let tap = Tap {
            network: self.name.clone(),
            name: name.to_owned(),
            address,
        };
        self.ip(&format!("tuntap add {name} mode tap"))?;
        self.ip(&format!("link set {name} master bench up"))?;
        Ok(tap)
    }

    /// Gives the bench one more address, of its own only.
    pub fn alias(&self, address: Ipv4Addr) -> Result<()> {
        self.ip(&format!("addr add {address}/32 dev bench"))
    }

    /// `program`, to be started with the network as this bench sees it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn ip(&self, words: &str) -> Result<()> {
        ip(&format!("-n {} {words}", self.name))
    }
}

/// Does `work` in the network called `name`, on a thread of its own.
pub(super) fn within<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            Network::enter(name)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("a thread in network {name} panicked")))
    })
}

/// A virtual machine's connection to the bridge: the other end is QEMU's.
#[derive(Debug)]
pub struct Tap {
    network: String,
    name: String,
    address: Ipv4Addr,
}

impl Tap {
    /// Name of the network.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hardware address of the machine's port.
    pub fn hardware_address(&self) -> String {
        hardware_address(self.address)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(ip(&format!("-n {} link del {}", self.network, self.name)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(ip(&format!("netns del {}", self.name)));
    }
}

/// A machine's connection to the bridge.
#[derive(Debug)]
pub struct Cable {
    network: String,
    namespace: String,
    port: String,
}

impl Cable {
    /// Path of the machine's network namespace.
    pub fn namespace(&self) -> String {
        format!("{FOLDER}/{}", self.namespace)
    }

    /// Does `work` with the network as the machine sees it, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.namespace, work)
    }

    /// Name of the network that the cable leads to.
    pub(super) fn network(&self) -> &str {
        &self.network
    }

    /// Name of the bridge's port that the cable is plugged into.
    pub(super) fn port(&self) -> &str {
        &self.port
    }

    /// Pulls the cable: nothing gets through until [`Cable::plug`].
    pub fn unplug(&self) -> Result<()> {
        ip(&format!(
            "-n {} link set {} nomaster down",
            self.network, self.port
        ))
    }

    /// Plugs the cable in again.
    pub fn plug(&self) -> Result<()> {
        ip(&format!(
            "-n {} link set {} master bench up",
            self.network, self.port
        ))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // A namespace takes its end of the cable with it only some time later, and a new machine may want the port now.
        drop(ip(&format!("-n {} link del {}", self.network, self.port)));
        drop(ip(&format!("netns del {}", self.namespace)));
    }
}

/// Hardware address of the virtual machine at `address`: QEMU's prefix, and one part for each address of the network.
pub fn hardware_address(address: Ipv4Addr) -> String {
    let [_, _, high, low] = address.octets();
    format!("52:54:00:89:{high:02x}:{low:02x}")
}

/// Runs ip(8).
pub(super) fn ip(words: &str) -> Result<()> {
    finish(command("ip").args(words.split_ascii_whitespace())).map(drop)
}
