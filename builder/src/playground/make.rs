//! Makes the folder of a playground: keys, NodeConfigs, disks.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use kimage_roles::node_config::{
    Certificates, Cidr, Cluster, Endpoint, EtcdLayout, Formation, Network, NodeRole, StaticMember, Timing,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::hardware::{DISK, META_DATA, NODE_CONFIG, VARIABLES};
use super::{
    CLUSTER, GATEWAY, KUBECONFIG, MACHINES, MARKER, Machine, NETWORK, Playground, SCHEMA, is_running,
};
use crate::cluster::{self, Description, EtcdSection, Folder, KubeconfigOrder};
use crate::failure::{ExitCode, Failure};
use crate::partitions::guid::Guid;
use crate::pipeline::DiskFormat;
use crate::private;
use crate::qemu::{Disk, Format};
use crate::release::names;

/// What a machine has for its state.
const STATE_BYTES: u64 = 8 << 30;
/// How long the kubeconfig is valid: longer than anybody plays.
const KUBECONFIG_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Last byte of the first control plane's and of the first worker's address.
const FIRST_CONTROL_PLANE: u8 = 11;
const FIRST_WORKER: u8 = 31;

/// What a playground shall be.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name of the cluster.
    pub name: String,
    /// How many machines of each kind.
    pub control_planes: u8,
    /// See `control_planes`.
    pub workers: u8,
    /// Memory in MiB.
    pub control_plane_memory_mb: u32,
    /// See `control_plane_memory_mb`.
    pub worker_memory_mb: u32,
    /// Processors of each machine.
    pub cpus: u32,
    /// Port of the balancer; any free one otherwise.
    pub port: Option<u16>,
    /// Whether KVM works here.
    pub kvm: bool,
    /// Folder with the folders of built roles.
    pub images: PathBuf,
}

/// `count` ports of 127.0.0.1 that nobody has now, other than `not`.
fn choose_ports(count: usize, not: Option<u16>) -> Result<Vec<u16>> {
    // All are held until the last is found, so that they differ.
    let mut held = Vec::new();
    while held.len() < count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        let port = listener.local_addr().context("find a free port")?.port();
        if Some(port) != not {
            held.push((port, listener));
        }
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// Makes the playground in `folder`, which must be absent or empty: whole, or not at all.
///
/// # Errors
/// Exit code 2 when something is there already, with a hint.
pub fn make(folder: &Path, order: &Order) -> Result<Playground> {
    refuse(folder)?;
    let playground = design(order)?;
    private::create_folder(folder, |inside| fill(inside, &playground, order))?;
    Ok(playground)
}

/// Says what is in the way of a playground in `folder`.
///
/// # Errors
/// Something is there already: exit code 2, with a hint.
pub fn refuse(folder: &Path) -> Result<()> {
    let place = folder.display();
    let usage = |message: String, hint: String| Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
    if folder.join(MARKER).exists() {
        let down = format!("`kimage cluster down {place}` removes it");
        if is_running(folder) {
            return usage(
                format!("{place}: a cluster runs here already"),
                format!("use it: kubectl --kubeconfig {place}/{KUBECONFIG} get nodes; {down}"),
            );
        }
        return usage(
            format!(
                "{place}: here is a cluster whose processes have ended, or that was never wholly started"
            ),
            format!("{down}; then start again"),
        );
    }
    if folder.join("cluster.toml").exists() {
        return usage(
            format!("{place}: here are the keys of a cluster that `kimage cluster new` made"),
            "name another folder: a playground makes keys of its own".to_owned(),
        );
    }
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return usage(
            format!("{place} exists and is not empty"),
            "name a folder that does not exist yet".to_owned(),
        );
    }
    Ok(())
}

/// Names, addresses and ports.
fn design(order: &Order) -> Result<Playground> {
    let mut ports = choose_ports(usize::from(order.control_planes) + 1, order.port)?;
    let any = ports.pop().context("no free port")?;
    let mut machines = Vec::new();
    for number in 0..order.control_planes {
        machines.push(Machine {
            name: format!("cp-{}", number + 1),
            role: NodeRole::ControlPlane,
            address: address(FIRST_CONTROL_PLANE + number),
            uuid: uuid()?,
            memory_mb: order.control_plane_memory_mb,
            cpus: order.cpus,
            forward: ports.pop(),
        });
    }
    for number in 0..order.workers {
        machines.push(Machine {
            name: format!("worker-{}", number + 1),
            role: NodeRole::Worker,
            address: address(FIRST_WORKER + number),
            uuid: uuid()?,
            memory_mb: order.worker_memory_mb,
            cpus: order.cpus,
            forward: None,
        });
    }
    Ok(Playground {
        schema: SCHEMA,
        name: order.name.clone(),
        port: order.port.unwrap_or(any),
        kvm: order.kvm,
        machines,
    })
}

fn address(last: u8) -> Ipv4Addr {
    let [a, b, c, _] = GATEWAY.octets();
    Ipv4Addr::new(a, b, c, last)
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Result<String> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    if filled.is_err() {
        bail!("the system gives no entropy");
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Guid::from_bytes(bytes).to_string())
}

fn fill(inside: &Path, playground: &Playground, order: &Order) -> Result<()> {
    let now = SystemTime::now();
    let keys = inside.join(CLUSTER);
    cluster::create(&keys, &description(playground)?, now, None)?;
    let keys = Folder::open(&keys)?;
    fs::create_dir(inside.join(NETWORK)).context("make the folder of sockets")?;
    fs::create_dir(inside.join(MACHINES)).context("make the folder of machines")?;
    for machine in &playground.machines {
        fill_machine(&inside.join(machine.folder()), machine, playground, &keys, order)
            .with_context(|| format!("make machine {}", machine.name))?;
    }
    let administrator = KubeconfigOrder {
        user: "kubernetes-admin".to_owned(),
        group: "kubeadm:cluster-admins".to_owned(),
        lifetime: KUBECONFIG_LIFETIME,
        server: Some(endpoint(Ipv4Addr::LOCALHOST, playground.port)?),
    };
    let kubeconfig = cluster::kubeconfig(&keys, &administrator, now)?;
    private::write_new(&inside.join(KUBECONFIG), kubeconfig.reveal().as_bytes())?;
    let json = serde_json::to_vec_pretty(playground).context("write the playground's description")?;
    private::write_new(&inside.join(MARKER), &json)
}

fn endpoint(host: Ipv4Addr, port: u16) -> Result<Endpoint> {
    let text = format!("{host}:{port}");
    text.parse().map_err(|error| anyhow::anyhow!("{text}: {error}"))
}

fn range(text: &str) -> Result<Cidr> {
    text.parse().map_err(|error| anyhow::anyhow!("{text}: {error}"))
}

fn description(playground: &Playground) -> Result<Description> {
    let timing = if playground.kvm {
        Timing::default()
    } else {
        // Machines that share too few emulated processors answer late; that must not look like death.
        Timing {
            etcd_heartbeat_milliseconds: 1000,
            etcd_election_milliseconds: 10_000,
            leader_lease_seconds: 120,
            node_grace_seconds: 200,
        }
    };
    Ok(Description {
        cluster: Cluster {
            name: playground.name.clone(),
            endpoint: endpoint(GATEWAY, playground.port)?,
            // Where the host's own kubectl and the balancer's checks reach it.
            api_names: vec![Ipv4Addr::LOCALHOST.to_string()],
            service_subnet: range("10.96.0.0/12")?,
            pod_subnet: range("10.244.0.0/16")?,
            dns_domain: "cluster.local".to_owned(),
        },
        etcd: EtcdSection {
            layout: EtcdLayout::Stacked,
        },
        network: Network::default(),
        timing,
        certificates: Certificates::default(),
    })
}

fn fill_machine(
    folder: &Path,
    machine: &Machine,
    playground: &Playground,
    keys: &Folder,
    order: &Order,
) -> Result<()> {
    fs::create_dir(folder).context("make its folder")?;
    let control_planes = playground
        .machines
        .iter()
        .filter(|other| other.role == NodeRole::ControlPlane);
    let members = control_planes.map(|other| StaticMember {
        name: other.name.clone(),
        address: IpAddr::V4(other.address),
    });
    let stacked = machine.role == NodeRole::ControlPlane;
    let document = cluster::Order {
        role: machine.role,
        formation: stacked.then(|| Formation::Static(members.collect())),
        inventory: None,
        labels: Default::default(),
        taints: Vec::new(),
    };
    let document = cluster::user_data(keys, &document)?;
    private::write_new(&folder.join(NODE_CONFIG), document.reveal().as_bytes())?;
    let known = json!({ "instance-id": machine.uuid, "local-hostname": machine.name });
    private::write_new(&folder.join(META_DATA), known.to_string().as_bytes())?;
    let release = order.images.join(machine.role.as_str());
    let image = release.join(DiskFormat::Raw.file_name());
    let size = fs::metadata(&image)
        .with_context(|| format!("look at {}", image.display()))?
        .len();
    Disk::overlay(&image, Format::Raw, &folder.join(DISK), Some(size + STATE_BYTES))?;
    let variables = release.join(names::OVMF_VARS);
    // Not `fs::copy`: a read-only release must not make a read-only variable store.
    let copied = File::open(&variables)
        .and_then(|mut from| std::io::copy(&mut from, &mut File::create(folder.join(VARIABLES))?));
    copied.with_context(|| format!("copy {}", variables.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn machines_differ_in_all_that_names_them() {
        let order = Order {
            name: "demo".to_owned(),
            control_planes: 5,
            workers: 8,
            control_plane_memory_mb: 2048,
            worker_memory_mb: 1536,
            cpus: 2,
            port: None,
            kvm: true,
            images: PathBuf::new(),
        };
        let playground = design(&order).unwrap();
        let machines = &playground.machines;
        assert_eq!(machines.len(), 13);
        let count = |value: fn(&Machine) -> String| machines.iter().map(value).collect::<BTreeSet<_>>().len();
        assert_eq!(count(|machine| machine.name.clone()), 13);
        assert_eq!(count(|machine| format!("{:?}", machine.mac())), 13);
        assert_eq!(count(|machine| machine.uuid.clone()), 13);
        let mut ports: BTreeSet<u16> = machines.iter().filter_map(|machine| machine.forward).collect();
        assert!(ports.len() == 5 && ports.insert(playground.port));
        let uuid = &machines[0].uuid;
        assert!(uuid.len() == 36 && uuid.as_bytes()[14] == b'4', "{uuid}");
    }
}
