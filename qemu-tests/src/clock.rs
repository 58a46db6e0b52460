//! The clock that virtual machines live by. To a machine whose seconds last longer than the wall's, the host is that much
//! faster: four emulated machines that starve each other on two cores, so that time after time something in them takes
//! longer than it may, have the processors they need. What they do in a second of theirs they do as ever.
//!
//! libfaketime (Debian's package `faketime`) stands between QEMU and the host's clocks: QEMU's timers and the real-time
//! clock that it emulates follow. The emulated time stamp counter doesn't, but kernels measure its rate by the others.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use kimage_builder::qemu::Accelerator;

use crate::accelerator;

const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// Debian's and Fedora's folders.
const FOLDERS: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

/// A clock. Copies go together.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// By the wall's clock.
    began: SystemTime,
    slowness: u32,
}

impl Clock {
    /// The wall's.
    pub fn wall() -> Self {
        Self::slowed(1)
    }

    /// One that stands where the wall's does, and from then on needs `slowness` seconds of it for each of its own; the
    /// wall's itself where machines needn't be emulated.
    ///
    /// # Errors
    ///
    /// Nobody can tell whether they must.
    pub fn slowed_for_emulation(slowness: u32) -> Result<Self> {
        Ok(match accelerator::chosen()? {
            Accelerator::Kvm => Self::wall(),
            Accelerator::Tcg => Self::slowed(slowness),
        })
    }

    fn slowed(slowness: u32) -> Self {
        Self {
            began: SystemTime::now(),
            slowness,
        }
    }

    /// Seconds of the wall's clock for one of its own.
    pub fn slowness(&self) -> u32 {
        self.slowness
    }

    /// What it shows.
    pub fn now(&self) -> SystemTime {
        // Nobody sets the host's clock back during a test; if so, the two agree again.
        let passed = self.began.elapsed().unwrap_or_default();
        self.began + self.own(passed)
    }

    /// What passes on it while `wall` passes on the wall's.
    pub fn own(&self, wall: Duration) -> Duration {
        wall / self.slowness
    }

    /// What passes on the wall's clock while `own` passes on it.
    pub fn wall_time(&self, own: Duration) -> Duration {
        own * self.slowness
    }

    /// What a process that is started now must find in its environment to live by it: nothing if it is the wall's.
    ///
    /// # Errors
    ///
    /// There is no libfaketime.
    pub(crate) fn environment(&self) -> Result<Vec<(&'static str, String)>> {
        if self.slowness == 1 {
            return Ok(Vec::new());
        }
        let mut places = FOLDERS.iter().map(|folder| PathBuf::from(folder).join(LIBRARY));
        let library = places
            .find(|place| place.exists())
            .with_context(|| format!("no {LIBRARY}: run `qemu-tests/run-all` once, it installs tools"))?;
        let behind = SystemTime::now().duration_since(self.now()).unwrap_or_default();
        Ok(vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME", specification(behind, self.slowness)),
        ])
    }
}

/// In libfaketime's words (its README, 4d and 4e): where the clock stands when the process starts, and its rate.
fn specification(behind: Duration, slowness: u32) -> String {
    format!("-{:.3} x{:.6}", behind.as_secs_f64(), 1.0 / f64::from(slowness))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walls_clock_needs_nothing() {
        let clock = Clock::wall();
        assert!(clock.environment().unwrap().is_empty());
        let hour = Duration::from_secs(3600);
        assert_eq!((clock.own(hour), clock.wall_time(hour)), (hour, hour));
    }

    #[test]
    fn a_slow_clock_falls_behind_and_a_process_that_starts_later_sees_the_same_time() {
        let passed = Duration::from_secs(100);
        let clock = Clock {
            began: SystemTime::now() - passed,
            slowness: 4,
        };
        let shown = clock.now().duration_since(clock.began).unwrap();
        assert_eq!(shown.as_secs(), 25);
        let environment = clock.environment().unwrap();
        let mut date = crate::images::command("date");
        date.args(["+%s"]).envs(environment);
        let said = crate::images::finish(&mut date).unwrap().stdout;
        let seconds: u64 = String::from_utf8(said).unwrap().trim().parse().unwrap();
        let began = clock.began.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(
            (24..=27).contains(&(seconds - began.as_secs())),
            "{seconds} {began:?}"
        );
    }

    #[test]
    fn a_process_waits_longer_by_a_slow_clock() {
        let clock = Clock::slowed(4);
        let mut sleep = crate::images::command("sleep");
        sleep.arg("0.25").envs(clock.environment().unwrap());
        let began = std::time::Instant::now();
        crate::images::finish(&mut sleep).unwrap();
        assert!(
            began.elapsed() >= Duration::from_millis(990),
            "{:?}",
            began.elapsed()
        );
    }
}
