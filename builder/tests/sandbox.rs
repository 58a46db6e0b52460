//! The sandbox, from outside: each test runs real commands (busybox, or this test program itself) in it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the programs that they compare with"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::tree::TreePath;
use kimage_builder::tree::sandbox::delta::{Change, delta};
use kimage_builder::tree::sandbox::{Ending, Outcome, Owner, Owners, Sandbox, probe_by};
use rustix::fs::{AtFlags, Gid, Uid, XattrFlags, chownat, fchown};
use tempfile::TempDir;

const KIMAGE: &str = env!("CARGO_BIN_EXE_kimage");

/// User id without any privilege.
const NOBODY: &str = "65534";

const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "chroot", "cp", "env", "grep", "hostname", "id", "ip", "kill", "ln", "ls",
    "mkdir", "mknod", "mount", "mv", "rm", "rmdir", "sh", "sleep", "stat", "touch", "umask", "unshare", "wc",
];

/// What maintainer scripts do to owners, once each. Every line is checked by `owners_of_the_scenario`.
const SCENARIO: &str = r#"
set -e
mkdir /d; cd /d
echo x > a; chown 5:6 /d/a; mv a renamed; ln renamed hardlink
ln -s renamed symlink; chown -h 7:8 symlink; mv symlink symlink2
echo x > target; ln -s target through; chown 9:10 through
echo x > twice; chown 10:10 twice; chown 11:12 twice
echo x > back; chown 13:13 back; chown 0:0 back
mkdir folder; chown 14:15 folder; mv folder folder2
echo x > gone; chown 99:99 gone; rm gone; echo x > reused; ln -s nowhere gone; chown -h 99:99 gone; rm gone; ln -s nowhere reused2
echo x > setuid; chown 0:42 setuid; chmod 4755 setuid
echo x > cleared; chmod 6755 cleared; chown 0:42 cleared
mknod null c 1 3; mknod fifo p; chown 0:16 fifo
echo x > shadow; chown 0:42 shadow; echo y > shadow+; mv -f shadow+ shadow
mkdir /etc; echo x > /etc/shadow; chown 0:42 /etc/shadow; echo x > /etc/shadow-; chown 0:0 /etc/shadow-; echo x > /etc/gshadow-
echo x > packaged; chown 0:42 packaged; echo y > packaged.dpkg-new; mv -f packaged.dpkg-new packaged
echo x > descriptor; chown 17:18 /dev/fd/3 3< descriptor
mkdir -p /jail/bin /jail/etc; cp /bin/busybox /jail/bin
chroot /jail /bin/busybox sh -c 'cd /etc; b=/bin/busybox; echo > f; $b ln -s /etc/f link; $b chown 21:22 link; echo > g; $b chown 23:24 ../etc/g'
if chown 1:1 /missing 2> /tmp/error; then exit 9; fi
grep -q 'No such file' /tmp/error
echo x > /tmp/elsewhere; chown 1:1 /tmp/elsewhere
"#;

struct Root {
    folder: TempDir,
    /// Programs that any user may run.
    kimage: PathBuf,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kimage-sandbox-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let kimage = folder.path().join("kimage");
        fs::copy(KIMAGE, &kimage).unwrap();
        let root = Self { folder, kimage };
        root.fill(&root.path());
        root
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A folder beside the root.
    fn beside(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn fill(&self, root: &Path) {
        fs::create_dir_all(root.join("bin")).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let busybox = busybox.expect("these tests need a static busybox: install the package busybox-static");
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::directory(&self.path()).program(&self.kimage)
    }

    /// Runs a shell script in a plain directory and returns what it printed.
    fn script(&self, script: &str) -> (Outcome, String) {
        run(&mut self.sandbox(), ["/bin/sh", "-c", script])
    }
}

fn run<const N: usize>(sandbox: &mut Sandbox, arguments: [&str; N]) -> (Outcome, String) {
    let mut text = String::new();
    let outcome = sandbox.run(arguments, &mut |line| {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    });
    (outcome.unwrap_or_else(|error| panic!("{error:#}\n{text}")), text)
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn ids(owners: &Owners, text: &str) -> (u32, u32) {
    owners
        .get(&path(text))
        .map_or((0, 0), |owner| (owner.uid, owner.gid))
}

#[track_caller]
fn check_scenario(owners: &Owners) {
    let expected = [
        ("d/renamed", (5, 6)),
        ("d/hardlink", (5, 6)),
        ("d/symlink2", (7, 8)),
        ("d/through", (0, 0)),
        ("d/target", (9, 10)),
        ("d/twice", (11, 12)),
        ("d/back", (0, 0)),
        ("d/folder2", (14, 15)),
        ("d/reused", (0, 0)),
        ("d/reused2", (0, 0)),
        ("d/setuid", (0, 42)),
        ("d/cleared", (0, 42)),
        ("d/fifo", (0, 16)),
        ("d/shadow", (0, 42)),
        ("d/packaged", (0, 0)),
        ("d/descriptor", (17, 18)),
        ("jail/etc/f", (21, 22)),
        ("jail/etc/link", (0, 0)),
        ("jail/etc/g", (23, 24)),
        ("etc/f", (0, 0)),
        ("etc/shadow", (0, 42)),
        ("etc/shadow-", (0, 42)),
        ("etc/gshadow-", (0, 0)),
        ("tmp/elsewhere", (0, 0)),
    ];
    for (file, wanted) in expected {
        assert_eq!(ids(owners, file), wanted, "{file}");
    }
    let device = owners
        .get(&path("d/null"))
        .and_then(|owner| owner.device)
        .unwrap();
    assert_eq!((device.block, device.major, device.minor), (false, 1, 3));
    let plain = expected.iter().filter(|(_, wanted)| *wanted == (0, 0)).count();
    assert_eq!(owners.len(), expected.len() - plain + 1, "{owners:?}");
}

#[test]
fn owners_are_recorded_through_renames_links_descriptors_and_chroots() {
    let root = Root::new();
    let (outcome, text) = root.script(SCENARIO);
    assert!(outcome.ending.success(), "{}: {text}", outcome.ending);
    check_scenario(&outcome.owners);
    let mode = |name: &str| fs::metadata(root.path().join("d").join(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        mode("setuid"),
        0o4755,
        "a set-id bit that comes after chown stays"
    );
    assert_eq!(
        mode("cleared"),
        0o755,
        "chown clears set-id bits as the kernel does"
    );
}

#[test]
fn owners_last_from_run_to_run() {
    let root = Root::new();
    let mut sandbox = root.sandbox();
    run(&mut sandbox, ["/bin/sh", "-c", SCENARIO]);
    let (outcome, _) = run(
        &mut sandbox,
        [
            "/bin/sh",
            "-c",
            "mv /d/symlink2 /d/symlink3; mv /d/renamed /d/again",
        ],
    );
    assert_eq!(ids(&outcome.owners, "d/again"), (5, 6));
    assert_eq!(ids(&outcome.owners, "d/hardlink"), (5, 6));
    assert_eq!(
        ids(&outcome.owners, "d/symlink3"),
        (7, 8),
        "a link keeps its owner though it has no attributes"
    );
    let (outcome, _) = run(
        &mut root.sandbox().owners(&outcome.owners),
        ["/bin/sh", "-c", "chown -h 0:0 /d/symlink3"],
    );
    assert_eq!(ids(&outcome.owners, "d/symlink3"), (0, 0));
    assert_eq!(
        ids(&outcome.owners, "d/target"),
        (9, 10),
        "inodes carry their owner themselves"
    );
}

/// Runs a test of this program inside the sandbox (or as another user).
fn this_program(test: &str) -> [String; 4] {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    [program, "--ignored".into(), "--exact".into(), test.into()]
}

#[test]
fn calls_by_descriptor_and_file_capabilities_are_recorded() {
    let root = Root::new();
    let [program, rest @ ..] = this_program("helper_changes_owners_by_descriptor");
    let mut sandbox = root.sandbox().bind(Path::new(&program), Path::new("/run/helper"));
    for folder in ["lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.path().join(folder)).unwrap();
        let host = fs::canonicalize(Path::new("/").join(folder)).unwrap();
        sandbox = sandbox.bind(&host, &Path::new("/usr").join(folder));
    }
    let (outcome, text) = run(&mut sandbox, ["/run/helper", &rest[0], &rest[1], &rest[2]]);
    assert!(outcome.ending.success(), "{text}");
    assert_eq!(ids(&outcome.owners, "w/fchown"), (1, 2));
    assert_eq!(ids(&outcome.owners, "w/fchownat"), (3, 4));
    assert_eq!(ids(&outcome.owners, "w/empty"), (5, 6));
    assert_eq!(ids(&outcome.owners, "w/nofollow"), (7, 8));
    let capability = outcome
        .owners
        .get(&path("w/capability"))
        .and_then(|owner| owner.capability.clone());
    assert_eq!(capability, Some(CAPABILITY.to_vec()));
    assert!(
        outcome.counts.chown >= 4 && outcome.counts.xattr >= 1,
        "{:?}",
        outcome.counts
    );
}

/// `cap_net_raw=ep`, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
#[ignore = "runs inside the sandbox, started by calls_by_descriptor_and_file_capabilities_are_recorded"]
fn helper_changes_owners_by_descriptor() {
    let pair = |uid, gid| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fs::create_dir("/w").unwrap();
    let folder = fs::File::open("/w").unwrap();
    for name in ["fchown", "fchownat", "empty", "capability"] {
        fs::write(Path::new("/w").join(name), name).unwrap();
    }
    symlink("/w/fchown", "/w/nofollow").unwrap();
    let (uid, gid) = pair(1, 2);
    fchown(fs::File::open("/w/fchown").unwrap(), uid, gid).unwrap();
    let (uid, gid) = pair(3, 4);
    chownat(&folder, "fchownat", uid, None, AtFlags::empty()).unwrap();
    chownat(&folder, "fchownat", None, gid, AtFlags::empty()).unwrap();
    let (uid, gid) = pair(5, 6);
    chownat(
        fs::File::open("/w/empty").unwrap(),
        "",
        uid,
        gid,
        AtFlags::EMPTY_PATH,
    )
    .unwrap();
    let (uid, gid) = pair(7, 8);
    chownat(&folder, "nofollow", uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(
        chownat(&folder, "", uid, gid, AtFlags::empty()),
        Err(rustix::io::Errno::NOENT)
    );
    let closed = folder.as_fd().try_clone_to_owned().unwrap();
    drop(folder);
    assert_eq!(
        chownat(&closed, "absent", uid, gid, AtFlags::empty()),
        Err(rustix::io::Errno::NOENT)
    );
    rustix::fs::setxattr(
        "/w/capability",
        "security.capability",
        &CAPABILITY,
        XattrFlags::empty(),
    )
    .unwrap();
    let malformed = rustix::fs::setxattr("/w/fchown", "security.capability", &[1, 2], XattrFlags::empty());
    assert_eq!(malformed, Err(rustix::io::Errno::INVAL));
    let list = rustix::fs::setxattr(
        "/w/fchown",
        "system.posix_acl_access",
        &[2, 0, 0, 0],
        XattrFlags::empty(),
    );
    assert_eq!(list, Err(rustix::io::Errno::OPNOTSUPP));
    rustix::fs::setxattr("/w/fchown", "user.colour", b"red", XattrFlags::empty()).unwrap();
}

#[test]
fn root_and_an_ordinary_user_record_the_same() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run this test as root: it compares root with user {NOBODY}"
    );
    let as_user = |user: &str| -> Owners {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let kimage = folder.path().join("kimage");
        fs::copy(KIMAGE, &kimage).unwrap();
        let [_, rest @ ..] = this_program("helper_runs_the_scenario");
        let output = Command::new("setpriv")
            .args(["--reuid", user, "--regid", user, "--clear-groups"])
            .arg(&program)
            .args(rest)
            .arg("--nocapture")
            .env("KIMAGE_TEST_PROGRAM", &kimage)
            .output()
            .expect("this test needs setpriv: install the package util-linux");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let json = text
            .lines()
            .find_map(|line| line.split_once("owners:"))
            .unwrap()
            .1;
        serde_json::from_str(json).unwrap()
    };
    let (root, nobody) = (as_user("0"), as_user(NOBODY));
    assert_eq!(root, nobody);
    check_scenario(&root);
}

#[test]
#[ignore = "run as some user by root_and_an_ordinary_user_record_the_same"]
fn helper_runs_the_scenario() {
    let root = Root::new();
    let program = PathBuf::from(std::env::var_os("KIMAGE_TEST_PROGRAM").unwrap());
    let (outcome, text) = run(&mut root.sandbox().program(&program), ["/bin/sh", "-c", SCENARIO]);
    assert!(outcome.ending.success(), "{text}");
    println!("owners:{}", serde_json::to_string(&outcome.owners).unwrap());
}

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

#[test]
fn binds_are_read_only_unless_asked() {
    let root = Root::new();
    let shared = root.beside("shared");
    fs::write(shared.join("file"), "host").unwrap();
    let script = [
        "/bin/sh",
        "-c",
        "cat /run/in/file; echo x > /run/in/new && exit 1; exit 0",
    ];
    let (outcome, text) = run(&mut root.sandbox().bind(&shared, Path::new("/run/in")), script);
    assert!(outcome.ending.success() && text.starts_with("host"), "{text}");
    let script = ["/bin/sh", "-c", "echo x > /run/out/new"];
    let (outcome, _) = run(
        &mut root.sandbox().bind_writable(&shared, Path::new("/run/out")),
        script,
    );
    assert!(outcome.ending.success() && shared.join("new").exists());
}

/// Every file below `root`: path, mode and content.
fn listing(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            found.push((path.clone(), metadata.mode(), content));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_overlay_leaves_the_lower_tree_alone_and_tells_the_difference() {
    let root = Root::new();
    let lower = root.path();
    for name in [
        "dev", "proc", "run", "sys", "tmp", "keep", "drop", "swap", "remade",
    ] {
        fs::create_dir(lower.join(name)).unwrap();
        fs::write(lower.join(name).join("file"), name).unwrap();
    }
    fs::write(lower.join("turns"), "file").unwrap();
    let before = listing(&lower);
    let (upper, work) = (root.beside("upper"), root.beside("work"));
    let mut sandbox = Sandbox::overlay(std::slice::from_ref(&lower), &upper, &work).program(&root.kimage);
    let script = "set -e; echo more >> /keep/file; rm -r /drop; rm /swap/file; mkdir /swap/file; chown 3:4 /swap/file; \
                  rm -r /remade; mkdir /remade; echo x > /remade/other; chown 5:6 /remade/other; rm /turns; ln -s keep /turns; \
                  echo x > /new; rm /new; echo x > /fresh; chown 7:8 /fresh; ln -s x /link; chown -h 9:10 /link";
    let (outcome, text) = run(&mut sandbox, ["/bin/sh", "-c", script]);
    assert!(outcome.ending.success(), "{text}");
    assert_eq!(listing(&lower), before);
    let owned: Vec<_> = outcome
        .owners
        .iter()
        .map(|(path, owner)| (path.to_string(), owner.uid))
        .collect();
    let expected = [
        ("/fresh", 7),
        ("/link", 9),
        ("/remade/other", 5),
        ("/swap/file", 3),
    ];
    assert_eq!(owned, expected.map(|(path, uid)| (path.to_owned(), uid)));
    let changes = delta(&upper, std::slice::from_ref(&lower)).unwrap();
    let shown: Vec<_> = changes
        .iter()
        .map(|(path, change)| (path.to_string(), *change))
        .collect();
    let expected = [
        ("/drop", Change::Removed),
        ("/fresh", Change::Added),
        ("/keep", Change::Changed),
        ("/keep/file", Change::Changed),
        ("/link", Change::Added),
        ("/remade", Change::Changed),
        ("/remade/file", Change::Removed),
        ("/remade/other", Change::Added),
        ("/swap", Change::Changed),
        ("/swap/file", Change::Removed),
        ("/swap/file", Change::Added),
        ("/turns", Change::Changed),
    ];
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
    // The upper directory of one build is a lower directory of the next.
    let (upper2, work2) = (root.beside("upper2"), root.beside("work2"));
    let layers = [upper, lower];
    let mut second = Sandbox::overlay(&layers, &upper2, &work2)
        .program(&root.kimage)
        .owners(&outcome.owners);
    let script =
        "set -e; test ! -e /drop; test ! -e /remade/file; rm -r /remade; mkdir /drop; mv /link /link2";
    let (outcome, text) = run(&mut second, ["/bin/sh", "-c", script]);
    assert!(outcome.ending.success(), "{text}");
    assert_eq!(ids(&outcome.owners, "fresh"), (7, 8));
    assert_eq!(ids(&outcome.owners, "link2"), (9, 10));
    let shown: Vec<_> = delta(&upper2, &layers)
        .unwrap()
        .iter()
        .map(|(path, change)| (path.to_string(), *change))
        .collect();
    let expected = [
        ("/drop", Change::Added),
        ("/link", Change::Removed),
        ("/link2", Change::Added),
        ("/remade", Change::Removed),
    ];
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
}

#[test]
fn the_probe_says_yes_where_the_sandbox_works() {
    let folder = tempfile::tempdir().unwrap();
    probe_by(Path::new(KIMAGE), folder.path()).unwrap();
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the probe cleans up"
    );
}

#[test]
fn a_host_that_refuses_is_told_the_remedy() {
    let [program, rest @ ..] = this_program("helper_is_refused");
    // A user namespace that may have no others in it: what a locked-down host looks like.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "sh", "-c", script, "sh"])
        .arg(program)
        .args(rest);
    let output = command
        .output()
        .expect("this test needs unshare: install the package util-linux");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
#[ignore = "runs where namespaces are refused, started by a_host_that_refuses_is_told_the_remedy"]
fn helper_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = probe_by(Path::new(KIMAGE), folder.path()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Sandbox);
    let hints: Vec<_> = hints(&error).collect();
    assert!(
        hints.len() == 1 && hints[0].contains("user.max_user_namespaces"),
        "{hints:?}"
    );
}

#[test]
#[ignore = "started and killed by a_killed_caller_leaves_no_process"]
fn helper_runs_for_ever() {
    let root = PathBuf::from(std::env::var_os("KIMAGE_TEST_ROOT").unwrap());
    let script = [
        "/bin/sh",
        "-c",
        "sleep 1000 & (sleep 1000 &); touch /started; sleep 1000",
    ];
    Sandbox::directory(&root)
        .program(Path::new(KIMAGE))
        .run(script, &mut |_| {})
        .unwrap();
}

/// The living processes that descend from `ancestor`.
fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        parents.push((pid, fields[1].parse::<u32>().unwrap()));
    }
    let mut found = BTreeSet::from([ancestor]);
    while parents
        .iter()
        .any(|(pid, parent)| found.contains(parent) && !found.contains(pid))
    {
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
    }
    found.remove(&ancestor);
    found
}

/// Start time of a process: with the id it names the process for ever.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

#[test]
fn a_killed_caller_leaves_no_process() {
    let root = Root::new();
    let [program, rest @ ..] = this_program("helper_runs_for_ever");
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("KIMAGE_TEST_ROOT", root.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut caller = command.spawn().unwrap();
    let begun = Instant::now();
    while !root.path().join("started").exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the sandbox did not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let family: Vec<_> = descendants(caller.id())
        .into_iter()
        .filter_map(|pid| Some((pid, start_time(pid)?)))
        .collect();
    assert!(family.len() >= 5, "{family:?}");
    caller.kill().unwrap();
    caller.wait().unwrap();
    let begun = Instant::now();
    while family
        .iter()
        .any(|(pid, started)| start_time(*pid).as_ref() == Some(started))
    {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "processes of {family:?} are still there"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn thousands_of_owners_are_all_recorded() {
    let root = Root::new();
    let (outcome, text) = root.script("mkdir /d; cd /d; i=0; while [ $i -lt 2000 ]; do : > f$i; i=$((i+1)); done; chown 0:0 f*; chown 1:1 f*");
    assert!(
        outcome.ending.success() && outcome.counts.chown == 4000,
        "{:?} {text}",
        outcome.counts
    );
    assert_eq!(outcome.owners.len(), 2000);
    let owner = Owner {
        uid: 1,
        gid: 1,
        ..Owner::default()
    };
    assert!(outcome.owners.iter().all(|(_, recorded)| *recorded == owner));
}
