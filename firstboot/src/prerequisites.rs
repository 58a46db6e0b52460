//! What a machine must have before it begins its plan: randomness to make keys from, and a disk that keeps its state.

use std::fs;

use kimage_roles::cause::Cause;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::failure::{Failure, OrFailure};
use crate::host::Host;
use crate::state::plan::SMALLEST_STATE;

/// Where the kernel tells what is mounted (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/self/mountinfo";
const STATE: &str = "/var";

/// Keys made now are as random as they should be. Asking for them later would wait without a word.
pub(crate) fn check_randomness() -> Result<(), Failure> {
    match getrandom(&mut [0_u8; 1], GetRandomFlags::NONBLOCK) {
        Err(Errno::AGAIN) => Err(Failure::because(
            Cause::EntropyStarved,
            "the kernel has not gathered enough randomness for keys yet",
        )),
        other => other.map(drop).or_failure(Cause::Internal),
    }
}

/// What this machine becomes outlives a power cut: `/var` is not in memory, where `kimage-state` puts it on a disk
/// without room.
pub(crate) fn check_state(host: &Host) -> Result<(), Failure> {
    let mounts = fs::read_to_string(host.path(MOUNTS)).or_failure(Cause::Internal)?;
    match filesystem_at(&mounts, STATE) {
        Some("tmpfs" | "ramfs") => Err(Failure::because(
            Cause::StateTooSmall,
            format!(
                "the disk has no room for a state partition of at least {} MiB: {STATE} is in memory",
                SMALLEST_STATE >> 20
            ),
        )),
        _ => Ok(()),
    }
}

/// Type of the filesystem that was mounted at `place` last.
fn filesystem_at<'a>(mounts: &'a str, place: &str) -> Option<&'a str> {
    let mut found = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        if before.split(' ').nth(4) == Some(place) {
            found = after.split(' ').next();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mounts: &str) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        fs::write(folder.path().join("proc/self/mountinfo"), mounts).unwrap();
        let host = Host::at(folder.path());
        (folder, host)
    }

    #[test]
    fn state_in_memory_is_too_small_a_disk() {
        let disk = "29 1 254:6 / /var rw,nosuid,nodev shared:3 - ext4 /dev/vda6 rw\n\
                    31 29 0:30 / /var/tmp rw - tmpfs tmpfs rw\n";
        let memory = format!("{disk}40 29 0:33 / /var rw,nosuid - tmpfs var rw,mode=755\n");
        let (_folder, good) = host(disk);
        check_state(&good).unwrap();
        let (_folder, bad) = host(&memory);
        assert_eq!(check_state(&bad).unwrap_err().cause, Cause::StateTooSmall);
    }

    #[test]
    fn a_machine_that_runs_tests_has_randomness() {
        check_randomness().unwrap();
    }
}
