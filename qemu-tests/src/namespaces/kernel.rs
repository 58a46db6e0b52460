//! What machines in namespaces need because they share this host's kernel, laid over their `/etc` from outside. The
//! image itself has none of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Settings of the one kernel that all machines share: their own can't reach it from inside. The first is a limit (a
/// machine needs some twenty watches); the others are what a kubelet insists on and may not set itself there.
const SETTINGS: [(&str, u32); 4] = [
    ("/proc/sys/fs/inotify/max_user_instances", 8192),
    ("/proc/sys/kernel/panic", 10),
    ("/proc/sys/kernel/panic_on_oops", 1),
    ("/proc/sys/vm/overcommit_memory", 1),
];
/// The host may have control groups of version 1, which the kubelet has given up; no pod runs there. All machines lie on
/// the host's disk, which may be large and rather full: the kubelet's own limits are shares of it (a tenth, a sixth), and
/// would taint every Node though gigabytes are left.
const KUBELET: &str = r#"{
  "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
  "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
  "protectKernelDefaults": false, "imageGCHighThresholdPercent": 100,
  "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"}
}
"#;

/// Lets this host carry several machines: sets what differs, says so, and leaves it set, for another bench may run.
#[expect(
    clippy::print_stdout,
    reason = "whoever runs tests should know what they change on the host"
)]
pub(super) fn prepare_host() -> Result<()> {
    for (path, wanted) in SETTINGS {
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        if text.trim().parse::<u32>().ok() != Some(wanted) {
            println!("bench: set {path} from {} to {wanted}", text.trim());
            fs::write(path, wanted.to_string())
                .with_context(|| format!("set {path}: run the tests as root"))?;
        }
    }
    Ok(())
}

/// Writes the files below `etc`, an empty folder that lies over the image's, and `more` of a machine's own.
pub(super) fn adapt(etc: &Path, more: &[(&str, String)]) -> Result<()> {
    let write = |path: &str, text: &str| -> Result<()> {
        let path = etc.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(path, text)?)
    };
    for (path, text) in more {
        write(path, text)?;
    }
    write("kubernetes/kubelet.conf.d/90-bench.conf", KUBELET)?;
    write(
        "default/kubelet",
        "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n",
    )
}
