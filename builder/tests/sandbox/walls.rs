//! What a command can reach, and how it ends.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use kimage_builder::failure::{ExitCode, exit_code};
use kimage_builder::tree::sandbox::Ending;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use super::fixture::{Root, run_here};

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

/// Where the host's root runs the sandbox, the files below `/proc/sys` are its own. They are opened and not written:
/// should they open, nothing has happened yet.
#[test]
fn nothing_of_the_hosts_kernel_can_be_set() {
    let root = Root::new();
    let script = "for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/overcommit_memory \
                  /proc/sysrq-trigger /proc/self/oom_score_adj; do \
                  if (exec 3>>$file) 2>/dev/null; then echo $file; fi; done";
    let (outcome, text) = root.script(script);
    assert!(outcome.ending.success() && text.is_empty(), "{text}");
}

#[test]
fn only_sockets_that_lead_nowhere_are_there_and_few_capabilities() {
    let (outcome, text) = run_here(&Root::new(), "walls::helper_asks_for_sockets_and_capabilities");
    assert!(outcome.ending.success(), "{text}");
}

#[test]
#[ignore = "runs in the sandbox, started by only_sockets_that_lead_nowhere_are_there_and_few_capabilities"]
fn helper_asks_for_sockets_and_capabilities() {
    let open = |family, kind| socket(AddressFamily::from_raw(family), kind, None);
    for (family, name) in [
        (40, "VSOCK"),
        (38, "ALG"),
        (17, "PACKET"),
        (31, "BLUETOOTH"),
        (15, "KEY"),
        (30, "TIPC"),
        (44, "XDP"),
        (21, "RDS"),
        (29, "CAN"),
    ] {
        for kind in [
            SocketType::STREAM,
            SocketType::DGRAM,
            SocketType::RAW,
            SocketType::SEQPACKET,
        ] {
            assert_eq!(open(family, kind).err(), Some(Errno::AFNOSUPPORT), "{name}");
        }
    }
    for (family, kind) in [
        (1, SocketType::STREAM),
        (2, SocketType::STREAM),
        (16, SocketType::RAW),
    ] {
        open(family, kind).unwrap();
    }
    assert!(open(2, SocketType::RAW).is_err(), "raw packets");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // CHOWN to SETPCAP without LINUX_IMMUTABLE, NET_BIND_SERVICE, SYS_CHROOT, MKNOD, SETFCAP: no NET_ADMIN, SYS_ADMIN,
    // SYS_PTRACE, NET_RAW or BPF.
    let kept = 0x1ff | 1 << 10 | 1 << 18 | 1 << 27 | 1 << 31;
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(set(name) & !kept, 0, "{name} {:x}", set(name));
    }
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
