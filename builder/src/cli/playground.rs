//! What can be said to the cluster that runs on this host.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};
use kimage_roles::node_config::is_dns_label;

use super::Acceleration;
use super::cluster::lifetime;

/// `kimage cluster up`.
#[derive(Debug, Args)]
#[command(after_help = "\
DIR becomes a cluster's folder: its keys, its machines' disks, and a kubeconfig, whose path is all that standard output
gets. Machines boot copies of OUT/control-plane and OUT/worker with Secure Boot on; a role that is not in OUT is built
first. Needs QEMU 7.2 or newer and OVMF (packages qemu-system-x86, qemu-utils, ovmf), and no root: the network is
QEMU's own, the load balancer kimage's. Only this host reaches the API, at 127.0.0.1:PORT.

It returns when all machines are in service; Ctrl-C does not end the cluster, `kimage cluster down DIR` does. With KVM
that takes a minute or so, and all machines boot at once. Without, they are emulated and boot one after the other: some
minutes for the first, and as much again for each further one.

A cluster without workers takes pods once its control planes do:
  kubectl --kubeconfig DIR/kubeconfig taint nodes --all node-role.kubernetes.io/control-plane-

Examples:
  kimage cluster up demo
  kimage cluster up demo --control-planes 1 --workers 1      the smallest with pods
  export KUBECONFIG=$(kimage cluster up demo --workers 3)
  kimage cluster down demo")]
pub struct ClusterUp {
    /// The new folder
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// How many control planes, each with a member of etcd
    #[arg(long, value_name = "N", default_value = "3", value_parser = odd())]
    pub control_planes: u8,
    /// How many workers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub workers: u8,
    /// Name of the cluster: letters, digits and dashes, as in a host name
    #[arg(long, value_name = "NAME", default_value = "playground", value_parser = name)]
    pub name: String,
    /// Folder with the folders of built roles; what is missing is built there
    #[arg(long, value_name = "OUT", default_value = "out", value_hint = ValueHint::DirPath)]
    pub image_dir: PathBuf,
    /// Port of the API on 127.0.0.1 [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..))]
    pub port: Option<u16>,
    /// Memory of each control plane in MiB
    #[arg(long, value_name = "MIB", default_value_t = 3072, value_parser = clap::value_parser!(u32).range(1024..))]
    pub control_plane_memory: u32,
    /// Memory of each worker in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1536, value_parser = clap::value_parser!(u32).range(768..))]
    pub worker_memory: u32,
    /// Virtual processors of each machine
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// What executes the machines' code; auto tries KVM first
    #[arg(long, value_name = "HOW", value_enum, default_value = "auto")]
    pub accel: Acceleration,
    /// How long to wait for all machines, as 90s, 45m or 2h; the cluster goes on afterwards
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = lifetime)]
    pub timeout: Duration,
}

/// `kimage cluster down`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends the processes that `kimage cluster up` started, and no others: each is known by its number and its start time. Then
removes what up made: machines with their disks, the cluster's keys, the kubeconfig, and DIR itself unless you keep
files of your own in it. Keys that `kimage cluster new` made are never in such a folder. It may be run again at any time,
also after a crash or a reboot of the host.")]
pub struct ClusterDown {
    /// Folder that `kimage cluster up` made
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// `kimage cluster serve`, which `up` starts.
#[derive(Debug, Args)]
pub struct ClusterServe {
    /// Folder that `kimage cluster up` made
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// A majority of an even number survives no more losses than that of one less.
fn odd() -> impl TypedValueParser<Value = u8> {
    PossibleValuesParser::new(["1", "3", "5"]).map(|count| match count.as_str() {
        "1" => 1,
        "3" => 3,
        _ => 5,
    })
}

fn name(text: &str) -> Result<String, String> {
    is_dns_label(text)
        .then(|| text.to_owned())
        .ok_or_else(|| format!("`{text}` is not 1 to 63 lower-case letters, digits and inner dashes"))
}
