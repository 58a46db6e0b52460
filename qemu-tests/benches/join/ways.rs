//! The ways in which a machine of the worker image joins, and what each lays over the image's `/etc`.

use std::fmt;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use kimage_qemu_tests::namespaces::balancer::PORT;
use kimage_qemu_tests::namespaces::machine::SHARED;
use kimage_qemu_tests::namespaces::network::BENCH;
use serde_json::{Value, json};

/// Who joins a machine to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `kimage-firstboot`, as it ships.
    Kimage,
    /// `kimage-firstboot`, with a network that others have installed already.
    KimageInstalledNetwork,
    /// The real `kubeadm join`, with the same network.
    Kubeadm,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Kimage, Self::KimageInstalledNetwork, Self::Kubeadm];

    /// Letter that names of its machines begin with.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Kimage => 'f',
            Self::KimageInstalledNetwork => 'i',
            Self::Kubeadm => 'k',
        }
    }

    /// The unit that joins.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Kimage | Self::KimageInstalledNetwork => "kimage-firstboot.service",
            Self::Kubeadm => KUBEADM_UNIT,
        }
    }

    /// What the machine is told, made from the ordinary NodeConfig of a worker.
    pub(crate) fn config(self, ordinary: &str) -> Result<String> {
        let mut config: Value = serde_json::from_str(ordinary).context("a worker's NodeConfig")?;
        match self {
            Self::Kimage => {}
            Self::KimageInstalledNetwork => {
                config["network"] = json!({"plugin": "none", "networkPolicy": "none", "kubeProxy": "none"});
            }
            // Nobody asks.
            Self::Kubeadm => return Ok(String::new()),
        }
        Ok(config.to_string())
    }

    /// Files over the image's `/etc`. `ordinary` is a worker's NodeConfig: it has what kubeadm must know too.
    pub(crate) fn files(
        self,
        name: &str,
        address: Ipv4Addr,
        ordinary: &str,
    ) -> Result<Vec<(&'static str, String)>> {
        let wrapped = |unit: &str, program: &str| {
            let command = timed(&format!("/usr/lib/kimage/kimage-firstboot {program}"), name, unit);
            format!("[Service]\nExecStart=\nExecStart={command}\n")
        };
        let mut files = vec![(
            "systemd/system/kimage-containers.service.d/bench.conf",
            wrapped(CONTAINERS, "containers"),
        )];
        if self != Self::Kimage {
            files.push(("cni/net.d/10-bench.conflist", network()));
        }
        if self == Self::Kubeadm {
            files.extend(kubeadm(name, address, ordinary)?);
        } else {
            let unit = "systemd/system/kimage-firstboot.service.d/bench.conf";
            files.push((unit, wrapped(JOINING, "boot")));
        }
        Ok(files)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kimage => "kimage with its network (flannel, proxy, policy)",
            Self::KimageInstalledNetwork => "kimage, network installed before",
            Self::Kubeadm => "kubeadm join, network installed before",
        })
    }
}

/// Endings of the files with processor times.
pub(crate) const JOINING: &str = "joining";
pub(crate) const CONTAINERS: &str = "containers";
const KUBEADM_UNIT: &str = "kubeadm-join.service";

/// A command that leaves its processor times (and those of all that it waited for) in the shared folder.
fn timed(command: &str, name: &str, what: &str) -> String {
    // `$$` is systemd's way to write `$`. The times come whole or not at all.
    format!(
        "/bin/sh -c '{command}; code=$$?; times > {SHARED}/{name}.new; mv {SHARED}/{name}.new {SHARED}/{name}.{what}; exit $$code'"
    )
}

/// Configuration of a network that needs nothing from anybody: the fastest that a kubelet can wait for.
fn network() -> String {
    json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [{"type": "ptp", "ipam": {"type": "host-local",
        "subnet": "10.244.250.0/24"}}]})
    .to_string()
}

/// kubeadm in place of first boot, in favour of kubeadm: its program is there, names need no DNS, its kubelet waits
/// instead of failing until there is a configuration, and what the image's layout asks of the kubelet is written.
fn kubeadm(name: &str, address: Ipv4Addr, ordinary: &str) -> Result<Vec<(&'static str, String)>> {
    let config: Value = serde_json::from_str(ordinary).context("a worker's NodeConfig")?;
    let word = |pointer: &str| {
        let value = config.pointer(pointer).and_then(Value::as_str);
        value.with_context(|| format!("a NodeConfig without {pointer}"))
    };
    let join = format!(
        "{SHARED}/kubeadm join {BENCH}:{PORT} --token {} --discovery-token-ca-cert-hash {} --ignore-preflight-errors=all",
        word("/join/token")?,
        word("/join/caCertHashes/0")?
    );
    println!(
        "{name}: kubeadm join {BENCH}:{PORT} --token ... --discovery-token-ca-cert-hash ... --ignore-preflight-errors=all"
    );
    let unit = format!(
        "[Unit]\nWants=network-online.target\nAfter=network-online.target containerd.service systemd-tmpfiles-setup.service\n\
         [Service]\nType=exec\nExecStart={}\n",
        timed(&join, name, JOINING)
    );
    // As in kubeadm's own package.
    let kubelet = "[Unit]\nConditionPathExists=\nConditionPathExists=/var/lib/kubelet/config.yaml\n\
        [Service]\nEnvironmentFile=\nEnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
        EnvironmentFile=-/etc/default/kubelet\nExecStart=\n\
        ExecStart=/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
        --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS \
        $KUBELET_EXTRA_ARGS\n";
    let layout = json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "volumePluginDir": "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
        "resolvConf": "/run/systemd/resolve/resolv.conf"});
    Ok(vec![
        // An empty unit is a masked one (systemd.unit(5)).
        ("systemd/system/kimage-firstboot.service", String::new()),
        ("systemd/system/kubeadm-join.service", unit),
        (
            "systemd/system/multi-user.target.d/bench.conf",
            format!("[Unit]\nWants={KUBEADM_UNIT}\n"),
        ),
        (
            "systemd/system/kubelet.service.d/10-kubeadm.conf",
            kubelet.to_owned(),
        ),
        ("kubernetes/kubelet.conf.d/80-image.conf", layout.to_string()),
        (
            "hosts",
            format!("127.0.0.1 localhost\n::1 localhost\n{address} {name}\n"),
        ),
    ])
}
