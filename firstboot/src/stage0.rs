//! Stage 0: the first process. It finds the root partition that belongs to the root hash on the signed command line, on
//! the disk that the firmware started, puts dm-verity over it, mounts it and hands over to systemd.
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

mod choice;
pub mod command_line;
pub mod console;
mod device_mapper;
mod devices;
mod disks;
pub mod firmware;
mod modules;
pub mod report;
mod root;
pub mod verity;

use crate::gpt::Guid;
use command_line::CommandLine;
use devices::Devices;
use disks::{Found, Outcome, Search};
use modules::{Drivers, Modules};
use report::{Clock, Report};

/// How long devices may take to appear, unless `kimage.root_timeout` says otherwise. Large SCSI hosts need half a
/// minute.
const ROOT_TIMEOUT: Duration = Duration::from_secs(90);
/// So long no device may appear before a disk that others could look like is taken to be the only one.
const SETTLE: Duration = Duration::from_secs(1);
/// The longest wait for that.
const MAX_SETTLE: Duration = Duration::from_secs(15);
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
        let found = find_root(&command_line, booted_partition(&modules), &mut drivers);
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

/// The firmware's word about the disk that it started. One that can't be believed is none: then a second disk with the
/// root stops the machine.
fn booted_partition(modules: &Modules) -> Option<Guid> {
    let word = modules.load("efivarfs").and_then(|()| firmware::boot_partition());
    word.unwrap_or_else(|error| {
        console::say(&format!("the firmware's word is of no use: {error:#}"));
        None
    })
}

fn find_root(command_line: &CommandLine, booted: Option<Guid>, drivers: &mut Drivers) -> Result<Found> {
    let start = Instant::now();
    let timeout = command_line.root_timeout.unwrap_or(ROOT_TIMEOUT);
    let mut told = false;
    let mut search = Search::new(&command_line.root_hash, booted);
    let mut devices = Devices::listen()?;
    let mut calm = Calm::begin();
    loop {
        // On most clouds the kernel itself drives the disk: then no driver is loaded at all, and udev does it later.
        let mut outcome = search.look()?;
        for modalias in devices.new_modaliases() {
            if let Outcome::Sure(found) = outcome {
                return Ok(*found);
            }
            if drivers.load_for(&modalias) {
                calm.disturb();
                outcome = search.look()?;
            }
        }
        let longest = match outcome {
            Outcome::Sure(found) => return Ok(*found),
            Outcome::Likely(found) => match calm.lacks() {
                Some(left) if start.elapsed() < timeout => left,
                _ => return Ok(*found),
            },
            Outcome::Missing => timeout,
        };
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
        if devices.wait(left.min(longest))? {
            calm.disturb();
        }
    }
}

/// Whether devices still appear.
struct Calm {
    since: Instant,
    /// When it began to matter.
    asked: Option<Instant>,
}

impl Calm {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            asked: None,
        }
    }

    /// A device has appeared, or may have.
    fn disturb(&mut self) {
        self.since = Instant::now();
    }

    /// How much longer nothing must happen; `None` when it was long enough, or takes too long.
    fn lacks(&mut self) -> Option<Duration> {
        let asked = *self.asked.get_or_insert_with(Instant::now);
        let left = SETTLE.checked_sub(self.since.elapsed());
        left.filter(|left| !left.is_zero() && asked.elapsed() < MAX_SETTLE)
    }
}
