//! What machines in namespaces need because they share this host's kernel, laid over their `/etc` from outside. The
//! image itself has none of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

/// The kubelet wants these values and may not set them for the whole host: it sees others instead.
const SETTINGS: [(&str, &str); 3] = [
    ("kernel/panic", "10\n"),
    ("kernel/panic_on_oops", "1\n"),
    ("vm/overcommit_memory", "1\n"),
];
const UNIT: &str = "bench-kernel.service";
/// The host may have control groups of version 1, which the kubelet has given up; no pod runs there.
const KUBELET: &str = r#"{
  "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
  "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
  "protectKernelDefaults": false
}
"#;

/// Watches of files that all machines together may hold: a machine needs some twenty, and the images' own setting
/// can't reach the host from inside.
const WATCHES: (&str, u32) = ("/proc/sys/fs/inotify/max_user_instances", 8192);

/// Lets this host carry several machines. The setting stays: it is a limit, nothing is used by it.
pub(super) fn prepare_host() -> Result<()> {
    let (path, wanted) = WATCHES;
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    if text.trim().parse::<u32>()? < wanted {
        fs::write(path, wanted.to_string()).with_context(|| format!("set {path}: run the tests as root"))?;
    }
    Ok(())
}

/// Writes the files below `etc`, an empty folder that lies over the image's.
pub(super) fn adapt(etc: &Path) -> Result<()> {
    let write = |path: &str, text: &str| -> Result<()> {
        let path = etc.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(path, text)?)
    };
    let mut unit =
        "[Unit]\nBefore=kimage-firstboot.service\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
            .to_owned();
    for (name, value) in SETTINGS {
        write(&format!("bench/{name}"), value)?;
        unit.push_str(&format!(
            "ExecStart=mount --bind /etc/bench/{name} /proc/sys/{name}\n"
        ));
    }
    write(&format!("systemd/system/{UNIT}"), &unit)?;
    let wanted = etc.join("systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    symlink(format!("../{UNIT}"), wanted.join(UNIT))?;
    write("kubernetes/kubelet.conf.d/90-bench.conf", KUBELET)?;
    write(
        "default/kubelet",
        "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n",
    )
}
