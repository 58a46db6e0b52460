//! `kimage-firstboot state`: `/var` on the part of the disk that the image does not take.
//!
//! The image is small; the disk is what the customer paid for. Early at every boot this takes the disk that stage 0 chose
//! as the machine's own (see [`crate::stage0`]), makes the second slot and the state partition in its free space (or lets the state grow where the disk has
//! grown), mounts it on `/var` and fills in what the image ships for `/var`. Without room `/var` is in memory, and
//! the console says so.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use crate::gpt::{Guid, Partition, Table};
use crate::stage0::report::Report;
use crate::storage::{PartitionChange, tell_kernel};
use crate::{host, role, sysfs};

pub mod ext4;
pub mod factory;
pub mod plan;
pub mod table;

use ext4::Superblock;
use table::Host;

const VAR: &str = "/var";
const FACTORY: &str = "/usr/share/factory/var";
/// What is written to a disk is no program: only what is under verity runs after a reboot. Volumes of pods are an
/// exception (`var-lib-kubelet-pods.mount`); containers' own files are an overlay, which has flags of its own.
const FLAGS: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Prepares the disk and mounts `/var`.
pub fn run() -> Result<()> {
    let report = Report::read()?;
    // The very device that stage 0 chose; what other disks call their partitions is never asked.
    let disk = sysfs::open(
        &report.disk,
        report.device,
        OpenOptions::new().read(true).write(true),
    )?;
    let mut machine = Machine {
        name: &report.disk,
        disk: &disk,
        sector_size: report.sector_size,
    };
    let declared = role::read()?.root_size_mib;
    let state = table::prepare(&disk, report.sector_size, declared, &mut machine);
    match state.with_context(|| format!("prepare disk {}", report.disk))? {
        Some(partition) => mount_state(
            &machine.node(&partition)?,
            partition.sectors() * report.sector_size,
        )?,
        None => {
            say(&format!(
                "disk {} has no room for a state partition: /var is in memory and is lost at power-off",
                report.disk
            ));
            mount("var", VAR, "tmpfs", FLAGS, c"mode=755,size=50%").context("mount tmpfs on /var")?;
        }
    }
    if Path::new(FACTORY).is_dir() {
        factory::fill(Path::new(FACTORY), Path::new(VAR)).context("fill /var from the factory")?;
    }
    Ok(())
}

fn mount_state(device: &Path, length: u64) -> Result<()> {
    let shown = device.display();
    let superblock = || {
        let file = File::open(device).with_context(|| format!("open {shown}"))?;
        Superblock::read(&file).with_context(|| format!("{shown}"))
    };
    let try_mount = || mount(device, VAR, "ext4", FLAGS, c"");
    if superblock()?.needs_check {
        say(&format!("{shown} is checked: its filesystem has recorded errors"));
        ext4::check(device)?;
    }
    if let Err(error) = try_mount() {
        say(&format!("{shown} is checked: it can't be mounted ({error})"));
        ext4::check(device)?;
        try_mount().with_context(|| format!("mount {shown} on {VAR}"))?;
    }
    let size = superblock()?.size;
    if superblock()?.should_grow_to(length) {
        // The node can live with the smaller filesystem; a failure to grow must not keep it from booting.
        match ext4::grow(device) {
            Ok(()) => say(&format!(
                "{shown} grew from {} MiB to {} MiB",
                size >> 20,
                length >> 20
            )),
            Err(error) => say(&format!("{shown} could not grow: {error:#}")),
        }
    }
    Ok(())
}

/// The machine this runs on.
struct Machine<'a> {
    name: &'a str,
    disk: &'a File,
    sector_size: u64,
}

impl Machine<'_> {
    fn place(&self, partition: &Partition) -> (u64, u64) {
        (
            partition.first * self.sector_size,
            partition.sectors() * self.sector_size,
        )
    }

    /// The device node of a partition, which must be the kernel's as well as the table's.
    fn node(&self, partition: &Partition) -> Result<PathBuf> {
        let known = sysfs::partitions(self.name)?;
        let known = known.into_iter().find(|known| known.number == partition.number);
        let known = known.with_context(|| format!("the kernel has no partition {}", partition.number))?;
        ensure!(
            (known.start, known.length) == self.place(partition),
            "the kernel has partition {} elsewhere",
            partition.number
        );
        sysfs::open(&known.name, known.device, OpenOptions::new().read(true))?;
        Ok(sysfs::node(&known.name))
    }
}

impl Host for Machine<'_> {
    fn new_id(&mut self) -> Result<Guid> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context("read /dev/urandom")?;
        // Version 4, variant 1 (RFC 9562).
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Guid::from_text_order(bytes))
    }

    fn announce(&mut self, table: &Table) -> Result<()> {
        let known = sysfs::partitions(self.name)?;
        for partition in &table.partitions {
            let (start, length) = self.place(partition);
            let change = match known.iter().find(|known| known.number == partition.number) {
                None => PartitionChange::Add,
                Some(known) if known.start == start && known.length < length => PartitionChange::Resize,
                Some(_) => continue,
            };
            let told = tell_kernel(self.disk, change, partition.number, start, length);
            told.with_context(|| {
                format!(
                    "tell the kernel about partition {} ({change:?})",
                    partition.number
                )
            })?;
        }
        Ok(())
    }

    fn make_filesystem(&mut self, partition: &Partition) -> Result<()> {
        let node = self.node(partition)?;
        ext4::make(&node).with_context(|| format!("make a filesystem on {}", node.display()))
    }

    fn say(&mut self, text: &str) {
        say(&format!("disk {}: {text}", self.name));
    }
}

fn say(text: &str) {
    host::say("kimage-state", text);
}
