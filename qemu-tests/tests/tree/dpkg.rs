//! Against dpkg itself.

use std::collections::BTreeSet;
use std::path::Path;

use kimage_builder::definition::image::ImageManifest;
use kimage_builder::digest::Digest;
use kimage_builder::lock::LockedPackage;
use kimage_builder::progress::Progress;
use kimage_builder::tool::Tool;
use kimage_builder::tree::deb::Deb;
use kimage_builder::tree::dpkg::Package;
use kimage_builder::tree::layer::{Input, Layer, Recipe};
use kimage_builder::tree::leave_out::LeaveOuts;
use kimage_builder::tree::{Kind, Tree, TreePath, configure, layer};

use super::fixture::{EPOCH, IMAGE, fill, listing, options, text, workplace};

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
