//! Frames that take their time on a machine's cable. The kernel's own emulator (netem) is in few kernels, so the cable
//! is cut in two and a thread carries the frames across: each end is a TAP device on a bridge, for which the kernel cuts
//! frames to size and completes checksums, as for a real cable.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::network::{Cable, ip, within};
use crate::random::Random;

/// No frame is longer: TAP devices have an MTU of 1500 and no offloads unless they are asked for.
const LONGEST: usize = 2048;

/// How long frames take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// On average, one way.
    pub mean: Duration,
    /// So much less or more, evenly. A frame never overtakes another one.
    pub jitter: Duration,
}

impl Latency {
    fn draw(self, random: &mut Random) -> Duration {
        self.mean - self.jitter + random.duration(2 * self.jitter)
    }
}

/// The frames of a cable are late, both ways, for as long as this lives. Those on their way at its end are lost. It
/// is about the cable as it is: whoever plugs it in anew goes round it.
#[derive(Debug)]
pub struct Delay {
    network: String,
    port: String,
    frames: Arc<AtomicU64>,
    /// Whose other end the thread watches, and the thread.
    carrier: Option<(UnixStream, JoinHandle<Result<()>>)>,
}

impl Delay {
    /// Delays what goes over `cable`, which is plugged in.
    pub fn on(cable: &Cable, latency: Latency) -> Result<Self> {
        ensure!(latency.jitter <= latency.mean, "{latency:?}: no frame is early");
        let mut delay = Self {
            network: cable.network().to_owned(),
            port: cable.port().to_owned(),
            frames: Arc::default(),
            carrier: None,
        };
        let (near, far, bridge) = delay.devices();
        let ends = within(&delay.network, || Ok((tap(&near)?, tap(&far)?)))?;
        let (end, watched) = UnixStream::pair().context("make a pair of sockets")?;
        let relay = Relay {
            ways: [Way::default(), Way::default()],
            latency,
            random: Random::seeded(1),
            frames: Arc::clone(&delay.frames),
        };
        let carrier = thread::spawn(move || relay.carry([&ends.0, &ends.1], &watched));
        delay.carrier = Some((end, carrier));
        let port = &delay.port;
        delay.ip(&format!(
            "link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        ))?;
        delay.ip(&format!("link set {bridge} up"))?;
        delay.ip(&format!("link set {far} master {bridge} up"))?;
        delay.ip(&format!("link set {near} master bench up"))?;
        delay.ip(&format!("link set {port} master {bridge}"))?;
        Ok(delay)
    }

    /// How many frames were carried so far, both ways together.
    pub fn count(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Names of the end at the bench's bridge, of the end at the machine, and of the bridge there.
    fn devices(&self) -> (String, String, String) {
        let device = |ending| format!("{}{ending}", self.port);
        (device("-n"), device("-f"), device("-b"))
    }

    fn ip(&self, words: &str) -> Result<()> {
        ip(&format!("-n {} {words}", self.network))
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        // The machine, and its cable with it, may have gone before.
        drop(self.ip(&format!("link set {} master bench", self.port)));
        if let Some((end, carrier)) = self.carrier.take() {
            drop(end);
            drop(carrier.join());
        }
        let (_, _, bridge) = self.devices();
        drop(self.ip(&format!("link del {bridge}")));
    }
}

/// A TAP device called `name` in this thread's network, which ends with the file. Reading gets what the kernel sends.
fn tap(name: &str) -> Result<File> {
    let path = "/dev/net/tun";
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).with_context(|| format!("open {path}"))?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long for a device");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    #[expect(unsafe_code, reason = "no safe binding knows TUNSETIFF")]
    // SAFETY: the kernel reads and writes the request, which lives until the call is over (tuntap in its documentation).
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("make TAP device {name}"));
    }
    Ok(file)
}

/// Frames that are on their way to one end, the oldest first, each with the moment at which it arrives.
#[derive(Debug, Default)]
struct Way {
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Way {
    /// Takes all frames that wait at `from`, each of which arrives after what `wait` says.
    fn take(&mut self, mut from: &File, mut wait: impl FnMut() -> Duration) -> Result<()> {
        let mut frame = [0; LONGEST];
        loop {
            let length = match from.read(&mut frame) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("read a frame"),
            };
            let arrival = Instant::now() + wait();
            let last = self.under_way.back().map(|(arrival, _)| *arrival);
            let arrival = last.map_or(arrival, |last| arrival.max(last));
            self.under_way.push_back((arrival, frame[..length].to_vec()));
        }
    }

    /// Hands over what has arrived by now, and says how many frames that were.
    fn deliver(&mut self, mut to: &File) -> u64 {
        let mut count = 0;
        let now = Instant::now();
        while let Some((_, frame)) = self.under_way.pop_front_if(|(arrival, _)| *arrival <= now) {
            // Nobody may be there any more: a frame may get lost on any cable.
            drop(to.write(&frame));
            count += 1;
        }
        count
    }

    fn next_arrival(&self) -> Option<Instant> {
        self.under_way.front().map(|(arrival, _)| *arrival)
    }
}

/// Carries frames between two ends, both ways.
struct Relay {
    ways: [Way; 2],
    latency: Latency,
    random: Random,
    frames: Arc<AtomicU64>,
}

impl Relay {
    /// Goes on until the other end of `watched` is gone.
    fn carry(mut self, ends: [&File; 2], watched: &UnixStream) -> Result<()> {
        loop {
            let next = self.ways.iter().filter_map(Way::next_arrival).min();
            let wait = next.map(|next| next.saturating_duration_since(Instant::now()));
            let wait = wait.map(Timespec::try_from).transpose()?;
            let mut waiting = [
                PollFd::new(watched, PollFlags::empty()),
                PollFd::new(ends[0], PollFlags::IN),
                PollFd::new(ends[1], PollFlags::IN),
            ];
            match poll(&mut waiting, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for a frame"),
            }
            if !waiting[0].revents().is_empty() {
                return Ok(());
            }
            for (way, [from, to]) in self.ways.iter_mut().zip([ends, [ends[1], ends[0]]]) {
                way.take(from, || self.latency.draw(&mut self.random))?;
                self.frames.fetch_add(way.deliver(to), Ordering::Relaxed);
            }
        }
    }
}
