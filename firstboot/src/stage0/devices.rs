//! Which devices the machine has, and waiting for more of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The kernel's events; group 2 would be udev's.
const KERNEL_GROUP: u32 = 1;
/// Longest sleep between two looks around, should the kernel have dropped an event.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest modalias that is taken seriously.
const MAX_MODALIAS: usize = 4096;

/// The machine's devices as sysfs shows them.
pub(super) struct Devices {
    events: OwnedFd,
    seen: BTreeSet<String>,
}

impl Devices {
    /// Starts listening. It must come before the first look, so that no device can slip in between.
    pub(super) fn listen() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let events = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(KOBJECT_UEVENT),
        );
        let events = events.context("open the kernel's event socket")?;
        bind(&events, &SocketAddrNetlink::new(0, KERNEL_GROUP)).context("listen to the kernel's events")?;
        Ok(Self {
            events,
            seen: BTreeSet::new(),
        })
    }

    /// The modaliases of devices that were not there at the last call, sorted.
    pub(super) fn new_modaliases(&mut self) -> Vec<String> {
        let mut new = Vec::new();
        for device in folders(Path::new("/sys/bus"))
            .iter()
            .flat_map(|bus| folders(&bus.join("devices")))
        {
            // Most devices have none, and a device can vanish while it is looked at.
            let Ok(text) = fs::read_to_string(device.join("modalias")) else {
                continue;
            };
            let modalias = text.trim_end();
            if !modalias.is_empty() && modalias.len() <= MAX_MODALIAS && self.seen.insert(modalias.to_owned())
            {
                new.push(modalias.to_owned());
            }
        }
        new.sort();
        new
    }

    /// Returns when the kernel reports a change, after a second, or after `longest`; says whether it was a change.
    pub(super) fn wait(&mut self, longest: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(longest.min(LOOK_AGAIN)).context("wait for devices")?;
        let changed = match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(error) => return Err(error).context("wait for devices"),
        };
        // What an event says does not matter: sysfs is read anew. So a lost event (ENOBUFS) is as good as one.
        let mut buffer = [0; 8192];
        while !matches!(
            recv(&self.events, &mut buffer[..], RecvFlags::empty()),
            Err(Errno::AGAIN)
        ) {}
        Ok(changed)
    }
}

fn folders(path: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
