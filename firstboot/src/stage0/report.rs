//! What stage 0 did and how long it took: one line on the console, one file for later reports.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::command_line::RootHash;
use super::disks::Found;

/// Where the report lies.
pub const PATH: &str = "/run/kimage/stage0.json";

/// The report of stage 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of this format: 2.
    pub schema: u32,
    /// The root hash that was verified against, 64 hex digits.
    pub root_hash: String,
    /// The kernel's name of the disk with the root: `vda`.
    pub disk: String,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Bytes of a sector of its partition table.
    pub sector_size: u64,
    /// Number of the root partition.
    pub root_partition: u32,
    /// Number of its hash partition.
    pub hash_partition: u32,
    /// Drivers that stage 0 loaded because of devices.
    pub drivers: Vec<String>,
    /// Time from the kernel's start to stage 0's, in milliseconds, to a hundredth of a second.
    pub kernel_milliseconds: u64,
    /// What stage 0 did, in order.
    pub phases: Vec<Phase>,
}

/// One step of stage 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub microseconds: u64,
}

/// Measures the phases.
pub(super) struct Clock {
    kernel: Duration,
    last: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    /// Starts with the first phase. `/proc` must be mounted.
    pub(super) fn start() -> Self {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime
            .split_ascii_whitespace()
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0);
        let kernel = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Self {
            kernel,
            last: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// Ends the phase `name` and starts the next.
    pub(super) fn phase(&mut self, name: &str) {
        let now = Instant::now();
        let microseconds = (now - self.last).as_micros() as u64;
        self.phases.push(Phase {
            name: name.to_owned(),
            microseconds,
        });
        self.last = now;
    }
}

impl Report {
    pub(super) fn new(root_hash: &RootHash, found: &Found, drivers: Vec<String>, clock: &Clock) -> Self {
        Self {
            schema: 2,
            root_hash: root_hash.to_string(),
            disk: found.disk.clone(),
            device: found.device,
            sector_size: found.sector_size,
            root_partition: found.root.number,
            hash_partition: found.hashes.number,
            drivers,
            kernel_milliseconds: clock.kernel.as_millis() as u64,
            phases: clock.phases.clone(),
        }
    }

    /// Reads the report that stage 0 left.
    pub fn read() -> Result<Self> {
        let bytes =
            fs::read(PATH).with_context(|| format!("read {PATH}: was this machine booted by stage 0?"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("parse {PATH}"))
    }

    /// `modules 12 ms, root found 80 ms, total 92 ms (after 1230 ms of kernel), disk vda`
    pub(super) fn line(&self) -> String {
        let total: u64 = self.phases.iter().map(|phase| phase.microseconds).sum();
        let phases: Vec<String> = self
            .phases
            .iter()
            .map(|phase| format!("{} {} ms", phase.name, phase.microseconds / 1000))
            .collect();
        let kernel = self.kernel_milliseconds;
        format!(
            "{}, total {} ms (after {kernel} ms of kernel), disk {}",
            phases.join(", "),
            total / 1000,
            self.disk
        )
    }

    /// Leaves the report for the real root; `/run` has been moved there by now.
    pub(super) fn write(&self) -> Result<()> {
        let path = format!("/sysroot{PATH}");
        let text = serde_json::to_vec(self).context("encode the report")?;
        fs::write(&path, text).with_context(|| format!("write {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_each_phase_and_the_sum() {
        let phase = |name: &str, microseconds| Phase {
            name: name.to_owned(),
            microseconds,
        };
        let report = Report {
            schema: 2,
            root_hash: String::new(),
            disk: "vda".to_owned(),
            device: (252, 0),
            sector_size: 512,
            root_partition: 3,
            hash_partition: 2,
            drivers: Vec::new(),
            kernel_milliseconds: 1230,
            phases: vec![phase("modules", 12_900), phase("root found", 80_100)],
        };
        let line = "modules 12 ms, root found 80 ms, total 93 ms (after 1230 ms of kernel), disk vda";
        assert_eq!(report.line(), line);
    }
}
