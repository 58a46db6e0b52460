//! Tools that others wrote agree with what kimage wrote.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kimage_builder::release::manifest::Manifest;
use kimage_qemu_tests::images::{command, finish, release};

fn manifest(release: &Path) -> Manifest {
    Manifest::from_json(&fs::read(release.join("manifest.json")).unwrap()).unwrap()
}

/// One partition of the disk as a file of its own.
fn partition(release: &Path, folder: &Path, name: &str) -> PathBuf {
    let manifest = manifest(release);
    let found = manifest
        .partitions
        .iter()
        .find(|partition| partition.name == name)
        .unwrap();
    let mut bytes = vec![0; usize::try_from(found.size).unwrap()];
    File::open(release.join("disk.raw"))
        .unwrap()
        .read_exact_at(&mut bytes, found.offset)
        .unwrap();
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn partition_table_filesystems_hash_tree_signatures_and_formats_pass_other_peoples_checks() {
    let release = release("ubuntu-24.04", "worker").unwrap();
    let manifest = manifest(&release);
    let folder = tempfile::tempdir().unwrap();
    let raw = release.join("disk.raw");

    let table = finish(command("sgdisk").arg("-v").arg(&raw)).unwrap();
    assert!(String::from_utf8_lossy(&table.stdout).contains("No problems found"));

    let esp = partition(&release, folder.path(), "esp");
    finish(command("fsck.vfat").arg("-n").arg(&esp)).unwrap();
    let uki = format!("::EFI/Linux/kimage_{}+3.efi", manifest.version);
    let read = finish(command("mtype").arg("-i").arg(&esp).arg(uki)).unwrap();
    assert!(
        read.stdout == fs::read(release.join("kernel.efi")).unwrap(),
        "the UKI in the ESP"
    );

    let (root, tree) = (
        partition(&release, folder.path(), "root-a"),
        partition(&release, folder.path(), "root-a-verity"),
    );
    finish(
        command("veritysetup")
            .arg("verify")
            .arg(&root)
            .arg(&tree)
            .arg(manifest.root.hash.to_string()),
    )
    .unwrap();

    finish(
        command("sbverify")
            .arg("--cert")
            .arg(release.join("db.crt"))
            .arg(release.join("kernel.efi")),
    )
    .unwrap();

    let listing = finish(command("unsquashfs").args(["-lln", "-d", ""]).arg(&root)).unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let entries = listing
        .lines()
        .filter(|line| line.starts_with(['-', 'd', 'l', 'c', 'p']))
        .count() as u64;
    assert_eq!(entries, manifest.root.entries, "entries that unsquashfs sees");
    assert!(
        listing.contains("/usr/bin/kubelet") && !listing.contains("/usr/bin/python"),
        "content of a worker"
    );

    let qcow2 = release.join("disk.qcow2");
    finish(command("qemu-img").args(["check", "-q"]).arg(&qcow2)).unwrap();
    finish(
        command("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", "qcow2"])
            .arg(&raw)
            .arg(&qcow2),
    )
    .unwrap();

    finish(
        command("sha256sum")
            .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
            .current_dir(&release),
    )
    .unwrap();
    let mut openssl = command("openssl");
    openssl.args([
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "release.pub.pem",
        "-rawin",
    ]);
    openssl.args(["-in", "manifest.json", "-sigfile", "manifest.json.sig"]);
    finish(openssl.current_dir(&release)).unwrap();
}

#[test]
fn the_package_database_is_readable_by_dpkg_and_nothing_of_one_machine_is_in_the_image() {
    let release = release("ubuntu-24.04", "worker").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = partition(&release, folder.path(), "root-a");
    let out = folder.path().join("root");
    finish(
        command("unsquashfs")
            .args(["-q", "-n", "-d"])
            .arg(&out)
            .arg(&root),
    )
    .unwrap();
    let mut query = command("dpkg-query");
    query.arg(format!(
        "--admindir={}",
        out.join("usr/lib/sysimage/dpkg").display()
    ));
    let listed = finish(query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"])).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), manifest(&release).packages as usize);
    assert!(
        listed.lines().all(|line| line.ends_with(" installed")),
        "{listed}"
    );
    assert!(!listed.contains("python3"), "{listed}");

    assert_eq!(fs::read(out.join("etc/machine-id")).unwrap(), b"");
    for absent in [
        "etc/iscsi/initiatorname.iscsi",
        "etc/hostname",
        "var/lib/dbus/machine-id",
        "var/cache",
        "etc/ssh",
        "usr/share/factory/var/log/dpkg.log",
    ] {
        assert!(!out.join(absent).exists(), "{absent} is in the image");
    }
    let resolver = fs::read_link(out.join("etc/resolv.conf")).unwrap();
    assert!(
        resolver.to_string_lossy().contains("systemd"),
        "{}",
        resolver.display()
    );
}
