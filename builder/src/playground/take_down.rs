//! Ends a playground and removes its folder.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::hardware::GATEWAY_LOG;
use super::process::Identity;
use super::supervisor::{GATEWAY_PID, LOG, PID_FILE, STARTED};
use super::{CLUSTER, KUBECONFIG, MACHINES, MARKER, NETWORK, Playground};

/// A killed QEMU gives its memory back first.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends all processes of the playground in `folder` and removes what kimage made. Returns whether the folder is gone:
/// it stays when it holds something else.
///
/// # Errors
/// `folder` holds no playground (exit code 2), a process can't be ended or a file not be removed.
pub fn take_down(folder: &Path) -> Result<bool> {
    let playground = Playground::open(folder)?;
    // First the one that starts others. What it started dies with it, unless it had been killed in the middle.
    let machines = playground.machines.iter().map(|machine| machine.pid_file());
    let files = [PID_FILE.into(), GATEWAY_PID.into()].into_iter().chain(machines);
    for file in files {
        if let Some(identity) = Identity::read(&folder.join(file)) {
            identity.end(PATIENCE)?;
        }
    }
    for name in [MACHINES, NETWORK, CLUSTER] {
        let path = folder.join(name);
        remove(fs::remove_dir_all(&path), &path)?;
    }
    // The marker comes last: what is cut off before can be done again.
    for name in [
        KUBECONFIG,
        PID_FILE,
        GATEWAY_PID,
        LOG,
        GATEWAY_LOG,
        STARTED,
        MARKER,
    ] {
        let path = folder.join(name);
        remove(fs::remove_file(&path), &path)?;
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", folder.display())),
    }
}

/// What is not there need not be removed.
fn remove(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
