//! What the commands of a sandbox may use, all together. A rootless process has no control group, so three things
//! stand for one: limits of each process (setrlimit(2)), sizes of the file systems in memory, and a watch that adds up
//! what all processes hold and ends them when that is too much.

use std::fmt;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Between two looks at all processes.
pub(super) const PERIOD: Duration = Duration::from_millis(250);

/// What the commands of one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory that all processes hold together: anonymous and shared pages, in memory or swapped out. No
    /// process can ask for more than this alone; when the sum passes it, all are ended.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u32,
    /// Bytes of files in `/tmp`, and as many in `/run`: both are memory.
    pub temporary: u64,
    /// Open files of each process.
    pub files: u32,
}

impl Default for Limits {
    /// Enough for a package's scripts and for a compiler on many processors, less than a builder's machine has.
    fn default() -> Self {
        Self {
            memory: 8 << 30,
            tasks: 4096,
            temporary: 2 << 30,
            files: 16_384,
        }
    }
}

/// A limit that was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exceeded {
    /// [`Limits::memory`].
    Memory(u64),
    /// [`Limits::tasks`].
    Tasks(u32),
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "{} MiB of memory", bytes >> 20),
            Self::Tasks(count) => write!(f, "{count} processes and threads"),
        }
    }
}

impl Limits {
    /// Limits this process and all that it will start.
    ///
    /// `RLIMIT_NPROC` counts within the user namespace (Linux 5.14) and does not bind the host's root, so the watch
    /// counts as well. `RLIMIT_DATA` counts what can be written; address space without memory behind it, which Go and
    /// others reserve in plenty, is free.
    pub(super) fn apply(&self) -> io::Result<()> {
        for (resource, value) in [
            (Resource::Core, 0),
            (Resource::Data, self.memory),
            (Resource::Nproc, u64::from(self.tasks)),
        ] {
            limit(resource, value, value)?;
        }
        // The usual soft limit, the same on every host: some programs close all possible descriptors one by one.
        limit(Resource::Nofile, 1024, u64::from(self.files))
    }
}

/// Sets both limits, no higher than they are.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let now = getrlimit(resource).maximum;
    let hard = now.map_or(hard, |now| now.min(hard));
    let new = Rlimit {
        current: Some(soft.min(hard)),
        maximum: Some(hard),
    };
    Ok(setrlimit(resource, new)?)
}

/// Looks at all processes of this PID namespace from time to time.
pub(super) struct Watch {
    limits: Limits,
    looked: Instant,
}

impl Watch {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            looked: Instant::now(),
        }
    }

    /// The limit that is passed now, looked for at most once a [`PERIOD`].
    pub(super) fn exceeded(&mut self) -> io::Result<Option<Exceeded>> {
        if self.looked.elapsed() < PERIOD {
            return Ok(None);
        }
        let found = self.look();
        self.looked = Instant::now();
        found
    }

    fn look(&self) -> io::Result<Option<Exceeded>> {
        let (mut tasks, mut memory) = (0u64, 0u64);
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            // One that has ended meanwhile uses nothing.
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
                continue;
            };
            let usage = Usage::parse(&status);
            tasks += usage.tasks;
            memory = memory.saturating_add(usage.memory);
            if tasks > u64::from(self.limits.tasks) {
                return Ok(Some(Exceeded::Tasks(self.limits.tasks)));
            }
            if memory > self.limits.memory {
                return Ok(Some(Exceeded::Memory(self.limits.memory)));
            }
        }
        Ok(None)
    }
}

/// What one process uses.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    tasks: u64,
    memory: u64,
}

impl Usage {
    /// Reads `/proc/PID/status` (proc_pid_status(5)); a zombie has no memory.
    fn parse(status: &str) -> Self {
        let mut usage = Self { tasks: 1, memory: 0 };
        for line in status.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            // The process's name is the only text that it chooses, and the kernel escapes its line feeds.
            let number = || {
                value
                    .split_whitespace()
                    .next()
                    .and_then(|word| word.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            match name {
                "Threads" => usage.tasks = number(),
                "RssAnon" | "RssShmem" | "VmSwap" => {
                    usage.memory = usage.memory.saturating_add(number().saturating_mul(1024));
                }
                _ => {}
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_with_its_threads_and_pages() {
        let status = "Name:\tsh\nUmask:\t0022\nVmSwap:\t       4 kB\nRssAnon:\t     100 kB\nRssFile:\t    9999 kB\nRssShmem:\t      24 kB\nThreads:\t7\n";
        let (tasks, memory) = (7, 128 << 10);
        assert_eq!(Usage::parse(status), Usage { tasks, memory });
        let zombie = "Name:\tsh\nState:\tZ (zombie)\nThreads:\t1\n";
        assert_eq!(Usage::parse(zombie), Usage { tasks: 1, memory: 0 });
        assert_eq!(Usage::parse("Name:\tThreads:\\n900\n").tasks, 1);
        assert_eq!(Usage::parse("Threads:\tmany\n").tasks, 0);
    }

    #[test]
    fn this_very_system_is_within_generous_limits_and_beyond_tiny_ones() {
        let watch = |memory, tasks| {
            Watch::new(Limits {
                memory,
                tasks,
                ..Limits::default()
            })
        };
        assert_eq!(watch(u64::MAX, u32::MAX).look().unwrap(), None);
        assert_eq!(watch(u64::MAX, 1).look().unwrap(), Some(Exceeded::Tasks(1)));
        assert_eq!(watch(1, u32::MAX).look().unwrap(), Some(Exceeded::Memory(1)));
        assert_eq!(watch(0, 0).exceeded().unwrap(), None, "not yet");
    }
}
