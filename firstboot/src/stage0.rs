//! Stage 0: the first process. It finds the root partition that belongs to the root hash on the signed command line,
//! puts dm-verity over it, mounts it and hands over to systemd.
//!
//! A failure is one line on the console, then the process ends, which the kernel answers with a panic. With
//! `panic=10` on the command line the machine then reboots, and boot counting can fall back to the other version;
//! without it the machine stands still, for a person to read.
//!
//! Words of the command line that it reads: `roothash=<64 hex digits>` and `kimage.root_timeout=<seconds>`.

use std::convert::Infallible;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

pub mod command_line;
pub mod console;
mod device_mapper;
mod devices;
mod disks;
mod modules;
pub mod report;
mod root;
pub mod verity;

use command_line::CommandLine;
use devices::Devices;
use disks::Search;
use modules::{Drivers, Modules};
use report::{Clock, Report};

/// How long devices may take to appear, unless `kimage.root_timeout` says otherwise. Large SCSI hosts need half a
/// minute.
const ROOT_TIMEOUT: Duration = Duration::from_secs(90);
/// After this long a person at the console is told what stage 0 waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does everything from the first instruction to systemd's. Returns only on failure.
pub fn run() -> Result<Infallible> {
    // 1. The kernel's own file systems, before anything can be read.
    root::mount_kernel_filesystems()?;
    let mut clock = Clock::start();
    let command_line = CommandLine::read(Path::new("/proc/cmdline"))?;

    // 2. What every machine needs (dm-verity, the overlay), while
    // 3. the partitions are looked for, with drivers for the devices that are there.
    let modules = Modules::open()?;
    let mut drivers = modules.drivers();
    let found = thread::scope(|scope| {
        let always = scope.spawn(|| modules.load_always());
        let found = find_root(&command_line, &mut drivers);
        clock.phase("root found");
        // A thread that panics ends the process; there is no other way not to join.
        always.join().map_err(|_| anyhow!("loading modules panicked"))??;
        found
    })?;
    if found.from_backup {
        console::say(&format!(
            "{}: primary partition table is damaged, used the backup",
            found.disk
        ));
    }
    clock.phase("modules");

    // 4. The verified root.
    let superblock = verity::read(&found).with_context(|| format!("disk {}", found.disk))?;
    let target = superblock.target(&found, &command_line.root_hash);
    let device = device_mapper::create("root", superblock.sectors(), "verity", &target)?;
    clock.phase("verity");

    // 5. The mounts of the real root, and the way there.
    root::mount_root(device)?;
    clock.phase("mounts");
    let report = Report::new(&command_line.root_hash, &found, drivers.loaded(), &clock);
    report.write()?;
    console::say(&report.line());
    root::switch()
}

fn find_root(command_line: &CommandLine, drivers: &mut Drivers) -> Result<disks::Found> {
    let start = Instant::now();
    let timeout = command_line.root_timeout.unwrap_or(ROOT_TIMEOUT);
    let mut told = false;
    let mut search = Search::new(&command_line.root_hash);
    let mut devices = Devices::listen()?;
    loop {
        // On most clouds the kernel itself drives the disk: then no driver is loaded at all, and udev does it later.
        if let Some(found) = search.look()? {
            return Ok(found);
        }
        for modalias in devices.new_modaliases() {
            if drivers.load_for(&modalias)
                && let Some(found) = search.look()?
            {
                return Ok(found);
            }
        }
        let passed = start.elapsed();
        if !told && passed >= PATIENCE {
            told = true;
            console::say(&format!(
                "waiting for {}; so far: {}",
                search.wanted(),
                search.seen()
            ));
        }
        let left = timeout.checked_sub(passed).filter(|left| !left.is_zero());
        let left = left.with_context(|| {
            let seconds = timeout.as_secs();
            format!(
                "no disk has {} after {seconds} s; looked at: {}",
                search.wanted(),
                search.seen()
            )
        })?;
        devices.wait(left)?;
    }
}
