//! What stands in the tree.

use std::collections::BTreeSet;

use kimage_builder::definition::Definition;
use kimage_builder::definition::role::RoleManifest;
use kimage_builder::digest::Digest;
use kimage_builder::progress::Progress;
use kimage_builder::tree::{Baked, Kind, TreePath, assemble};

use super::fixture::{EPOCH, ROLE, assembled, fill, get, link, lock, options, text, workplace};

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
