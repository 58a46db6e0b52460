//! One machine on bench A, metadata services of all platforms around it, and a pod in it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kimage_qemu_tests::cluster::address;
use kimage_qemu_tests::cluster::keys::{Etcd, Keys};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::images::{command, finish, release};
use kimage_qemu_tests::namespaces::machine::{Blueprint, Contained, Special};
use kimage_qemu_tests::namespaces::network::{BENCH, Network};
use serde_json::Value;
use tempfile::TempDir;

const NAME: &str = "w1";
/// Nobody is there.
const ENDPOINT: &str = "10.89.0.1:6443";
/// Port of the pod's own server.
const PROBED: u16 = 8080;
/// What the services say.
const SECRET: &str = "the cluster's keys";
/// An answer comes in no time, or never.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Second addresses of the bench and the machine.
const BENCH6: &str = "fd00:89::1";
const MACHINE6: &str = "fd00:89::31";
/// Of each family: the bridge's address, the pod's, what both share, and how the bench gets there.
const PODS: [[&str; 4]; 2] = [
    ["10.244.0.1/24", "10.244.0.2/24", "10.244.0.0/24", "10.89.0.31"],
    ["fd00:244::1/64", "fd00:244::2/64", "fd00:244::/64", MACHINE6],
];

/// The NodeConfig of a worker.
pub(crate) fn worker() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let keys = Keys::create(folder.path().join("keys"), "bench", ENDPOINT, Etcd::Stacked)?;
    Ok(serde_json::from_str(&keys.user_data("worker", &[])?)?)
}

/// A machine and its network.
pub(crate) struct Site {
    // The machine goes before the network that it is plugged into.
    pub(crate) machine: Contained,
    network: Network,
    _shared: TempDir,
}

impl Site {
    /// A worker with this NodeConfig and these files over its `/etc`, switched off.
    pub(crate) fn new(config: &str, etc: Vec<(&'static str, String)>) -> Result<Self> {
        let network = Network::new()?;
        let shared = tempfile::tempdir()?;
        let blueprint = Blueprint {
            release: release("ubuntu-24.04", "worker")?,
            name: NAME.to_owned(),
            address: address("w", 1),
            config: config.to_owned(),
            instance: "i-1".to_owned(),
            zone: "a".to_owned(),
            shared: shared.path().to_owned(),
            special: Special {
                etc,
                ..Special::default()
            },
        };
        let site = Self {
            machine: Contained::new(&network, blueprint)?,
            network,
            _shared: shared,
        };
        site.bench(&format!("addr add {BENCH6}/64 dev bench nodad"))?;
        site.inside(&format!("addr add {MACHINE6}/64 dev host0 nodad"))?;
        site.inside(&format!("-6 route add default via {BENCH6}"))?;
        for [_, _, range, machine] in PODS {
            site.bench(&format!("route add {range} via {machine}"))?;
        }
        Ok(site)
    }

    /// Runs ip(8) where the services are.
    fn bench(&self, words: &str) -> Result<()> {
        ip(&format!("-n {} {words}", self.network.name()))
    }

    /// Runs ip(8) in the machine's network.
    fn inside(&self, words: &str) -> Result<()> {
        ip(&format!("-n {} {words}", self.namespace()?))
    }

    fn namespace(&self) -> Result<String> {
        let path = self.machine.cable().namespace();
        let name = path.rsplit('/').next().context("a namespace has a name")?;
        Ok(name.to_owned())
    }

    /// Cuts the power. What the kernel of a machine knows is gone then; the bench's cable keeps the rules of its network.
    pub(crate) fn cut_power(&mut self) -> Result<()> {
        self.machine.kill()?;
        let namespace = self.namespace()?;
        finish(command("ip").args(["netns", "exec", &namespace, "nft", "flush", "ruleset"])).map(drop)
    }

    /// Asks a server in the pod from a metadata service's `address`.
    pub(crate) fn probes(&self, pod: &Pod, address: &str) -> Result<()> {
        let place = SocketAddr::new(pod.address()?, PROBED);
        let listener = pod.within(|| TcpListener::bind(place).context("serve in the pod"))?;
        self.bench(&format!(
            "route replace {} via {} src {address}",
            place.ip(),
            PODS[0][3]
        ))?;
        serve(listener);
        self.network.within(|| ask(place.ip(), PROBED))
    }

    /// Asks `address` as the machine itself.
    pub(crate) fn asks(&self, address: IpAddr, port: u16) -> Result<()> {
        self.machine.cable().within(|| ask(address, port))
    }
}

/// Metadata services of all platforms.
pub(crate) struct Metadata;

impl Metadata {
    /// Serves `addresses` to everybody in the machine's network, on these ports; so does the bench's own address.
    pub(crate) fn start(site: &Site, addresses: &[IpAddr], ports: &[u16]) -> Result<Self> {
        for address in addresses {
            let words = match address {
                IpAddr::V4(address) => format!("addr add {address}/32 dev bench"),
                IpAddr::V6(address) => format!("addr add {address}/128 dev bench nodad"),
            };
            site.bench(&words)?;
        }
        for port in ports {
            let listener = site
                .network
                .within(|| TcpListener::bind(("::", *port)).context("serve metadata"))?;
            serve(listener);
        }
        Ok(Self)
    }

    /// Addresses at which the same is served and that are nobody's metadata service.
    pub(crate) fn ordinary(&self) -> Result<[IpAddr; 2]> {
        Ok([BENCH.into(), BENCH6.parse()?])
    }
}

/// Answers everybody, on a thread that ends with the test's process.
fn serve(listener: TcpListener) {
    // Whoever hangs up gets nothing.
    thread::spawn(move || {
        listener
            .incoming()
            .flatten()
            .for_each(|socket| drop(answer(socket)))
    });
}

fn answer(mut socket: TcpStream) -> Result<()> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut request = [0; 512];
    ensure!(socket.read(&mut request)? > 0, "no request");
    Ok(write!(socket, "HTTP/1.0 200 OK\r\n\r\n{SECRET}")?)
}

/// A network of its own behind a bridge of the machine.
pub(crate) struct Pod {
    namespace: String,
}

impl Pod {
    /// A pod on the machine.
    pub(crate) fn on(site: &Site) -> Result<Self> {
        let namespace = format!("{}-pod", site.namespace()?);
        ip(&format!("netns add {namespace}"))?;
        let pod = Self { namespace };
        let own = |words: &str| ip(&format!("-n {} {words}", pod.namespace));
        site.inside("link add cni0 type bridge forward_delay 0")?;
        site.inside(&format!(
            "link add pod type veth peer name eth0 netns {}",
            pod.namespace
        ))?;
        site.inside("link set pod master cni0 up")?;
        site.inside("link set cni0 up")?;
        own("link set eth0 up")?;
        for [bridge, address, ..] in PODS {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let nodad = if family == "-6" { "nodad" } else { "" };
            site.inside(&format!("addr add {bridge} dev cni0 {nodad}"))?;
            own(&format!("addr add {address} dev eth0 {nodad}"))?;
            let gateway = bridge.split('/').next().unwrap_or(bridge);
            own(&format!("{family} route add default via {gateway}"))?;
        }
        Ok(pod)
    }

    /// Asks `address` from within the pod.
    pub(crate) fn asks(&self, address: IpAddr, port: u16) -> Result<()> {
        self.within(|| ask(address, port))
    }

    /// Its first address.
    fn address(&self) -> Result<IpAddr> {
        let [_, address, ..] = PODS[0];
        Ok(address.split('/').next().unwrap_or(address).parse()?)
    }

    /// Does `work` with the network as the pod sees it, on a thread of its own.
    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let working = scope.spawn(|| {
                Network::enter(&self.namespace)?;
                work()
            });
            working
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a thread in the pod panicked"))
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(ip(&format!("netns del {}", self.namespace)));
    }
}

/// Whether what a metadata service says comes from there.
fn ask(address: IpAddr, port: u16) -> Result<()> {
    let mut socket = TcpStream::connect_timeout(&SocketAddr::new(address, port), TIMEOUT)
        .with_context(|| format!("ask {address}"))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(b"GET /latest/user-data HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    ensure!(text.contains(SECRET), "{address} says {text}");
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    finish(command("ip").args(words.split_ascii_whitespace())).map(drop)
}
