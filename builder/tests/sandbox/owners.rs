//! Who owns what, after commands that ran without rights.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kimage_builder::tree::sandbox::{Owner, Owners};
use rustix::fs::{AtFlags, Gid, Uid, XattrFlags, chownat, fchown};

use super::fixture::{KIMAGE, Root, ids, path, run, run_here, this_program};

/// User id without any privilege.
const NOBODY: &str = "65534";

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

#[test]
fn calls_by_descriptor_and_file_capabilities_are_recorded() {
    let root = Root::new();
    let (outcome, text) = run_here(&root, "owners::helper_changes_owners_by_descriptor");
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
        let [_, rest @ ..] = this_program("owners::helper_runs_the_scenario");
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
