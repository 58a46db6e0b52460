//! What the rootless build sandbox needs of the kernel.

use super::host::Host;
use super::{Check, own_path};
use crate::failure;
use crate::store::Store;
use crate::tree::sandbox::probe;

/// Since this kernel, overlayfs can be mounted inside a user namespace.
const OVERLAY_KERNEL: (u32, u32) = (5, 11);

pub(super) fn checks(host: &Host) -> Vec<Check> {
    [user_namespaces(host, &own_path()), seccomp(host), overlay(host)]
        .into_iter()
        .map(Check::of_sandbox)
        .collect()
}

/// The sandbox itself, on the filesystem where builds will use it: the other checks only say why it fails.
pub(super) fn tried(store: &Store) -> Check {
    let name = "build sandbox";
    let tried = store.scratch().and_then(|scratch| probe(scratch.path()));
    let check = match tried {
        Ok(capabilities) if capabilities.overlay => Check::fine(name, "works, with overlays"),
        Ok(_) => {
            let remedy = "see overlayfs; or put the store on ext4, xfs or btrfs with --store DIR";
            Check::limited(
                name,
                "works without overlays: trees are copied, which costs time and space",
                remedy,
            )
        }
        Err(error) => {
            let hints: Vec<&str> = failure::hints(&error).collect();
            Check::failed(name, format!("{error:#}"), hints.join("\n"))
        }
    };
    check.of_sandbox()
}

fn user_namespaces(host: &Host, program: &str) -> Check {
    let name = "user namespaces";
    let persistently = |setting: &str| {
        format!(
            "echo '{setting}' | sudo tee /etc/sysctl.d/60-kimage.conf && sudo sysctl --load /etc/sysctl.d/60-kimage.conf"
        )
    };
    let parameter = |path: &str| host.text(&format!("/proc/sys/{path}"));
    if !host.exists("/proc/self/ns/user") {
        return Check::failed(name, "this kernel has none", "use a kernel with CONFIG_USER_NS=y");
    }
    // Debian's and Ubuntu's own switch; other kernels don't have it.
    if parameter("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        let found = "kernel.unprivileged_userns_clone is 0";
        return Check::failed(name, found, persistently("kernel.unprivileged_userns_clone = 1"));
    }
    if parameter("user/max_user_namespaces").as_deref() == Some("0") {
        let found = "user.max_user_namespaces is 0";
        return Check::failed(name, found, persistently("user.max_user_namespaces = 15000"));
    }
    let restricted = parameter("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    if restricted && !confined_by_own_profile(host) {
        let found = "AppArmor refuses them to programs without a profile (kernel.apparmor_restrict_unprivileged_userns)";
        return Check::failed(name, found, profile_remedy(program));
    }
    Check::fine(name, "allowed")
}

/// Whether this process already runs under some AppArmor profile, which then decides.
fn confined_by_own_profile(host: &Host) -> bool {
    let label = host
        .text("/proc/self/attr/apparmor/current")
        .or_else(|| host.text("/proc/self/attr/current"));
    label.is_some_and(|label| !label.is_empty() && label != "unconfined")
}

/// The profile that lets exactly this program make user namespaces.
fn profile_remedy(program: &str) -> String {
    format!(
        "sudo tee /etc/apparmor.d/kimage <<'END'\n\
         abi <abi/4.0>,\n\
         include <tunables/global>\n\
         profile kimage \"{program}\" flags=(unconfined) {{\n\
         \x20 userns,\n\
         }}\n\
         END\n\
         sudo apparmor_parser -r /etc/apparmor.d/kimage"
    )
}

fn seccomp(host: &Host) -> Check {
    let name = "seccomp notification";
    let actions = host
        .text("/proc/sys/kernel/seccomp/actions_avail")
        .unwrap_or_default();
    if actions
        .split_ascii_whitespace()
        .any(|action| action == "user_notif")
    {
        return Check::fine(name, "offered by the kernel");
    }
    let remedy = "use Linux 5.9 or newer with CONFIG_SECCOMP_FILTER=y; a container runtime may also hide it: \
                  docker run --security-opt seccomp=unconfined";
    Check::failed(name, "the kernel does not offer it (user_notif)", remedy)
}

fn overlay(host: &Host) -> Check {
    let name = "overlayfs";
    let release = host.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let loaded = host.text("/proc/filesystems").is_some_and(|list| {
        list.lines()
            .any(|line| line.split_ascii_whitespace().last() == Some("overlay"))
    });
    let module = format!("/lib/modules/{release}/kernel/fs/overlayfs");
    match version(&release) {
        Some(version) if version < OVERLAY_KERNEL => {
            let remedy = "use Linux 5.11 or newer";
            Check::limited(
                name,
                format!("Linux {release} can't mount it in a user namespace"),
                remedy,
            )
        }
        _ if loaded => Check::fine(name, "offered by the kernel"),
        _ if host.exists(&module) => Check::limited(
            name,
            "the module is not loaded",
            "sudo modprobe overlay && echo overlay | sudo tee /etc/modules-load.d/kimage.conf",
        ),
        _ => Check::limited(
            name,
            "the kernel does not offer it",
            "use a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

/// Major and minor number of `6.8.0-45-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::doctor::State;

    fn host(files: &[(&str, &str)]) -> (Host, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
            fs::write(path, text).unwrap();
        }
        (Host::at(folder.path()), folder)
    }

    const NAMESPACES: (&str, &str) = ("proc/self/ns/user", "");

    #[test]
    fn each_refusal_of_user_namespaces_has_its_remedy() {
        for (path, value, remedy) in [
            (
                "proc/sys/kernel/unprivileged_userns_clone",
                "0\n",
                "kernel.unprivileged_userns_clone = 1",
            ),
            (
                "proc/sys/user/max_user_namespaces",
                "0\n",
                "user.max_user_namespaces = 15000",
            ),
            (
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                "apparmor_parser -r",
            ),
        ] {
            let (host, _folder) = host(&[NAMESPACES, (path, value)]);
            let check = user_namespaces(&host, "/opt/kimage");
            assert_eq!(check.state, State::Failed, "{path}");
            assert!(check.remedy.is_some_and(|text| text.contains(remedy)), "{path}");
        }
        let (kernel_without, _folder) = host(&[]);
        assert_eq!(user_namespaces(&kernel_without, "/x").state, State::Failed);
        let (open, _folder) = host(&[
            NAMESPACES,
            ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0\n"),
        ]);
        assert_eq!(user_namespaces(&open, "/x").state, State::Fine);
    }

    #[test]
    fn the_profile_names_this_program_and_grants_namespaces() {
        let remedy = profile_remedy("/opt/my tools/kimage");
        let profile: Vec<&str> = remedy.lines().skip(1).take_while(|line| *line != "END").collect();
        assert_eq!(profile.len(), 5);
        assert_eq!(
            profile[2],
            "profile kimage \"/opt/my tools/kimage\" flags=(unconfined) {"
        );
        assert_eq!(profile[3], "  userns,");
    }

    #[test]
    fn a_program_with_a_profile_is_left_to_its_profile() {
        let restriction = ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
        let with = |label| host(&[NAMESPACES, restriction, ("proc/self/attr/current", label)]);
        assert_eq!(
            user_namespaces(&with("kimage (unconfined)\n").0, "/x").state,
            State::Fine
        );
        assert_eq!(
            user_namespaces(&with("unconfined\n").0, "/x").state,
            State::Failed
        );
    }

    #[test]
    fn seccomp_and_overlay_are_read_from_the_kernels_lists() {
        let actions = (
            "proc/sys/kernel/seccomp/actions_avail",
            "kill_process trap errno user_notif allow\n",
        );
        assert_eq!(seccomp(&host(&[actions]).0).state, State::Fine);
        assert_eq!(seccomp(&host(&[]).0).state, State::Failed);
        let filesystems = ("proc/filesystems", "nodev\tsysfs\n\text4\nnodev\toverlay\n");
        let kernel = |release| ("proc/sys/kernel/osrelease", release);
        assert_eq!(
            overlay(&host(&[filesystems, kernel("6.8.0-45-generic\n")]).0).state,
            State::Fine
        );
        assert_eq!(
            overlay(&host(&[filesystems, kernel("5.4.0\n")]).0).state,
            State::Limited
        );
        assert_eq!(overlay(&host(&[kernel("6.8.0\n")]).0).state, State::Limited);
        assert_eq!(version("nonsense"), None);
    }
}
