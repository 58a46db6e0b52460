//! A small definition over the packages that ship, and the tree that is made of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kimage_builder::definition::image::ImageManifest;
use kimage_builder::definition::role::RoleManifest;
use kimage_builder::definition::{Definition, Image, Role};
use kimage_builder::lock::{Lock, LockedPackage};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tree::{Assembled, Baked, Entry, Kind, Options, Tree, TreePath, Workshop, assemble};
use kimage_qemu_tests::images::kimage;
use kimage_qemu_tests::packages::Locked;

pub(crate) const EPOCH: u32 = 1_795_132_800;

/// Packages of the role that say nothing about the tree which others do not say, and are large.
pub(crate) const WITHOUT: [&str; 2] = ["containerd", "runc"];

pub(crate) const IMAGE: &str = r#"
schema = 1
title = "Test"
[archive]
architecture = "amd64"
path = "ubuntu"
keys = []
fingerprints = []
suites = []
[kernel]
command-line = []
stage0-always = []
stage0-hardware = []
leave-out = ["kernel/sound/**", "kernel/drivers/media/**"]
[[packages.leave-out]]
package = "python3"
because = "no script of a node needs it"
[[packages.leave-out]]
package = "linux-firmware"
because = "no device of a virtual machine needs it"
[[packages.leave-out]]
package = "intel-microcode"
because = "the hypervisor's host updates the processor"
[[packages.leave-out]]
package = "amd64-microcode"
because = "the hypervisor's host updates the processor"
[[packages.leave-out]]
package = "wireless-regdb"
because = "no radio in a virtual machine"
[[packages.leave-out]]
files = ["/usr/share/doc/**", "/usr/share/man/**", "/usr/share/locale/**"]
keep = ["/usr/share/doc/*/copyright"]
because = "nobody reads it on a node"
[units]
enable = ["chrony.service", "systemd-networkd.service", "systemd-resolved.service"]
mask = ["fstrim.timer"]
[[users]]
name = "_chrony"
uid = 100
gid = 102
home = "/var/lib/chrony"
[[users]]
name = "messagebus"
uid = 101
gid = 103
[[users]]
name = "systemd-network"
uid = 998
gid = 998
home = "/"
[[users]]
name = "systemd-resolve"
uid = 993
gid = 993
home = "/"
"#;

pub(crate) const GROUPS: [(&str, u32); 9] = [
    ("_chrony", 102),
    ("messagebus", 103),
    ("systemd-network", 998),
    ("systemd-resolve", 993),
    ("systemd-journal", 999),
    ("input", 997),
    ("sgx", 996),
    ("kvm", 995),
    ("render", 994),
];

pub(crate) const ROLE: &str = r#"
schema = 1
title = "Test"
modules = ["br_netfilter"]
[sysctls]
"net.ipv4.ip_forward" = "1"
[units]
enable = ["iscsid.socket"]
[budget]
image-mb = 500
boot-seconds = 60
[[users]]
name = "_rpc"
uid = 102
gid = 65534
home = "/run/rpcbind"
[[users]]
name = "statd"
uid = 103
gid = 65534
home = "/var/lib/nfs"
"#;

/// The lock of the image that ships; part of this program, which a test starts as a user who can't read the sources.
pub(crate) const LOCK: &str = include_str!("../../../images/ubuntu-24.04/image.lock");

/// The lock, with the packages of the worker only.
pub(crate) fn lock() -> Lock {
    let mut lock: Lock = toml::from_str(LOCK).unwrap();
    lock.epoch = EPOCH;
    lock.component.clear();
    lock.toolchain.clear();
    lock.package.retain(|package| {
        let ours = package.base || package.roles.iter().any(|role| role == "worker");
        ours && !WITHOUT.contains(&package.name.as_str())
    });
    lock
}

/// Fills `folder/store` with the packages, for [`workplace`].
pub(crate) fn fill(folder: &Path) {
    let store = Store::open(&folder.join("store")).unwrap();
    let locked = Locked::of("ubuntu-24.04").unwrap();
    let lock = lock();
    let packages: Vec<&LockedPackage> = lock.package.iter().collect();
    for deb in locked.debs(&packages).unwrap() {
        store.put(&std::fs::read(deb).unwrap()).unwrap();
    }
}

/// A definition, a lock and the store that [`fill`] filled.
pub(crate) fn workplace(folder: &Path) -> (Definition, Lock, Store) {
    let mut manifest: ImageManifest = toml::from_str(IMAGE).unwrap();
    manifest.groups = GROUPS
        .iter()
        .map(|(name, gid)| toml::from_str(&format!("name = {name:?}\ngid = {gid}")).unwrap())
        .collect();
    let image = Image {
        name: "test".into(),
        folder: folder.join("image"),
        manifest,
    };
    let manifest: RoleManifest = toml::from_str(ROLE).unwrap();
    let role = Role {
        name: "worker".into(),
        folder: folder.join("role"),
        manifest,
    };
    let script = folder.join("image/rootfs/usr/lib/kimage/script");
    std::fs::create_dir_all(script.parent().unwrap()).unwrap();
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::create_dir_all(folder.join("role/files/var/lib/test")).unwrap();
    std::fs::write(folder.join("role/files/var/lib/test/file"), "x").unwrap();

    let store = Store::open(&folder.join("store")).unwrap();
    (
        Definition {
            image,
            role,
            components: Vec::new(),
        },
        lock(),
        store,
    )
}

/// Name of the variable that tells a child of these tests where `kimage` is.
pub(crate) const PROGRAM: &str = "KIMAGE_TEST_PROGRAM";

pub(crate) fn program() -> &'static Path {
    static PROGRAM_PATH: OnceLock<PathBuf> = OnceLock::new();
    let find = || std::env::var_os(PROGRAM).map_or_else(|| kimage().unwrap().to_owned(), PathBuf::from);
    PROGRAM_PATH.get_or_init(find)
}

pub(crate) fn options(jobs: usize) -> Options<'static> {
    let workshop = Workshop {
        program: Some(program()),
        jobs,
        foreseen: None,
    };
    Options {
        cache: true,
        workshop,
    }
}

pub(crate) fn assembled_in(folder: &Path, jobs: usize) -> Assembled {
    let (definition, lock, store) = workplace(folder);
    let files = [(
        b"var/lib/component/data".as_slice(),
        Entry::bytes(0o600, *b"data"),
    )];
    let files = files
        .map(|(path, entry)| (TreePath::parse(path).unwrap(), entry))
        .to_vec();
    let baked = Baked {
        files,
        components: Vec::new(),
    };
    assemble(
        &definition,
        &lock,
        &store,
        baked,
        &Progress::silent(),
        &options(jobs),
    )
    .unwrap_or_else(|error| {
        let hints: Vec<&str> = kimage_builder::failure::hints(&error).collect();
        panic!("{error:?}\n{}", hints.join("\n"))
    })
}

/// Most tests look at one tree.
pub(crate) fn assembled() -> &'static Assembled {
    static ONCE: OnceLock<(Assembled, tempfile::TempDir)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        (assembled_in(folder.path(), 2), folder)
    };
    &ONCE.get_or_init(make).0
}

/// One line per entry: when two trees differ, it says where.
pub(crate) fn listing(tree: &Tree) -> String {
    let line = |(path, entry): (&TreePath, &Entry)| {
        let kind = match &entry.kind {
            Kind::File { digest, .. } => digest.to_string(),
            other => format!("{other:?}"),
        };
        format!(
            "{path} {:o} {} {} {:?} {kind}\n",
            entry.mode, entry.uid, entry.gid, entry.xattrs
        )
    };
    tree.entries().map(line).collect()
}

pub(crate) fn get(tree: &Tree, path: &str) -> Option<Entry> {
    tree.get(&TreePath::parse(path.as_bytes()).unwrap()).cloned()
}

pub(crate) fn text(tree: &Tree, path: &str) -> String {
    let entry = get(tree, path).unwrap_or_else(|| panic!("{path} is absent"));
    String::from_utf8(entry.read().unwrap()).unwrap()
}

pub(crate) fn link(tree: &Tree, path: &str) -> String {
    match get(tree, path).unwrap_or_else(|| panic!("{path} is absent")).kind {
        Kind::Symlink(target) => String::from_utf8(target).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}
