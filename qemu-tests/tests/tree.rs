//! The tree stage on real packages: what dpkg itself would have made, the same on every host, in two layers.
//! The packages are those that the lock of ubuntu-24.04 names for the worker. Run as root: the real dpkg needs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kimage_builder::definition::image::ImageManifest;
use kimage_builder::definition::role::RoleManifest;
use kimage_builder::definition::{Definition, Image, Role};
use kimage_builder::digest::Digest;
use kimage_builder::lock::{Lock, LockedPackage};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;
use kimage_builder::tree::configure;
use kimage_builder::tree::deb::Deb;
use kimage_builder::tree::dpkg::Package;
use kimage_builder::tree::layer::{self, Input, Layer, Recipe};
use kimage_builder::tree::leave_out::LeaveOuts;
use kimage_builder::tree::{
    Assembled, Baked, Entry, Kind, Options, Tree, TreePath, Workshop, assemble, fingerprint,
};
use kimage_qemu_tests::images::kimage;
use kimage_qemu_tests::packages::Locked;

const EPOCH: u32 = 1_795_132_800;

/// Packages of the role that say nothing about the tree which others do not say, and are large.
const WITHOUT: [&str; 2] = ["containerd", "runc"];

const IMAGE: &str = r#"
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
const GROUPS: [(&str, u32); 9] = [
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
const ROLE: &str = r#"
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
const LOCK: &str = include_str!("../../images/ubuntu-24.04/image.lock");

/// The lock, with the packages of the worker only.
fn lock() -> Lock {
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
fn fill(folder: &Path) {
    let store = Store::open(&folder.join("store")).unwrap();
    let locked = Locked::of("ubuntu-24.04").unwrap();
    let lock = lock();
    let packages: Vec<&LockedPackage> = lock.package.iter().collect();
    for deb in locked.debs(&packages).unwrap() {
        store.put(&std::fs::read(deb).unwrap()).unwrap();
    }
}

/// A definition, a lock and the store that [`fill`] filled.
fn workplace(folder: &Path) -> (Definition, Lock, Store) {
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
const PROGRAM: &str = "KIMAGE_TEST_PROGRAM";

fn program() -> PathBuf {
    static PROGRAM_PATH: OnceLock<PathBuf> = OnceLock::new();
    let find = || std::env::var_os(PROGRAM).map_or_else(|| kimage().unwrap().to_owned(), PathBuf::from);
    PROGRAM_PATH.get_or_init(find).clone()
}

fn options(jobs: usize) -> Options {
    let workshop = Workshop {
        program: Some(program()),
        jobs,
    };
    Options {
        cache: true,
        workshop,
    }
}

fn assembled_in(folder: &Path, jobs: usize) -> Assembled {
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
fn assembled() -> &'static Assembled {
    static ONCE: OnceLock<(Assembled, tempfile::TempDir)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        (assembled_in(folder.path(), 2), folder)
    };
    &ONCE.get_or_init(make).0
}

/// One line per entry: when two trees differ, it says where.
fn listing(tree: &Tree) -> String {
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

fn get(tree: &Tree, path: &str) -> Option<Entry> {
    tree.get(&TreePath::parse(path.as_bytes()).unwrap()).cloned()
}

fn text(tree: &Tree, path: &str) -> String {
    let entry = get(tree, path).unwrap_or_else(|| panic!("{path} is absent"));
    String::from_utf8(entry.read().unwrap()).unwrap()
}

fn link(tree: &Tree, path: &str) -> String {
    match get(tree, path).unwrap_or_else(|| panic!("{path} is absent")).kind {
        Kind::Symlink(target) => String::from_utf8(target).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

#[test]
fn every_file_holds_the_bytes_that_its_digest_names() {
    for (path, entry) in assembled().tree.entries() {
        if let Kind::File { size, digest, .. } = &entry.kind {
            let bytes = entry.read().unwrap();
            assert_eq!(
                (Digest::of(&bytes), bytes.len() as u64),
                (*digest, *size),
                "{path}"
            );
        }
    }
}

#[test]
fn owners_are_those_that_packages_and_scripts_asked_for() {
    let tree = &assembled().tree;
    let owner = |path: &str| {
        get(tree, path)
            .map(|entry| (entry.mode, entry.uid, entry.gid))
            .unwrap()
    };
    assert_eq!(owner("etc/shadow"), (0o640, 0, 42));
    assert_eq!(owner("usr/sbin/unix_chkpwd"), (0o2755, 0, 42));
    assert_eq!(
        owner("usr/lib/dbus-1.0/dbus-daemon-launch-helper"),
        (0o4754, 0, 103)
    );
    assert_eq!(owner("etc/chrony/chrony.keys"), (0o640, 0, 102));
    // The role's layer, with a user that the role fixes.
    assert_eq!(owner("usr/share/factory/var/lib/nfs/sm").1, 103);
}

#[test]
fn what_belongs_to_one_machine_or_one_build_is_gone() {
    let tree = &assembled().tree;
    assert_eq!(text(tree, "etc/machine-id"), "");
    assert_eq!(
        link(tree, "etc/resolv.conf"),
        "../run/systemd/resolve/stub-resolv.conf"
    );
    for path in [
        "etc/hostname",
        "etc/passwd-",
        "etc/iscsi/initiatorname.iscsi",
        "boot/vmlinuz",
    ] {
        assert!(get(tree, path).is_none(), "{path}");
    }
    let day = (EPOCH / 86_400).to_string();
    for line in text(tree, "etc/shadow").lines() {
        let changed = line.split(':').nth(2).unwrap();
        assert!(changed.is_empty() || changed == day, "{line}");
    }
    for (path, entry) in tree.entries() {
        let text = path.to_string();
        let log = text.starts_with("/usr/share/factory/var/log/") && !matches!(entry.kind, Kind::Directory);
        assert!(
            !log && !text.contains(".kimage-") && !text.contains(".dpkg-new"),
            "{text}"
        );
    }
}

#[test]
fn var_is_a_mount_point_and_its_content_a_template() {
    let tree = &assembled().tree;
    let var = TreePath::parse(b"var").unwrap();
    let left: Vec<String> = tree.subtree(&var).map(|(path, _)| path.to_string()).collect();
    assert_eq!(left, ["/var", "/var/lib", "/var/lib/dpkg"]);
    let status = text(tree, "usr/lib/sysimage/dpkg/status");
    assert!(status.contains("Package: open-iscsi\nStatus: install ok installed\n"));
    assert!(status.contains("Package: bash\n") && !status.contains("unpacked"));
    assert_eq!(text(tree, "usr/share/factory/var/lib/test/file"), "x");
    assert_eq!(
        get(tree, "usr/share/factory/var/lib/component/data")
            .unwrap()
            .mode,
        0o600
    );
    assert_eq!(get(tree, "usr/lib/kimage/script").unwrap().mode, 0o755);
}

#[test]
fn units_run_as_the_definition_says_and_no_others() {
    let tree = &assembled().tree;
    let system = TreePath::parse(b"etc/systemd/system").unwrap();
    let links = tree
        .subtree(&system)
        .filter(|(_, entry)| matches!(entry.kind, Kind::Symlink(_)));
    let links: BTreeSet<String> = links.map(|(path, _)| path.to_string()).collect();
    assert!(
        links.contains("/etc/systemd/system/multi-user.target.wants/chrony.service"),
        "{links:?}"
    );
    assert!(
        links.contains("/etc/systemd/system/sockets.target.wants/iscsid.socket"),
        "{links:?}"
    );
    assert_eq!(link(tree, "etc/systemd/system/fstrim.timer"), "/dev/null");
    assert!(
        !links
            .iter()
            .any(|link| link.contains("open-iscsi") || link.contains("e2scrub")),
        "{links:?}"
    );
}

#[test]
fn the_kernel_is_beside_the_tree_and_its_modules_in_it() {
    let assembled = assembled();
    let tree = &assembled.tree;
    let modules = format!("usr/lib/modules/{}", assembled.kernel.version);
    let dep = text(tree, &format!("{modules}/modules.dep"));
    assert!(dep.contains("overlay.ko"));
    assert!(
        !dep.contains("kernel/drivers/media/") && get(tree, &format!("{modules}/kernel/sound")).is_none()
    );
    for line in dep.lines() {
        let module = line.split(':').next().unwrap();
        assert!(get(tree, &format!("{modules}/{module}")).is_some(), "{module}");
    }
    let image = assembled.kernel.image.read().unwrap();
    // Documentation/arch/x86/boot.rst: magic of the setup header.
    assert_eq!(&image[0x202..0x206], b"HdrS");
    assert_eq!(&assembled.kernel.stub.read().unwrap()[..2], b"MZ");
    assert_eq!(&assembled.kernel.boot_loader.read().unwrap()[..2], b"MZ");
    assert!(get(tree, "usr/lib/systemd/boot/efi").is_none());
}

#[test]
fn every_package_is_listed_with_its_licence() {
    let assembled = assembled();
    let names: BTreeSet<&str> = assembled
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let lock = lock();
    assert!(
        lock.package
            .iter()
            .all(|package| names.contains(package.name.as_str()))
    );
    let without: Vec<&str> = assembled
        .packages
        .iter()
        .filter(|package| package.licence.is_none())
        .map(|p| p.name.as_str())
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

/// Runs in a child process of the next test, as another user.
#[test]
#[ignore = "the child of the next test"]
fn child_prints_a_fingerprint() {
    let folder = PathBuf::from(std::env::var_os("KIMAGE_TEST_FOLDER").unwrap());
    let assembled = assembled_in(&folder, 1);
    std::fs::write(folder.join("listing"), listing(&assembled.tree)).unwrap();
    println!("fingerprint {}", fingerprint(&assembled.tree));
}

#[test]
fn another_user_folder_umask_and_number_of_threads_give_the_same_tree() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run this test as root: it becomes another user"
    );
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("a longer name");
    std::fs::create_dir(&other).unwrap();
    fill(&other);
    let [test, kimage] =
        [(std::env::current_exe().unwrap(), "test"), (program(), "kimage")].map(|(from, name)| {
            let to = folder.path().join(name);
            std::fs::copy(from, &to).unwrap();
            to
        });
    let own = Tool::new("/bin/chown").args(["-R", "65534:65534"]);
    own.arg(folder.path()).run().unwrap();
    let script = "umask 077; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" --ignored --exact --nocapture child_prints_a_fingerprint";
    let output = Tool::new("/bin/sh")
        .args(["-c", script])
        .arg(test)
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", &other)
        .env(PROGRAM, kimage)
        .env("KIMAGE_TEST_FOLDER", &other)
        .run()
        .unwrap();
    let output = String::from_utf8(output).unwrap();
    let theirs = std::fs::read_to_string(other.join("listing")).unwrap();
    let (ours, theirs) = (listing(&assembled().tree), theirs);
    let (ours, theirs): (BTreeSet<&str>, BTreeSet<&str>) = (ours.lines().collect(), theirs.lines().collect());
    assert!(
        ours == theirs,
        "{:#?}",
        ours.symmetric_difference(&theirs).collect::<Vec<_>>()
    );
    let theirs = output
        .lines()
        .find_map(|line| line.split_once("fingerprint "))
        .unwrap()
        .1;
    assert_eq!(theirs, fingerprint(&assembled().tree).to_string());
}

#[test]
fn a_user_that_the_definition_does_not_fix_is_named_with_the_lines_to_add() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let (mut definition, lock, store) = workplace(folder.path());
    definition.role.manifest.users.retain(|user| user.name != "statd");
    // A role's failure must not cost the base: it is cached.
    let run = |definition: &Definition| {
        assemble(
            definition,
            &lock,
            &store,
            Baked::default(),
            &Progress::silent(),
            &options(2),
        )
    };
    let error = run(&definition).unwrap_err();
    assert!(format!("{error:#}").contains("statd"), "{error:#}");
    let hints: String = kimage_builder::failure::hints(&error).collect();
    assert!(hints.contains("[[users]]\nname = \"statd\"\nuid = "), "{hints}");
    definition.role.manifest.units.enable = vec!["nonesuch.service".into()];
    definition.role.manifest.users = toml::from_str::<RoleManifest>(ROLE).unwrap().users;
    let error = format!("{:#}", run(&definition).unwrap_err());
    assert!(
        error.contains("roles/worker/role.toml") && error.contains("nonesuch.service"),
        "{error}"
    );
}

/// What every bootstrap does with dpkg itself: raw extraction of the essential packages, their installation, then
/// the others. `$1`: the root. `$1/debs/first` and `$1/debs/rest` list the packages.
const BOOTSTRAP: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C.UTF-8 TZ=UTC INITRD=No HOME=/root
export DPKG_FORCE=unsafe-io PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
cd "$1"
mkdir -p usr/bin usr/sbin usr/lib usr/lib64 proc dev var/lib/dpkg/info var/lib/dpkg/updates
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
for deb in $(cat debs/first); do dpkg-deb --fsys-tarfile ".$deb" | tar -x --keep-directory-symlink; done
: > var/lib/dpkg/status
cp debs/passwd etc/passwd
cp debs/group etc/group
mount --make-rprivate /
mount --bind /dev dev
mount -t proc proc proc
printf '#!/bin/sh\nexit 101\n' > usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
chroot . sh -c 'dpkg --force-depends -i $(cat /debs/first)'
chroot . sh -c 'dpkg --force-depends --unpack $(cat /debs/rest)'
chroot . dpkg --configure -a
rm usr/sbin/policy-rc.d
"#;

/// Why a path may differ from what dpkg itself makes.
const DIFFERENCES: [(&str, &str); 17] = [
    ("/debs", "the bootstrap's packages"),
    (
        "/etc/iscsi/initiatorname.iscsi",
        "random; removed when normalised",
    ),
    ("/etc/machine-id", "random; emptied when normalised"),
    ("/etc/rc", "update-rc.d is silent: units are the definition's"),
    (
        "/etc/systemd/system",
        "deb-systemd-helper is silent: units are the definition's",
    ),
    ("/etc/systemd/user", "deb-systemd-helper is silent"),
    (
        "/bin.usr-is-merged",
        "dpkg's trace of unpacking a link over a diverted path",
    ),
    ("/lib.usr-is-merged", "the same"),
    ("/sbin.usr-is-merged", "the same"),
    (
        "/var/cache/debconf",
        "carries questions in the order asked; removed when normalised",
    ),
    (
        "/var/cache/ldconfig/aux-cache",
        "holds inode numbers; removed when normalised",
    ),
    ("/var/lib/dbus/machine-id", "random; removed when normalised"),
    (
        "/var/lib/dpkg/available",
        "dpkg makes it with the first query; removed when normalised",
    ),
    ("/var/lib/dpkg/status", "order of fields"),
    ("/var/lib/dpkg/triggers/File", "sorted"),
    (
        "/var/lib/systemd/deb-systemd-helper",
        "deb-systemd-helper is silent",
    ),
    ("/var/log", "times; removed when normalised"),
];

/// One line per path of a folder, in the form of [`listing`].
fn folder_listing(root: &Path) -> BTreeSet<String> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::os::unix::fs::MetadataExt;
    let mut lines = BTreeSet::new();
    let mut pending = vec![TreePath::root()];
    while let Some(folder) = pending.pop() {
        for child in std::fs::read_dir(folder.under(root)).unwrap() {
            let child = child.unwrap();
            let path = folder.join(child.file_name().as_bytes());
            let metadata = child.metadata().unwrap();
            let (mut mode, place) = (metadata.mode() & 0o7777, path.under(root));
            let kind = if metadata.is_dir() {
                if ["dev", "proc", "run", "sys", "tmp"]
                    .iter()
                    .any(|name| path.parts() == [name.as_bytes()])
                {
                    continue;
                }
                pending.push(path.clone());
                format!("{:?}", Kind::Directory)
            } else if metadata.is_symlink() {
                mode = 0o777;
                format!(
                    "{:?}",
                    Kind::Symlink(std::fs::read_link(&place).unwrap().into_os_string().into_vec())
                )
            } else {
                Digest::of_file(&place).unwrap().0.to_string()
            };
            lines.insert(format!(
                "{path} {mode:o} {} {} {{}} {kind}",
                metadata.uid(),
                metadata.gid()
            ));
        }
    }
    lines
}

#[test]
fn a_layer_is_what_dpkg_itself_would_have_made() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run this test as root: the real dpkg needs it"
    );
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let (definition, lock, store) = workplace(folder.path());
    let kernel: ImageManifest =
        toml::from_str(&IMAGE.replace("leave-out = [\"kernel", "keep = [\"kernel")).unwrap();
    let leave_outs = LeaveOuts::new([], &kernel.kernel).unwrap();
    // Without those that dpkg refuses to configure because something they depend on is left out.
    let wanted = |package: &&LockedPackage| {
        let incomplete = package.name == "nfs-common" || package.name == "linux-image-generic";
        !incomplete && !package.name.starts_with("linux-modules-extra-")
    };
    let inputs: Vec<Input> = lock
        .package
        .iter()
        .filter(wanted)
        .map(|package| Input {
            name: package.name.clone(),
            version: package.version.clone(),
            architecture: package.architecture.clone(),
            digest: package.sha256,
            path: store.blob(&package.sha256).unwrap().unwrap(),
        })
        .collect();
    let users: Vec<_> = definition
        .image
        .manifest
        .users
        .iter()
        .chain(&definition.role.manifest.users)
        .cloned()
        .collect();
    let recipe = Recipe {
        inputs: inputs.clone(),
        leave_outs: &leave_outs,
        users: &users,
        groups: &definition.image.manifest.groups,
        epoch: EPOCH,
    };
    let made = folder.path().join("layer");
    std::fs::create_dir(&made).unwrap();
    layer::build_base(&made, &recipe, &options(2).workshop, &Progress::silent()).unwrap();
    let mut tree = Tree::new(EPOCH);
    Layer::load(&made).unwrap().apply(&mut tree).unwrap();

    let root = folder.path().join("dpkg");
    std::fs::create_dir_all(root.join("debs")).unwrap();
    let packages: Vec<Package> = inputs
        .iter()
        .map(|input| Package::of(&Deb::open(&input.path).unwrap()).unwrap())
        .collect();
    let (order, first) = configure::order(&packages);
    let (mut early, mut late) = (String::new(), String::new());
    for (place, index) in order.into_iter().enumerate() {
        let name = format!("/debs/{}.deb", inputs[index].name);
        std::fs::copy(&inputs[index].path, root.join(&name[1..])).unwrap();
        let list = if place < first { &mut early } else { &mut late };
        list.push_str(&format!("{name}\n"));
    }
    std::fs::write(root.join("debs/first"), early).unwrap();
    std::fs::write(root.join("debs/rest"), late).unwrap();
    for name in ["passwd", "group"] {
        let text = text(&tree, &format!("etc/{name}")).replace(":x:", ":*:");
        std::fs::write(root.join("debs").join(name), text).unwrap();
    }
    Tool::new("unshare")
        .args(["-m", "sh", "-c", BOOTSTRAP, "sh"])
        .arg(&root)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .run()
        .unwrap();

    let ours = listing(&tree);
    let mounted = |line: &str| {
        ["/ ", "/dev ", "/proc ", "/run ", "/sys ", "/tmp "]
            .iter()
            .any(|name| line.starts_with(name))
    };
    let ours: BTreeSet<String> = ours
        .lines()
        .filter(|line| !mounted(line))
        .map(str::to_owned)
        .collect();
    let theirs = folder_listing(&root);
    assert!(theirs.len() > 5000, "{}", theirs.len());
    let explained = |line: &&String| DIFFERENCES.iter().any(|(path, _)| line.starts_with(path));
    let unexplained: Vec<&String> = ours
        .symmetric_difference(&theirs)
        .filter(|line| !explained(line))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}
