//! What a host must offer to build and run images, and how to get it.

mod host;
mod sandbox;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::download::{Address, Policy, document_with};
use crate::failure;
use crate::progress::{Progress, bytes};
use crate::qemu::{Accelerator, Firmware};
use crate::store::Store;

use host::Host;

/// What a build of one image takes in the store, generously.
const STORE_BYTES: u64 = 10_000_000_000;

/// Enough of an archive's index to know that it answers.
const REACHABLE_BYTES: u64 = 16 << 20;

/// How it stands with one requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Fine,
    /// Something works slowly or not at all, but images can be built.
    Limited,
    /// Images can't be built.
    Failed,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is required ("user namespaces").
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, in commands, when it does not stand well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Part of the build sandbox.
    #[serde(skip)]
    pub sandbox: bool,
}

impl Check {
    fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Fine,
            found: found.into(),
            remedy: None,
            sandbox: false,
        }
    }

    fn limited(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Limited,
            found: found.into(),
            remedy: Some(remedy.into()),
            sandbox: false,
        }
    }

    fn failed(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Failed,
            found: found.into(),
            remedy: Some(remedy.into()),
            sandbox: false,
        }
    }

    fn of_sandbox(self) -> Self {
        Self {
            sandbox: true,
            ..self
        }
    }
}

/// Looks at all that building and running need. `documents` are URLs that should answer (an archive's InRelease), or
/// why there is none.
pub fn examine(store: &Result<Store>, documents: &[Result<Address>], progress: &Progress) -> Vec<Check> {
    let host = Host::this();
    let mut checks = sandbox::checks(&host);
    checks.extend(store.iter().map(sandbox::tried));
    checks.push(store_space(store));
    checks.extend(documents.iter().map(|url| archive(url, progress)));
    checks.extend([go(&host), rust(&host), qemu(&host), firmware(&host), kvm(&host)]);
    checks
}

fn store_space(store: &Result<Store>) -> Check {
    let name = "store";
    let free = match store
        .as_ref()
        .map(|store| (store.root(), store.scratch().and_then(|_| store.free_space())))
    {
        Ok((root, Ok(free))) => Ok((root, free)),
        Ok((_, Err(error))) => Err(format!("{error:#}")),
        Err(error) => Err(format!("{error:#}")),
    };
    match free {
        Ok((root, free)) if free >= STORE_BYTES => {
            Check::fine(name, format!("`{}`, {} free", root.display(), bytes(free)))
        }
        Ok((root, free)) => {
            let found = format!("`{}` has only {} free", root.display(), bytes(free));
            let remedy = format!(
                "free some space there (builds take up to {}) or use --store DIR",
                bytes(STORE_BYTES)
            );
            Check::limited(name, found, remedy)
        }
        Err(found) => Check::failed(
            name,
            found,
            "name a folder that you can write to with --store DIR",
        ),
    }
}

fn archive(url: &Result<Address>, progress: &Progress) -> Check {
    let name = "archive";
    let limited = |error: &anyhow::Error| {
        let hints: Vec<&str> = failure::hints(error).collect();
        Check::limited(name, format!("{error:#}"), hints.join("\n"))
    };
    let policy = Policy {
        rounds: 1,
        ..Policy::default()
    };
    let url = match url {
        Ok(url) => url,
        Err(error) => return limited(error),
    };
    match document_with(std::slice::from_ref(url), REACHABLE_BYTES, progress, &policy) {
        Ok(_) => Check::fine(name, format!("{url} answers")),
        Err(error) => limited(&error),
    }
}

fn go(host: &Host) -> Check {
    let name = "Go";
    // Only a start: the toolchain that the lock pins comes as a Go module.
    let remedy = "needed for components of kind `go` (Kubernetes from source):\n\
                  sudo apt-get install golang-go, or https://go.dev/dl";
    host.version(&["go", "version"]).map_or_else(
        || Check::limited(name, "`go` is not on the PATH", remedy),
        |version| Check::fine(name, version),
    )
}

fn rust(host: &Host) -> Check {
    let name = "Rust";
    let remedy = "needed for kimage's own programs in the image: https://rustup.rs";
    match (
        host.version(&["cargo", "--version"]),
        host.version(&["rustc", "--version"]),
    ) {
        (Some(cargo), Some(rustc)) => Check::fine(name, format!("{cargo}, {rustc}")),
        (None, _) => Check::limited(name, "`cargo` is not on the PATH", remedy),
        (_, None) => Check::limited(name, "`rustc` is not on the PATH", remedy),
    }
}

fn qemu(host: &Host) -> Check {
    let name = "QEMU";
    let remedy = "needed for `kimage run`: sudo apt-get install qemu-system-x86";
    host.version(&["qemu-system-x86_64", "--version"]).map_or_else(
        || Check::limited(name, "`qemu-system-x86_64` is not on the PATH", remedy),
        |version| Check::fine(name, version),
    )
}

fn firmware(host: &Host) -> Check {
    let name = "OVMF";
    match Firmware::find_where(true, |path| path.to_str().is_some_and(|path| host.exists(path))) {
        Some(firmware) => Check::fine(name, firmware.code.display().to_string()),
        None => {
            let remedy = "needed for `kimage run`: sudo apt-get install ovmf";
            Check::limited(name, "no UEFI firmware with Secure Boot found", remedy)
        }
    }
}

fn kvm(host: &Host) -> Check {
    let name = "KVM";
    match host.open_read_write("/dev/kvm") {
        // On nested hosts it may open and yet run nothing. Without QEMU nobody can tell.
        Ok(()) => match Accelerator::Kvm.boots() {
            Ok(true) => Check::fine(name, "a machine boots with it"),
            Err(_) => Check::fine(name, "/dev/kvm opens"),
            Ok(false) => Check::limited(
                name,
                "/dev/kvm opens, but no machine boots with it: `kimage run` emulates, some 20 times slower",
                "on a nested host, switch on nested virtualisation in the one below",
            ),
        },
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let remedy = "sudo usermod -aG kvm $USER, then log in again";
            Check::limited(
                name,
                "/dev/kvm is not yours to use: `kimage run` emulates, some 20 times slower",
                remedy,
            )
        }
        Err(_) => {
            let remedy = "switch on virtualisation in the firmware or nested virtualisation in the cloud, then \
                          sudo modprobe kvm_intel (or kvm_amd)";
            Check::limited(
                name,
                "no /dev/kvm: `kimage run` emulates, some 20 times slower",
                remedy,
            )
        }
    }
}

/// This program's own path, for profiles that name it.
fn own_path() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| Path::new("/usr/bin/kimage").to_owned());
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(folder: &Path) -> Host {
        Host::at(folder)
    }

    #[test]
    fn an_empty_host_gets_a_remedy_for_everything_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let host = host(folder.path());
        for check in [go(&host), rust(&host), qemu(&host), firmware(&host), kvm(&host)] {
            assert_eq!(check.state, State::Limited, "{check:?}");
            assert!(check.remedy.is_some(), "{check:?}");
        }
    }

    #[test]
    fn an_archive_that_does_not_answer_limits() {
        let check = archive(&Ok("file:///nowhere/InRelease".into()), &Progress::silent());
        assert_eq!(check.state, State::Limited);
        assert!(check.found.contains("/nowhere/InRelease"), "{check:?}");
    }

    #[test]
    fn a_store_that_cannot_be_used_fails() {
        let check = store_space(&Err(anyhow::anyhow!("read-only")));
        assert_eq!((check.state, check.found.as_str()), (State::Failed, "read-only"));
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(store_space(&Store::open(folder.path())).state, State::Failed);
    }
}
