//! Whoever was root on a machine once, and what is left of it after a reboot: the root is under verity, so a program must
//! come from the machine's own disk. Bench A, whose `/var` is mounted as `kimage-state` mounts it.

#![expect(
    clippy::unwrap_used,
    reason = "what this test needs and does not find ends it"
)]

use std::time::Duration;

use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::cluster::{address, until};
use kimage_qemu_tests::images::release;
use kimage_qemu_tests::namespaces::machine::{Blueprint, Contained, Special};
use kimage_qemu_tests::namespaces::network::Network;

/// For a boot on a busy host.
const BOOT: Duration = Duration::from_secs(120);
/// Places that outlive a reboot, and of which programs know.
const PLACES: [&str; 5] = [
    "/var/tmp",
    "/var/lib/kimage",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/cni",
];
/// Where the kubelet looks for volume plugins, which it runs as root.
const VOLUME_PLUGINS: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";

fn boot(machine: &mut Contained) {
    machine.start().unwrap();
    let up = until(BOOT, "the machine is up", || {
        let words = [
            "systemctl",
            "is-active",
            "containerd.service",
            "opt-cni-bin.mount",
        ];
        machine.run(&words)
    });
    up.unwrap();
}

/// Writes a program and runs it.
fn runs(machine: &Contained, path: &str) -> anyhow::Result<()> {
    let write = "mkdir -p \"${1%/*}\" && printf '#!/bin/true\\n' > \"$1\" && chmod 755 \"$1\"";
    machine.run(&["sh", "-euc", write, "sh", path])?;
    machine.run(&[path]).map(drop)
}

#[test]
fn nothing_on_a_machines_disk_runs_but_what_pods_bring_and_plugins_do_not_outlive_a_reboot() {
    let network = Network::new().unwrap();
    let shared = tempfile::tempdir().unwrap();
    let blueprint = Blueprint {
        release: release("ubuntu-24.04", "worker").unwrap(),
        name: "w1".to_owned(),
        address: address("w", 1),
        config: String::new(),
        instance: "i-1".to_owned(),
        zone: "a".to_owned(),
        shared: shared.path().to_owned(),
        special: Special::default(),
    };
    let mut machine = Contained::new(&network, blueprint).unwrap();
    boot(&mut machine);

    for place in PLACES {
        let refusal = runs(&machine, &format!("{place}/planted")).unwrap_err();
        assert!(
            format!("{refusal:#}").contains("Permission denied"),
            "{refusal:#}"
        );
    }
    // An init container may copy a program into an emptyDir.
    runs(
        &machine,
        "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~empty-dir/bin/program",
    )
    .unwrap();
    files_of_containers_run(&machine);
    // The add-on of another network brings plugins, which containerd runs.
    runs(&machine, "/opt/cni/bin/planted").unwrap();
    let volume_plugin = runs(&machine, &format!("{VOLUME_PLUGINS}/planted/planted")).unwrap_err();
    assert!(
        format!("{volume_plugin:#}").contains("Read-only"),
        "{volume_plugin:#}"
    );

    machine.kill().unwrap();
    boot(&mut machine);
    assert_eq!(machine.run(&["ls", "-A", "/opt/cni/bin"]).unwrap(), "");
    let aside = "umount /opt/cni/bin && rmdir /var/lib/cni/bin && mkdir /var/lib/cni/aside && \
        cp /var/lib/cni/planted /var/lib/cni/aside/ && ln -s aside /var/lib/cni/bin";
    machine.run(&["sh", "-euc", aside]).unwrap();
    machine.kill().unwrap();
    boot(&mut machine);
    assert_eq!(machine.run(&["ls", "-A", "/opt/cni/bin"]).unwrap(), "");
    // Whoever adds one to them now finds the folder where it belongs.
    runs(&machine, "/opt/cni/bin/planted").unwrap();
}

/// What containerd's snapshotter mounts, of folders that lie on `/var`.
fn files_of_containers_run(machine: &Contained) {
    let overlay = "cd /var/lib/containerd; mkdir lower upper work root; printf '#!/bin/true\\n' > lower/program; \
        chmod 755 lower/program; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root";
    machine.run(&["sh", "-euc", overlay]).unwrap();
    machine.run(&["/var/lib/containerd/root/program"]).unwrap();
    runs(machine, "/var/lib/containerd/root/written").unwrap();
    machine.run(&["umount", "/var/lib/containerd/root"]).unwrap();
}
