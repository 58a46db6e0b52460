//! One machine in namespaces: systemd-nspawn around the root of a built image.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kimage_builder::release::manifest::Manifest;
use kimage_roles::status::{Outcome, Phase, Status};
use tempfile::TempDir;

use super::cluster::Shared;
use super::control_groups::ControlGroups;
use super::kernel;
use super::network::{Cable, Network};
use crate::cluster::machine::{Machine, durations};
use crate::images::{command, finish};
use crate::processes::start_for_good;

/// Between two looks at a file of a machine: its namespaces are not ours, so nothing can wake us.
const POLL: Duration = Duration::from_millis(20);

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Release folder of the image.
    pub release: PathBuf,
    /// Host name, at most 12 letters.
    pub name: String,
    /// Its address in the network.
    pub address: Ipv4Addr,
    /// Its NodeConfig; with an empty one nobody tells the machine anything.
    pub config: String,
    /// Id of the instance; a replacement has another one.
    pub instance: String,
    /// Zone it stands in.
    pub zone: String,
    /// A folder that the machines share, at [`SHARED`] in each.
    pub shared: PathBuf,
    /// What sets it apart from an ordinary machine.
    pub special: Special,
}

/// What sets a machine apart from an ordinary one.
#[derive(Debug, Clone, Default)]
pub struct Special {
    /// Files over the image's `/etc`: path below it and text.
    pub etc: Vec<(&'static str, String)>,
    /// Folders in memory: absolute path and mount options (tmpfs(5)).
    pub memory: Vec<(&'static str, &'static str)>,
    /// Folders with a small disk of their own: absolute path, MiB, number of the user and group that they belong to.
    pub disks: Vec<(&'static str, u32, u32)>,
}

const FIRST_BOOT: &str = "kimage-firstboot.service";

/// Where machines see the folder that they share.
pub const SHARED: &str = "/run/bench";

/// A machine: its disk, and its life while it is switched on. Dropping it switches it off and scraps the disk.
#[derive(Debug)]
pub struct Contained {
    blueprint: Blueprint,
    cable: Cable,
    folder: TempDir,
    root_offset: u64,
    running: Option<Life>,
}

/// A machine while it is switched on.
#[derive(Debug)]
struct Life {
    /// `unshare`, whose one child becomes systemd-nspawn.
    unshare: Child,
    groups: ControlGroups,
}

impl Contained {
    /// A machine with an empty disk, switched off.
    pub fn new(network: &Network, blueprint: Blueprint) -> Result<Self> {
        kernel::prepare_host()?;
        let root_offset = root_offset(&blueprint.release)?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("kimage-{}-", blueprint.name))
            .tempdir_in("/var/tmp")
            .context("make the machine's disk")?;
        for part in ["root", "var", "report"] {
            fs::create_dir(folder.path().join(part))?;
        }
        let cable = network.connect(&blueprint.name, blueprint.address)?;
        Ok(Self {
            blueprint,
            cable,
            folder,
            root_offset,
            running: None,
        })
    }

    /// Its cable.
    pub fn cable(&self) -> &Cable {
        &self.cable
    }

    /// Its disk's `/var`, from outside.
    pub fn var(&self) -> PathBuf {
        self.folder.path().join("var")
    }

    /// Switches the machine off, scraps its disk, and gives back what it was made of.
    pub fn into_blueprint(self) -> Blueprint {
        self.blueprint.clone()
    }

    /// Gives the machine another NodeConfig, which it reads when it is switched on next.
    pub fn tell(&mut self, config: &str) {
        config.clone_into(&mut self.blueprint.config);
    }

    fn arguments(&self) -> Vec<OsString> {
        let folder = self.folder.path();
        let blueprint = &self.blueprint;
        let mut words: Vec<OsString> = vec![
            self.root_offset.to_string().into(),
            blueprint.release.join("disk.raw").into(),
            folder.into(),
        ];
        let mut option = |text: String| words.push(text.into());
        option(format!("--directory={}", folder.join("root").display()));
        option(format!("--machine={}", blueprint.name));
        option(format!("--hostname={}", blueprint.name));
        option(format!("--network-namespace-path={}", self.cable.namespace()));
        option(format!("--bind={}:/run/kimage", folder.join("report").display()));
        option(format!("--bind={}:{SHARED}", blueprint.shared.display()));
        if !blueprint.config.is_empty() {
            for name in ["node-config", "meta-data"] {
                let file = folder.join(name);
                option(format!("--load-credential=kimage.{name}:{}", file.display()));
            }
        }
        words
    }

    /// The newest report of first boot; `None` before the first one.
    pub fn status(&self) -> Option<Status> {
        let bytes = fs::read(self.folder.path().join("report/status.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Waits until `done` says so of a report.
    pub fn wait_until(
        &mut self,
        deadline: Duration,
        what: &str,
        mut done: impl FnMut(&Status) -> Result<bool>,
    ) -> Result<Status> {
        let end = Instant::now() + deadline;
        loop {
            let status = self.status();
            if let Some(status) = &status {
                let answer =
                    done(status).with_context(|| format!("{what}: {status:?}\n{}", self.journal_tail()))?;
                if answer {
                    return Ok(status.clone());
                }
            }
            let life = self.running.as_mut().context("the machine is off")?;
            if let Some(exit) = life.unshare.try_wait()? {
                bail!("{what}: the machine ended ({exit})\n{}", self.console_tail());
            }
            if Instant::now() > end {
                bail!("{what}: {deadline:?} passed; {status:?}\n{}", self.journal_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops first boot; what it reported is forgotten.
    pub fn stop_first_boot(&self) -> Result<()> {
        self.run(&["systemctl", "stop", FIRST_BOOT])?;
        drop(fs::remove_file(self.folder.path().join("report/status.json")));
        Ok(())
    }

    /// Runs first boot anew, as after a crash of it; what it reported before is forgotten.
    pub fn repeat_first_boot(&self) -> Result<()> {
        self.stop_first_boot()?;
        // One that ends at once may end before systemd has seen it start, which it then calls a failure.
        self.run(&["systemctl", "--no-block", "start", FIRST_BOOT])
            .map(drop)
    }

    /// The main process of the service that runs these words, as this host numbers it.
    pub fn service(&self, words: &[&str]) -> Result<Option<Service>> {
        // The kernel ends each word with a zero byte (proc_pid_cmdline(5)).
        let words: String = words.iter().map(|word| format!("{word}\0")).collect();
        // Services are children of the machine's first process.
        let services = children(self.leader()?).into_iter();
        let mut services = services.map(|process| Service {
            process,
            words: words.clone(),
        });
        Ok(services.find(Service::lives))
    }

    /// Runs `program` inside the machine and returns what it printed.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        let output = finish(&mut self.inside(program)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `program`, ready to be run inside the machine.
    pub fn inside(&self, program: &[&str]) -> Result<Command> {
        let leader = self.leader()?;
        let mut enter = command("nsenter");
        enter.args([
            "--target",
            &leader.to_string(),
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--",
        ]);
        enter.args(program);
        Ok(enter)
    }

    fn leader(&self) -> Result<i32> {
        let life = self.running.as_ref().context("the machine is off")?;
        let unshare = i32::try_from(life.unshare.id())?;
        first_process(unshare).with_context(|| format!("{} has no first process yet", self.name()))
    }

    /// What went wrong first, and the end of the journal.
    pub fn journal_tail(&self) -> String {
        let warnings = self.journal(&["--priority=warning", "--output=short-monotonic"]);
        let first: Vec<&str> = warnings.lines().take(40).collect();
        let end = self.journal(&["--output=short-monotonic", "--lines=120"]);
        format!(
            "first warnings:\n{}\nend of the journal:\n{end}",
            first.join("\n")
        )
    }

    /// What journalctl prints of this machine's journal; why it can't, if it can't.
    fn journal(&self, options: &[&str]) -> String {
        let mut journal = command("journalctl");
        journal
            .arg("--directory")
            .arg(self.var().join("log/journal"))
            .args(["--no-pager", "--quiet"])
            .args(options);
        finish(&mut journal).map_or_else(
            |error| format!("{error:#}"),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn console_tail(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        crate::console::tail(&bytes)
    }
}

impl Machine for Contained {
    type Site = Shared;

    fn name(&self) -> &str {
        &self.blueprint.name
    }

    fn address(&self) -> Ipv4Addr {
        self.blueprint.address
    }

    fn instance(&self) -> &str {
        &self.blueprint.instance
    }

    fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.name());
        let folder = self.folder.path();
        // A new life begins without the report of the last one.
        drop(fs::remove_file(folder.join("report/status.json")));
        fs::write(folder.join("node-config"), &self.blueprint.config)?;
        let Blueprint {
            name,
            address,
            instance,
            zone,
            ..
        } = &self.blueprint;
        fs::write(
            folder.join("meta-data"),
            format!(
                "instance-id: {instance}\nlocal-hostname: {name}\nlocal-ipv4: {address}\navailability-zone: {zone}\nregion: bench\n"
            ),
        )?;
        let overlay = folder.join("etc");
        drop(fs::remove_dir_all(&overlay));
        fs::create_dir_all(overlay.join("work"))?;
        let special = &self.blueprint.special;
        kernel::adapt(&overlay.join("upper"), &special.etc).context("lay the bench's files over /etc")?;
        fs::write(folder.join("mounts"), mounts(special, folder)?)?;
        let unique = folder.file_name().context("a machine's folder has a name")?;
        let groups = ControlGroups::new(Path::new(unique))?;
        fs::write(folder.join("control-groups"), groups.doors())?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("console"))?;
        let mut unshare = command("unshare");
        unshare
            .args(["--mount", "--propagation", "private"])
            // With its first process a process namespace ends, and `unshare` ends with the test.
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-euc", BOOT, "sh"])
            .args(self.arguments())
            // As on a machine of its own: kube-proxy writes there (systemd-nspawn, docs/ENVIRONMENT.md).
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let unshare = start_for_good(unshare).context("start unshare: run `qemu-tests/run-all` once")?;
        self.running = Some(Life { unshare, groups });
        Ok(())
    }

    /// Every process of the machine is killed where it stands.
    fn kill(&mut self) -> Result<()> {
        let Some(Life { mut unshare, groups }) = self.running.take() else {
            return Ok(());
        };
        let process = i32::try_from(unshare.id()).context("a process id is an i32")?;
        // All processes of a namespace are killed and gone before its first one is (pid_namespaces(7)).
        match children(process).first() {
            Some(nspawn) => signal(*nspawn),
            None => signal(process),
        }
        unshare.wait().context("wait for the machine's end")?;
        groups.remove()
    }

    fn wait_for(&mut self, phase: Phase, deadline: Duration) -> Result<Status> {
        let arrived = |status: &Status| {
            status.phase > phase || status.phase == phase && status.outcome == Outcome::Done
        };
        self.wait_until(deadline, &format!("{} of {phase:?}", self.name()), |status| {
            if status.outcome == Outcome::Failed {
                bail!("first boot failed");
            }
            Ok(arrived(status))
        })
    }

    fn phases(&mut self) -> Vec<(String, Duration)> {
        let text = self.journal(&["--output=cat", &format!("--unit={FIRST_BOOT}")]);
        durations(text.lines().filter_map(Status::from_console_line)).collect()
    }

    fn renew(self, network: &Network, _site: &Shared, instance: &str) -> Result<Self> {
        let mut blueprint = self.into_blueprint();
        blueprint.instance = instance.to_owned();
        Self::new(network, blueprint)
    }
}

/// A service of a machine.
#[derive(Debug)]
pub struct Service {
    process: i32,
    words: String,
}

impl Service {
    fn lives(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/cmdline", self.process)).is_ok_and(|words| words == self.words)
    }

    /// Its id on this host.
    pub fn process(&self) -> i32 {
        self.process
    }

    /// Kills it where it stands and waits for its end; `false` when it has ended before.
    pub fn kill(self) -> bool {
        let lived = self.lives();
        if lived {
            signal(self.process);
        }
        while self.lives() {
            std::thread::sleep(Duration::from_millis(1));
        }
        lived
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// Mounts what stage 0 and `kimage-state` mount in a machine with a disk, enters the machine's control groups, then
/// becomes systemd-nspawn. The mount namespace is its own and ends with it. The container may do what a machine may: load
/// what the kernel has, mount, change the network.
const BOOT: &str = r#"
offset=$1 disk=$2 folder=$3; shift 3
mount -t squashfs -o ro,loop,offset="$offset" "$disk" "$folder/root"
mount -t overlay -o "lowerdir=$folder/root/etc,upperdir=$folder/etc/upper,workdir=$folder/etc/work" overlay "$folder/root/etc"
if [ ! -e "$folder/filled" ]; then
    if [ -d "$folder/root/usr/share/factory/var" ]; then cp -a "$folder/root/usr/share/factory/var/." "$folder/var/"; fi
    : > "$folder/filled"
fi
mount --bind "$folder/var" "$folder/root/var"
mount -o remount,bind,nosuid,nodev,noexec "$folder/root/var"
while read -r place type options source; do
    mkdir -p "$folder/root$place"
    mount -t "$type" -o "$options" "$source" "$folder/root$place"
done < "$folder/mounts"
while read -r door; do echo $$ > "$door"; done < "$folder/control-groups"
# Machines share one image: its files are the same inodes for all of them.
export SYSTEMD_NSPAWN_LOCK=0
exec systemd-nspawn --quiet --boot --register=no --keep-unit --capability=all --console=pipe --bind=/dev/kmsg \
    --system-call-filter='@system-service @mount @module @keyring bpf perf_event_open' "$@"
"#;

/// Filesystems of a machine's own, a line each as [`BOOT`] reads it. Disks are made if need be.
fn mounts(special: &Special, folder: &Path) -> Result<String> {
    let mut lines = String::new();
    for (place, options) in &special.memory {
        lines.push_str(&format!("{place} tmpfs {options} tmpfs\n"));
    }
    for (index, (place, size, owner)) in special.disks.iter().enumerate() {
        let disk = folder.join(format!("disk-{index}"));
        if !disk.exists() {
            let mut make = command("mkfs.ext4");
            make.args(["-q", "-m", "0", "-E", &format!("root_owner={owner}:{owner}")]);
            finish(make.arg(&disk).arg(format!("{size}M")))?;
        }
        lines.push_str(&format!("{place} ext4 loop {}\n", disk.display()));
    }
    Ok(lines)
}

/// Where the root filesystem begins in `disk.raw`, in bytes.
fn root_offset(release: &Path) -> Result<u64> {
    let path = release.join("manifest.json");
    let manifest =
        Manifest::from_json(&fs::read(&path).with_context(|| format!("read {}", path.display()))?)?;
    let root = manifest
        .partitions
        .iter()
        .find(|partition| partition.name == "root-a");
    Ok(root.context("the manifest has no partition root-a")?.offset)
}

/// The container's first process, below `unshare` and systemd-nspawn.
fn first_process(unshare: i32) -> Option<i32> {
    let mut below = children(unshare).into_iter().flat_map(children);
    below.find(|process| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        name.trim_end() == "systemd"
    })
}

fn children(process: i32) -> Vec<i32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn signal(process: i32) {
    #[expect(unsafe_code, reason = "the standard library kills children only")]
    // SAFETY: no memory is involved; the process is the machine's own.
    unsafe {
        libc::kill(process, libc::SIGKILL);
    }
}
