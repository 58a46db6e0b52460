//! What can be seen of a machine from outside while it joins: its journal, its disk, its processor time, its agent.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kimage_qemu_tests::cluster::machine::Machine;
use kimage_qemu_tests::images::{command, finish};
use kimage_qemu_tests::namespaces::machine::Contained;

/// Bytes in a sector of block statistics (Documentation/block/stat.rst), whatever the device's are.
const SECTOR: u64 = 512;
/// What the journal says when a machine has come to something.
const MARKS: [(&str, &str); 6] = [
    ("systemd runs", "systemd[1]: "),
    (
        "the network is online",
        "systemd[1]: Reached target network-online.target",
    ),
    ("containerd serves", "containerd successfully booted"),
    ("the kubelet is started", "systemd[1]: Starting kubelet.service"),
    ("the kubelet serves", "systemd[1]: Started kubelet.service"),
    ("flannel has its subnet", "systemd[1]: Started flanneld.service"),
];

/// Something that happened on the way.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) what: String,
    /// After the machine was switched on.
    pub(crate) after: Duration,
}

/// What the machine's own records tell, without what the API saw.
pub(crate) fn marks(machine: &Contained, joiner: &str, on: SystemTime) -> Result<Vec<Mark>> {
    let mut found = Vec::new();
    let mut keep = |what: &str, when: SystemTime| {
        // The host's clock may step; what was before the start is none of this life's.
        if let Ok(after) = when.duration_since(on) {
            let what = what.to_owned();
            found.push(Mark { what, after });
        }
    };
    let lines = journal(machine)?;
    let (what, text) = (format!("{joiner} runs"), format!("systemd[1]: Started {joiner}"));
    for (what, text) in MARKS.into_iter().chain([(what.as_str(), text.as_str())]) {
        let line = lines.lines().find(|line| line.contains(text));
        let time: Option<f64> = line.and_then(|line| line.split(' ').next()?.parse().ok());
        if let Some(time) = time {
            keep(what, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(time));
        }
    }
    let certificate = machine.var().join("lib/kubelet/pki/kubelet-client-current.pem");
    let link = fs::symlink_metadata(&certificate).context("the kubelet's certificate")?;
    let (seconds, part) = (u64::try_from(link.mtime())?, u32::try_from(link.mtime_nsec())?);
    keep(
        "kubelet has its certificate",
        SystemTime::UNIX_EPOCH + Duration::new(seconds, part),
    );
    Ok(found)
}

/// All that the machine has written down, each line with its time in seconds since 1970.
fn journal(machine: &Contained) -> Result<String> {
    let mut journal = command("journalctl");
    journal.arg("--directory").arg(machine.var().join("log/journal"));
    let output = finish(journal.args(["--no-pager", "--quiet", "--output=short-unix"]))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lets the host forget what it has read of `image`: waits until the device of the machine before is free of it, then
/// drops all clean pages, since a device keeps its own when it gets another file.
pub(crate) fn make_cold(image: &Path, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    while disks()?.keys().any(|device| is_on(device, image)) {
        ensure!(Instant::now() < end, "{} is still in use", image.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::File::open(image)?.sync_all()?;
    fs::write("/proc/sys/vm/drop_caches", "1").context("drop pages")
}

/// Whether a loop device has this file.
fn is_on(device: &Path, image: &Path) -> bool {
    let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    Path::new(backing.trim_end()) == image
}

/// Bytes that each loop device has read since it was made; it keeps counting when it gets another file.
pub(crate) fn disks() -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for device in fs::read_dir("/sys/block").context("read /sys/block")? {
        let device = device?.path();
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("loop") {
            continue;
        }
        let statistics = fs::read_to_string(device.join("stat"))?;
        let sectors = statistics.split_whitespace().nth(2);
        let sectors: u64 = sectors.context("a device's statistics")?.parse()?;
        found.insert(device, sectors * SECTOR);
    }
    Ok(found)
}

/// Bytes that the one loop device on `image` has read since it was as in `before`.
pub(crate) fn disk_bytes(image: &Path, before: &BTreeMap<PathBuf, u64>) -> Result<u64> {
    let mut now = disks()?;
    now.retain(|device, _| is_on(device, image));
    ensure!(
        now.len() == 1,
        "{} loop devices on {}",
        now.len(),
        image.display()
    );
    let (device, bytes) = now.pop_first().context("a loop device")?;
    Ok(bytes - before.get(&device).copied().unwrap_or_default())
}

/// Processor time that a command has left: the sum of all that the shell's `times` says.
pub(crate) fn processor(path: &Path, patience: Duration) -> Result<Duration> {
    let end = Instant::now() + patience;
    let text = loop {
        match fs::read_to_string(path) {
            Ok(text) => break text,
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    // `0m0.010s 0m0.020s`, the shell itself and then what it waited for.
    let mut sum = Duration::ZERO;
    for word in text.split_whitespace() {
        let (minutes, seconds) = word.trim_end_matches('s').split_once('m').context("a time")?;
        sum += Duration::from_secs(60 * minutes.parse::<u64>()?) + Duration::from_secs_f64(seconds.parse()?);
    }
    Ok(sum)
}

/// An agent at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agent {
    pub(crate) when: Instant,
    /// Since its start.
    pub(crate) processor: Duration,
    pub(crate) resident_mb: f64,
    pub(crate) proportional_mb: f64,
    pub(crate) peak_mb: f64,
}

/// The agent of a machine.
pub(crate) fn agent(machine: &Contained) -> Result<Agent> {
    let show = [
        "systemctl",
        "show",
        "--property=MainPID",
        "--value",
        "kimage-agent.service",
    ];
    let process = machine.run(&show)?.trim().to_owned();
    ensure!(process != "0", "{} has no agent", machine.name());
    let read = |name: &str| machine.run(&["cat", &format!("/proc/{process}/{name}")]);
    let (memory, status, stat) = (read("smaps_rollup")?, read("status")?, read("stat")?);
    // Fields 14 to 17 (proc_pid_stat(5)); the second may have spaces and ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("stat of a process")?;
    let ticks = fields.split_whitespace().skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Agent {
        when: Instant::now(),
        processor: Duration::from_millis(10 * ticks),
        resident_mb: megabytes(&memory, "Rss:")?,
        proportional_mb: megabytes(&memory, "Pss:")?,
        peak_mb: megabytes(&status, "VmHWM:")?,
    })
}

/// A line `Key: 12 kB` in MB (10^6 bytes).
fn megabytes(text: &str, key: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.with_context(|| format!("no {key} of a process"))? * 1024.0 / 1e6)
}
