//! Whether this host can do it, and what to change when it can't.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::limits::Limits;
use super::owners::{Owner, Owners};
use super::request::{Ending, Request, Root, Step};
use super::{Sandbox, parent};
use crate::failure::{ExitCode, Failure};
use crate::tree::TreePath;

/// What the sandbox can do on this host beyond the necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Overlays work in a user namespace on the probed folder's filesystem ([`Sandbox::overlay`]). Where not,
    /// copy the tree and use [`Sandbox::directory`].
    pub overlay: bool,
}

/// Tries the sandbox with this program, on scratch folders below `folder` (of the filesystem that builds will use).
///
/// # Errors
/// A [`Failure`] with [`ExitCode::Sandbox`] and the remedy.
pub fn probe(folder: &Path) -> Result<Capabilities> {
    probe_by(Path::new("/proc/self/exe"), folder)
}

/// The same with another program as the inside.
pub fn probe_by(program: &Path, folder: &Path) -> Result<Capabilities> {
    let scratch = tempfile::Builder::new()
        .prefix(".kimage-probe-")
        .tempdir_in(folder);
    let scratch = scratch.with_context(|| format!("make a folder in {}", folder.display()))?;
    let path = |name: &str| -> Result<_> {
        let path = scratch.path().join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let (root, lower, upper, work) = (path("root")?, path("lower")?, path("upper")?, path("work")?);
    try_once(program, Sandbox::directory(&root).root)?;
    let overlay = Sandbox::overlay(&[lower], &upper, &work).root;
    Ok(Capabilities {
        overlay: try_once(program, overlay).is_ok(),
    })
}

fn try_once(program: &Path, root: Root) -> Result<()> {
    let request = Request {
        parent: std::process::id(),
        root,
        binds: Vec::new(),
        environment: Vec::new(),
        arguments: Vec::new(),
        owners: Owners::default(),
        limits: Limits::default(),
    };
    let outcome = parent::run(program, &request, &mut |_| {}).context("try the sandbox")?;
    let owner = |path: &str| -> Result<Option<Owner>> {
        Ok(outcome.owners.get(&TreePath::parse(path.as_bytes())?).cloned())
    };
    let wanted = Some(Owner {
        uid: 1,
        gid: 2,
        ..Owner::default()
    });
    if outcome.ending != Ending::Exited(0) || owner("probe")? != wanted || owner("probe-link")? != wanted {
        bail!(
            Failure::new(
                ExitCode::Sandbox,
                "the sandbox runs here but doesn't record owners"
            )
            .hint("please report this with the output of `uname -a` and the filesystem of the store")
        );
    }
    Ok(())
}

/// What the probe does in place of a command.
pub(super) fn try_chown() -> std::io::Result<()> {
    File::create("/probe")?;
    chown("/probe", Some(1), Some(2))?;
    symlink("nowhere", "/probe-link")?;
    std::os::unix::fs::lchown("/probe-link", Some(1), Some(2))
}

/// The error for a failed step, with what mends it on the hosts where it is known to fail.
pub(super) fn explain(step: Step, detail: &str, errno: i32) -> anyhow::Error {
    let cause = std::io::Error::from_raw_os_error(errno);
    match step {
        Step::Command | Step::Root | Step::Other => return anyhow!("{detail}: {cause}"),
        Step::Namespaces | Step::IdMap | Step::Overlay | Step::Proc | Step::Mounts | Step::Filter => {}
    }
    let failure = Failure::new(
        ExitCode::Sandbox,
        format!("this host does not allow the build sandbox: {detail}: {cause}"),
    );
    let program = std::env::current_exe().unwrap_or_else(|_| "/path/to/kimage".into());
    let sysctl = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    failure.hint(remedy(step, errno, &program, &sysctl)).into()
}

/// Looks for the known reasons, most specific first. `sysctl` reads a file below `/proc/sys`.
fn remedy(step: Step, errno: i32, program: &Path, sysctl: &dyn Fn(&str) -> Option<String>) -> String {
    let is = |name: &str, value: &str| sysctl(name).is_some_and(|text| text.trim() == value);
    if is("kernel/unprivileged_userns_clone", "0") {
        return "run `sudo sysctl -w kernel.unprivileged_userns_clone=1`".into();
    }
    if is("user/max_user_namespaces", "0") || errno == libc::ENOSPC {
        return "run `sudo sysctl -w user.max_user_namespaces=10000`".into();
    }
    if step == Step::Overlay {
        return "overlays in user namespaces need Linux 5.11 and a store on ext4, xfs, btrfs or tmpfs: choose another \
                folder with `--store`"
            .into();
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return format!(
            "AppArmor keeps unknown programs from user namespaces; allow this one:\n\
             printf 'abi <abi/4.0>,\\nprofile kimage {} flags=(unconfined) {{ userns, }}\\n' \
             | sudo tee /etc/apparmor.d/kimage && sudo apparmor_parser -r /etc/apparmor.d/kimage",
            program.display()
        );
    }
    if step == Step::Filter {
        return "the kernel needs CONFIG_SECCOMP_FILTER and Linux 5.11 or later".into();
    }
    "inside a container, start it with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined \
     --security-opt systempaths=unconfined`; elsewhere the kernel needs CONFIG_USER_NS and Linux 5.12 or later"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_refusal_has_its_remedy() {
        let program = Path::new("/opt/kimage");
        let with = |name: &'static str, value: &'static str, step| {
            remedy(step, libc::EPERM, program, &|asked| {
                (asked == name).then(|| format!("{value}\n"))
            })
        };
        let debian = with("kernel/unprivileged_userns_clone", "0", Step::Namespaces);
        assert!(debian.contains("kernel.unprivileged_userns_clone=1"), "{debian}");
        let ubuntu = with("kernel/apparmor_restrict_unprivileged_userns", "1", Step::IdMap);
        assert!(
            ubuntu.contains("profile kimage /opt/kimage") && ubuntu.contains("userns,"),
            "{ubuntu}"
        );
        let limit = with("user/max_user_namespaces", "0", Step::Namespaces);
        assert!(limit.contains("user.max_user_namespaces"), "{limit}");
        let container = with("kernel/nothing", "", Step::Proc);
        assert!(container.contains("seccomp=unconfined"), "{container}");
    }

    #[test]
    fn a_refused_sandbox_has_its_own_exit_code_and_a_missing_command_does_not() {
        let refused = explain(Step::Namespaces, "unshare", libc::EPERM);
        assert_eq!(crate::failure::exit_code(&refused), ExitCode::Sandbox);
        assert_eq!(crate::failure::hints(&refused).count(), 1);
        let missing = explain(Step::Command, "start /bin/nothing", libc::ENOENT);
        assert_eq!(crate::failure::exit_code(&missing), ExitCode::Failed);
    }
}
