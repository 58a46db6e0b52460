//! What a command can reach, and how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use kimage_builder::failure::{ExitCode, exit_code};
use kimage_builder::tree::sandbox::Ending;

use super::fixture::Root;

#[test]
fn there_is_no_network_and_nothing_of_the_host() {
    let root = Root::new();
    let script = "ip addr; echo --; hostname; id -u; id -g; umask; echo --; env; echo --; ls -A / /etc /run /tmp /sys /home 2>&1; \
                  echo --; ls -A /dev; cat /proc/mounts; echo --; ls -d /proc/[0-9]* | wc -l";
    let (outcome, text) = root.script(script);
    assert!(outcome.ending.success(), "{text}");
    let parts: Vec<&str> = text.split("--\n").collect();
    let links = parts[0]
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    for link in links {
        assert!(!link.contains("UP"), "{link}");
    }
    assert!(!parts[0].contains("inet"), "{}", parts[0]);
    assert_eq!(parts[1], "localhost\n0\n0\n0022\n");
    let variables: BTreeSet<&str> = parts[2]
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    let expected = [
        "DEBCONF_NONINTERACTIVE_SEEN",
        "DEBIAN_FRONTEND",
        "DPKG_FORCE",
        "HOME",
        "INITRD",
        "LC_ALL",
        "PATH",
        "TZ",
    ];
    let shell = ["OLDPWD", "PWD", "SHLVL", "_"];
    let extra: Vec<_> = variables
        .iter()
        .filter(|name| !expected.contains(name) && !shell.contains(name))
        .collect();
    assert!(
        extra.is_empty() && expected.iter().all(|name| variables.contains(name)),
        "{variables:?}"
    );
    assert!(
        parts[3].contains("/etc: No such file") && parts[3].contains("/home: No such file"),
        "{}",
        parts[3]
    );
    let host_mounts = fs::read_to_string("/proc/mounts").unwrap();
    let device_of_host_home = host_mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|path| path.starts_with("/home"));
    assert!(
        device_of_host_home.is_none_or(|path| !parts[4].contains(path)),
        "{}",
        parts[4]
    );
    for mount in parts[4].lines().filter_map(|line| line.split(' ').nth(1)) {
        let known =
            ["/", "/proc", "/dev", "/run", "/tmp", "/sys"].contains(&mount) || mount.starts_with("/dev/");
        assert!(known, "{mount}");
    }
    assert!(parts[5].trim().parse::<u32>().unwrap() <= 4, "{text}");
}

#[test]
fn escapes_are_refused() {
    let root = Root::new();
    let script =
        "mount -t tmpfs none /tmp && exit 1; unshare -r true && exit 2; echo x > /sys/x && exit 3; exit 0";
    let (outcome, text) = root.script(script);
    assert!(outcome.ending.success(), "{}: {text}", outcome.ending);
}

#[test]
fn output_is_captured_and_the_ending_told() {
    let root = Root::new();
    let (outcome, text) = root.script("echo out; echo err >&2; cat; exit 7");
    assert_eq!((outcome.ending, text.as_str()), (Ending::Exited(7), "out\nerr\n"));
    let (outcome, _) = root.script("kill -9 $$");
    assert_eq!(outcome.ending, Ending::Killed(9));
    let begun = Instant::now();
    let (outcome, _) = root.script("sleep 1000 & exit 0");
    assert!(
        outcome.ending.success() && begun.elapsed() < Duration::from_secs(60),
        "left-over processes are ended"
    );
    let error = root.sandbox().run(["/bin/absent"], &mut |_| {}).unwrap_err();
    assert!(format!("{error:#}").contains("/bin/absent"), "{error:#}");
    assert_eq!(exit_code(&error), ExitCode::Failed);
}
