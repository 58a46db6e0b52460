//! The baked containerd store against programs that others wrote: bbolt's own checker, and containerd 2.x of Ubuntu's
//! archive, which must accept the store as its own. Needs root, and the tools that `tool` names.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the programs that they compare with"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kimage_builder::digest::Digest;
use kimage_builder::tool::Tool;
use kimage_builder::tree::containerd::{Config, Image, STORE, store};
use kimage_builder::tree::{Content, Entry, Kind, Tree, TreePath};
use kimage_qemu_tests::packages::Locked;
use kimage_qemu_tests::programs::guest;

const MTIME: u32 = 1_760_000_000;

/// Runs a tool that a test can't do without.
fn tool(program: impl AsRef<std::ffi::OsStr>, install: &str, arguments: &[&str]) -> Output {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}: install {install}", program.display()));
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}\n{}{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What outlives this run.
const CACHE: &str = env!("CARGO_TARGET_TMPDIR");

/// The folder with `containerd` and `ctr` of Ubuntu 24.04.
fn containerd() -> PathBuf {
    let locked = Locked::of("ubuntu-24.04").unwrap();
    let root = locked.unpacked(&["containerd"], Path::new(CACHE)).unwrap();
    root.join("usr/bin")
}

/// The checker of the library that containerd writes its databases with.
fn bbolt() -> PathBuf {
    let folder = Path::new(CACHE).join("bbolt");
    let program = folder.join("bbolt");
    if !program.exists() {
        let go = Tool::new("go")
            .args(["install", "-modcacherw", "go.etcd.io/bbolt/cmd/bbolt@v1.5.0"])
            .inherit(&["PATH", "HOME", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS"])
            .env("GOPATH", folder.join("path"))
            .env("GOCACHE", folder.join("cache"))
            .env("GOBIN", &folder);
        go.run()
            .expect("this test needs Go 1.25 or later to build bbolt's checker: install go");
    }
    program
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn busybox() -> (PathBuf, Entry) {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists());
    let host = found
        .expect("this test needs a static busybox: install busybox-static")
        .to_owned();
    let (digest, size) = Digest::of_file(&host).unwrap();
    let kind = Kind::File {
        content: Content::File(host.clone()),
        size,
        digest,
    };
    (
        host,
        Entry {
            kind,
            ..Entry::bytes(0o755, vec![])
        },
    )
}

fn images(count: u8) -> Vec<Image> {
    let config = Config {
        entrypoint: vec!["/bin/busybox".into()],
        user: "65532:65532".into(),
        environment: vec!["PATH=/bin".into()],
        labels: [("org.opencontainers.image.version".to_owned(), "1".to_owned())].into(),
        ..Config::default()
    };
    let make = |index: u8| Image {
        reference: format!("registry.example.org/kimage/app{index}:v1.{index}"),
        config: config.clone(),
        files: vec![
            (path("bin/busybox"), busybox().1),
            (path("bin/sh"), Entry::symlink("busybox")),
            (
                path("etc/number"),
                Entry::bytes(0o640, vec![b'0' + index % 10; usize::from(index) + 1]),
            ),
            (
                path("tmp"),
                Entry {
                    mode: 0o1777,
                    ..Entry::directory(0)
                },
            ),
            (
                path("data"),
                Entry {
                    uid: 65532,
                    gid: 65532,
                    ..Entry::directory(0o700)
                },
            ),
        ],
    };
    (0..count).map(make).collect()
}

/// Writes the entries as the image would hold them.
fn unpack(entries: Vec<(TreePath, Entry)>, root: &Path) {
    let mut tree = Tree::new(MTIME);
    for (path, entry) in entries {
        tree.insert(path, entry).unwrap();
    }
    for (path, entry) in tree.entries() {
        let host = path.under(root);
        match &entry.kind {
            Kind::Directory => fs::create_dir_all(&host).unwrap(),
            Kind::File {
                content: Content::Bytes(bytes),
                ..
            } => fs::write(&host, bytes).unwrap(),
            Kind::File {
                content: Content::File(from),
                ..
            } => drop(fs::copy(from, &host).unwrap()),
            Kind::Symlink(target) => {
                symlink(String::from_utf8_lossy(target).as_ref(), &host).unwrap();
                continue;
            }
            other => panic!("{path}: {other:?}"),
        }
        chown(&host, Some(entry.uid), Some(entry.gid)).unwrap();
        fs::set_permissions(&host, fs::Permissions::from_mode(u32::from(entry.mode))).unwrap();
    }
}

fn databases(store: &Path) -> [PathBuf; 2] {
    [
        "io.containerd.metadata.v1.bolt/meta.db",
        "io.containerd.snapshotter.v1.overlayfs/metadata.db",
    ]
    .map(|name| store.join(name))
}

fn check(store: &Path) {
    for database in databases(store) {
        let output = tool(bbolt(), "go", &["check", database.to_str().unwrap()]);
        assert!(
            text(&output).contains("OK"),
            "{}: {}",
            database.display(),
            text(&output)
        );
    }
}

#[test]
fn bbolt_finds_no_fault_in_the_databases() {
    // From one inline page to buckets of many overflow pages.
    for count in [0, 1, 5, 60] {
        let folder = tempfile::tempdir().unwrap();
        for (path, entry) in store(&images(count), MTIME).unwrap() {
            let Kind::File {
                content: Content::Bytes(bytes),
                ..
            } = &entry.kind
            else {
                continue;
            };
            if path.name().is_some_and(|name| name.ends_with(b".db")) {
                let host = path.under(folder.path());
                fs::create_dir_all(host.parent().unwrap()).unwrap();
                fs::write(&host, bytes).unwrap();
            }
        }
        check(&folder.path().join(STORE));
        let [meta, _] = databases(&folder.path().join(STORE));
        let keys = ["keys", meta.to_str().unwrap(), "v1", "k8s.io", "images"];
        if count > 0 {
            let keys = text(&tool(bbolt(), "go", &keys));
            assert_eq!(keys.lines().count(), usize::from(count) * 3, "{keys}");
        }
    }
}

/// What happens in the machine, in its own mount and process namespaces.
const MACHINE: &str = r#"
set -eu
mount --bind "$1" "$1"
cd "$1"
mkdir -p proc sys dev run mnt tmp
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs tmpfs run
mount --bind usr/lib/kimage usr/lib/kimage; mount -o remount,bind,ro usr/lib/kimage
start() {
    chroot . /usr/bin/containerd --config /etc/containerd/config.toml > "$1" 2>&1 &
    daemon=$!
    for i in $(seq 300); do
        if chroot . /usr/bin/ctr version > /dev/null 2>&1 && grep -q 'containerd successfully booted' "$1"; then return; fi
        kill -0 $daemon || exit 90
        sleep 0.1
    done
    exit 91
}
stop() { kill $daemon; wait $daemon || true; }
ctr() { echo "== $*"; chroot . /usr/bin/ctr -n k8s.io "$@"; }
start log.first
ctr images ls
ctr images check
ctr content ls
ctr snapshots ls
ctr snapshots usage
echo "== in the images"
for key in $(chroot . /usr/bin/ctr -n k8s.io snapshots ls | sed -n 's/ .*Committed.*//p'); do
    command=$(chroot . /usr/bin/ctr -n k8s.io snapshots prepare --target /mnt container "$key")
    case $command in *overlay*) ;; *) echo "no overlay: $command"; exit 92;; esac
    chroot . /bin/busybox sh -c "$command"
    chroot mnt /bin/sh -c 'busybox touch /data/written; busybox cat /etc/number; echo; busybox stat -c "%a %u:%g" /data /tmp /etc/number'
    umount mnt
    chroot . /usr/bin/ctr -n k8s.io snapshots rm container
done
digest=$(chroot . /usr/bin/ctr -n k8s.io images ls -q | sed -n 's/.*app1@//p')
names=$(chroot . /usr/bin/ctr -n k8s.io images ls | grep "$digest" | cut -d' ' -f1)
for i in $(seq 100); do if [ "$(grep -c 'Loaded image' log.first)" -ge 15 ]; then break; fi; sleep 0.1; done
stop
start log.second
ctr images rm --sync $names
ctr images ls -q
stop
"#;

#[test]
fn containerd_takes_the_store_for_its_own() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run this test as root: containerd mounts file systems"
    );
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    unpack(store(&images(5), MTIME).unwrap(), root);
    let programs = containerd();
    install(&programs, root);
    let before = tool("find", "findutils", &[root.join(STORE).to_str().unwrap(), "-ls"]);
    let firstboot = root.join("usr/lib/kimage/kimage-firstboot");
    fs::write(&firstboot, guest("kimage-firstboot").unwrap()).unwrap();
    fs::set_permissions(&firstboot, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(root.join("var/lib")).unwrap();
    let inside = [
        root.to_str().unwrap(),
        "/usr/lib/kimage/kimage-firstboot",
        "containers",
    ];
    tool("chroot", "coreutils", &inside);
    let seeded = root.join(
        fs::read_link(root.join("var/lib/containerd"))
            .unwrap()
            .strip_prefix("/")
            .unwrap(),
    );
    check(&seeded);
    let arguments = [
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
        "sh",
        "-c",
        MACHINE,
        "sh",
    ];
    let output = Command::new("unshare")
        .args(arguments)
        .arg(root)
        .output()
        .expect("install util-linux");
    let log = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let shown = format!("{}{}", text(&output), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{}\n{shown}\n{}",
        output.status,
        log("log.first")
    );

    let printed = text(&output);
    let section = |title: &str| {
        let start = shown
            .find(&format!("== {title}"))
            .unwrap_or_else(|| panic!("no {title} in {shown}"));
        printed[start..]
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with("== "))
            .collect::<Vec<_>>()
    };
    let listed = section("images ls");
    assert_eq!(listed.len(), 1 + 15, "{shown}");
    assert!(
        listed[1..]
            .iter()
            .all(|line| line.contains("io.cri-containerd.image=managed")),
        "{shown}"
    );
    assert!(
        listed[1..]
            .iter()
            .all(|line| line.contains("io.cri-containerd.pinned=pinned")),
        "{shown}"
    );
    let checked = section("images check");
    assert_eq!(
        checked[1..]
            .iter()
            .filter(|line| line.contains("incomplete (1/2)"))
            .count(),
        15,
        "layers only: {shown}"
    );
    assert!(
        checked[1..].iter().all(|line| line.trim_end().ends_with("true")),
        "all unpacked: {shown}"
    );
    assert_eq!(section("content ls").len(), 1 + 10, "{shown}");
    assert_eq!(
        section("snapshots ls")[1..]
            .iter()
            .filter(|line| line.contains("Committed"))
            .count(),
        5,
        "{shown}"
    );
    let seen = section("in the images");
    let numbers: BTreeSet<&str> = seen.iter().step_by(4).copied().collect();
    assert_eq!(
        numbers,
        BTreeSet::from(["0", "11", "222", "3333", "44444"]),
        "{shown}"
    );
    assert!(
        seen.chunks(4)
            .all(|lines| lines[1..] == ["700 65532:65532", "1777 0:0", "640 0:0"]),
        "{shown}"
    );
    let first = log("log.first");
    assert_eq!(
        first.matches("Loaded image").count(),
        15,
        "the kubelet's side of containerd knows the images: {first}"
    );
    for complaint in ["is not unpacked", "is not ok", "Failed to"] {
        let found = first
            .lines()
            .find(|line| line.contains(complaint) && line.contains("image"));
        assert_eq!(found, None);
    }
    // Removing an image collects its own records and nothing else, and never reaches the read-only part.
    assert_eq!(section("images ls -q").len(), 12, "{shown}");
    let links = fs::read_dir(seeded.join("io.containerd.snapshotter.v1.overlayfs/snapshots"))
        .unwrap()
        .count();
    assert_eq!(
        links, 4,
        "the removed image's snapshot is gone from the writable part"
    );
    check(&seeded);
    let after = tool("find", "findutils", &[root.join(STORE).to_str().unwrap(), "-ls"]);
    assert_eq!(text(&before), text(&after));
}

/// Puts containerd, its client and their libraries into `root`.
fn install(programs: &Path, root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("etc/containerd")).unwrap();
    for program in ["containerd", "ctr"] {
        fs::copy(programs.join(program), root.join("usr/bin").join(program)).unwrap();
        let libraries = text(&tool(
            "ldd",
            "libc-bin",
            &[programs.join(program).to_str().unwrap()],
        ));
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            let target = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(library, target).unwrap();
        }
    }
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox().0, root.join("bin/busybox")).unwrap();
    let config = "version = 3\n[debug]\nlevel = 'debug'\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/etc/cni/net.d'\n";
    fs::write(root.join("etc/containerd/config.toml"), config).unwrap();
}
