//! A small release made by the real stages, then damaged in every place that counts.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use super::*;
use crate::disk::{self, Content as DiskContent, qcow2};
use crate::failure::{ExitCode, exit_code};
use crate::partitions::boot::LOADER_CONFIGURATION;
use crate::partitions::esp::EspFile;
use crate::partitions::root;
use crate::partitions::uki::{Section, SectionKind, Uki, assemble, pe};
use crate::progress::Progress;
use crate::release::bill::{Bill, Package};
use crate::release::manifest::{FileRecord, Kernel, Keys, Partition, Root};
use crate::release::pcr::Pcr11;
use crate::sign::keys::testing;
use crate::sign::{Signer, authenticode, ovmf_vars};
use crate::tree::{Content, Entry, Kind, Tree, TreePath};

const ROLE: &str = r#"{"role": "tiny", "image": "test", "kernel": "6.8.0", "components": []}"#;
const STATUS: &str =
    "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.39-0ubuntu8\n";
const EPOCH: u32 = 1_700_000_000;

static RELEASE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), Lies::default());
    folder
});

fn tree() -> Tree {
    let mut tree = Tree::new(EPOCH);
    let entry = |mode, kind| Entry {
        mode,
        uid: 0,
        gid: 0,
        xattrs: Default::default(),
        kind,
    };
    for path in [
        "usr",
        "usr/lib",
        "usr/lib/kimage",
        "usr/lib/sysimage",
        "usr/lib/sysimage/dpkg",
    ] {
        tree.insert(
            TreePath::parse(path.as_bytes()).unwrap(),
            entry(0o755, Kind::Directory),
        )
        .unwrap();
    }
    let noise: Vec<u8> = (0..600_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for (path, bytes) in [
        ("usr/lib/kimage/role.json", ROLE.as_bytes()),
        ("usr/lib/sysimage/dpkg/status", STATUS.as_bytes()),
        ("usr/noise", &noise),
    ] {
        let kind = Kind::File {
            content: Content::Bytes(Arc::from(bytes)),
            size: bytes.len() as u64,
            digest: Digest::of(bytes),
        };
        tree.insert(TreePath::parse(path.as_bytes()).unwrap(), entry(0o644, kind))
            .unwrap();
    }
    tree
}

/// What a builder that lies does before it signs; by default nothing.
#[derive(Default)]
struct Lies {
    /// A file that is put into the root filesystem.
    file: Option<&'static str>,
    /// To the raw disk, before anything is made of it.
    disk: Option<fn(&File)>,
    /// To the raw disk that becomes the qcow2.
    other_disk: Option<fn(&File)>,
    manifest: Option<fn(&mut Manifest)>,
}

/// Writes a whole release into `folder`, signed as `lies` made it.
fn make(folder: &Path, lies: Lies) {
    let (signer, mut tree, scratch) = (testing::signer(), tree(), tempfile::tempdir().unwrap());
    if let Some(path) = lies.file {
        let path = TreePath::parse(path.as_bytes()).unwrap();
        crate::tree::normalise::place(&mut tree, &path, Entry::bytes(0o644, *b"[Service]\n")).unwrap();
    }
    let identity = signer.identity();
    let sealed = root::seal(
        &tree,
        &Default::default(),
        None,
        scratch.path(),
        1,
        &Progress::silent(),
    )
    .unwrap();
    let version = format!("20231114-{}", &sealed.root_hash.to_string()[..8]);
    let command_line = format!("roothash={} quiet", sealed.root_hash);
    let os_release = format!("ID=test\nIMAGE_ID=kimage-tiny\nIMAGE_VERSION={version}\n");
    let stub = pe::sample(&[
        (b".text", &[0x90; 64]),
        (b".sdmagic", b"#### LoaderInfo: systemd-stub 255.4 ####"),
    ]);
    let kernel = pe::sample(&[(b".text", b"kernel")]);
    let sections = [
        Section {
            kind: SectionKind::OsRelease,
            data: os_release.as_bytes(),
        },
        Section {
            kind: SectionKind::CommandLine,
            data: command_line.as_bytes(),
        },
        Section {
            kind: SectionKind::KernelRelease,
            data: b"6.8.0",
        },
        Section {
            kind: SectionKind::Linux,
            data: &kernel,
        },
    ];
    let uki = authenticode::sign(&assemble(&stub, &sections).unwrap(), signer).unwrap();
    let loader = authenticode::sign(&stub, signer).unwrap();
    let uki_path = format!("EFI/Linux/kimage_{version}+3.efi");
    let esp = [
        EspFile {
            path: "EFI/BOOT/BOOTX64.EFI",
            data: &loader,
        },
        EspFile {
            path: "EFI/systemd/systemd-bootx64.efi",
            data: &loader,
        },
        EspFile {
            path: &uki_path,
            data: &uki,
        },
        EspFile {
            path: "loader/loader.conf",
            data: LOADER_CONFIGURATION,
        },
    ];
    let content = DiskContent {
        esp: &esp,
        epoch: i64::from(EPOCH),
        root: &sealed.filesystem,
        verity: &sealed.hash_tree,
        hash_tree_room: 0,
        root_hash: &sealed.root_hash,
    };
    let disk = disk::assemble(&content, &folder.join(contents::RAW_DISK)).unwrap();
    let raw = File::options().read(true).write(true).open(&disk.path).unwrap();
    if let Some(lie) = lies.disk {
        lie(&raw);
    }
    let other = scratch.path().join("other.raw");
    copy_disk(&disk.path, &other);
    if let Some(lie) = lies.other_disk {
        lie(&File::options().read(true).write(true).open(&other).unwrap());
    }
    qcow2::write(&other, &folder.join("disk.qcow2")).unwrap();
    let partition = |partition: &disk::gpt::Partition| Partition {
        name: partition.name.clone(),
        type_uuid: partition.kind.guid().to_string(),
        uuid: partition.guid.to_string(),
        offset: partition.start,
        size: partition.size,
        sha256: disk::sparse::digest(&raw, partition.start, partition.size).unwrap(),
    };
    let mut manifest = Manifest {
        schema: Manifest::SCHEMA,
        kimage: "0.1.0".to_owned(),
        image: "test".to_owned(),
        role: "tiny".to_owned(),
        version,
        architecture: "amd64".to_owned(),
        epoch: EPOCH,
        lock: Digest::of(b"lock"),
        keys: Keys {
            development: false,
            platform_key: Digest::of(&identity.platform_key),
            key_exchange_key: Digest::of(&identity.key_exchange_key),
            database: Digest::of(&identity.database),
            release: Digest::from_bytes(identity.release),
        },
        root: Root {
            hash: sealed.root_hash,
            salt: sealed.salt,
            size: sealed.size,
            sha256: sealed.sha256,
            entries: tree.entries().len() as u64,
        },
        kernel: Kernel {
            version: "6.8.0".to_owned(),
            command_line,
            authenticode: authenticode::digest(&uki).unwrap(),
            pcr11: Pcr11::expected(&Uki::parse(&uki).unwrap()).unwrap(),
        },
        partitions: disk.partitions.iter().map(partition).collect(),
        components: Vec::new(),
        packages: 1,
        debug: Vec::new(),
        files: ["disk.raw", "disk.qcow2"]
            .map(|name| FileRecord::of_file(folder, name).unwrap())
            .to_vec(),
    };
    for (name, bytes) in [
        (names::UKI, uki),
        (names::OVMF_VARS, ovmf_vars::enrolled(identity).unwrap()),
        (
            names::RELEASE_KEY,
            keys::release_public_pem(&identity.release).into_bytes(),
        ),
        (
            names::DATABASE_CERTIFICATE,
            keys::certificate_pem(&identity.database).into_bytes(),
        ),
    ] {
        std::fs::write(folder.join(name), &bytes).unwrap();
        manifest.files.push(FileRecord::of_bytes(name, &bytes));
    }
    let package = Package {
        name: "libc6".to_owned(),
        version: "2.39-0ubuntu8".to_owned(),
        architecture: "amd64".to_owned(),
        source: None,
        path: "pool/libc6.deb".to_owned(),
        sha256: Digest::of(b"deb"),
    };
    let bill = Bill {
        distribution: "test".to_owned(),
        distribution_version: "1".to_owned(),
        packages: vec![package],
        components: Vec::new(),
    };
    if let Some(lie) = lies.manifest {
        lie(&mut manifest);
    }
    crate::release::write(folder, manifest, &bill, signer).unwrap();
}

fn own_key() -> Trust {
    Trust::Key(testing::signer().identity().release)
}

fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(RELEASE.path()).unwrap() {
        let (from, to): (PathBuf, PathBuf) = entry
            .map(|entry| (entry.path(), folder.path().join(entry.file_name())))
            .unwrap();
        copy_disk(&from, &to);
    }
    folder
}

/// Copies a file and leaves its holes.
fn copy_disk(from: &Path, to: &Path) {
    let (source, target) = (File::open(from).unwrap(), File::create(to).unwrap());
    target.set_len(source.metadata().unwrap().len()).unwrap();
    disk::sparse::copy(&source, &target, 0).unwrap();
}

/// The verdict on a release that somebody signed who lies.
fn verdict_on(lies: Lies) -> (Option<ExitCode>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), lies);
    verdict(folder.path(), own_key())
}

fn flip(path: &Path, place: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
}

/// Exit code and the names of the checks that failed.
fn verdict(folder: &Path, trust: Trust) -> (Option<ExitCode>, Vec<String>) {
    let (_, findings) = verify(folder, trust).unwrap();
    let failed = findings
        .list()
        .iter()
        .filter(|finding| matches!(finding.state, State::Mismatch | State::Contradiction));
    (
        findings.conclude().err().map(|error| exit_code(&error)),
        failed.map(|finding| finding.check.clone()).collect(),
    )
}

#[test]
fn a_whole_release_holds() {
    assert_eq!(verdict(RELEASE.path(), own_key()), (None, Vec::new()));
    let (_, findings) = verify(RELEASE.path(), Trust::Folder).unwrap();
    assert!(
        findings
            .list()
            .iter()
            .any(|finding| finding.check == "key" && finding.state == State::Warning)
    );
}

#[test]
fn another_key_is_a_mismatch() {
    let (code, failed) = verdict(RELEASE.path(), Trust::Key(testing::foreign().identity().release));
    assert_eq!(code, Some(ExitCode::Mismatch));
    assert_eq!(failed, ["manifest.json.sig", "keys release", "provenance.json"]);
}

#[test]
fn a_flipped_byte_of_the_disk_is_named() {
    let (manifest, _) = verify(RELEASE.path(), own_key()).unwrap();
    let manifest = manifest.unwrap();
    let start = |name: &str| contents::partition(&manifest, name).unwrap().offset;
    let uki = std::fs::read(RELEASE.path().join(names::UKI)).unwrap();
    let disk = std::fs::read(RELEASE.path().join(contents::RAW_DISK)).unwrap();
    let uki_at = disk[start(contents::BOOT) as usize..]
        .windows(200)
        .rposition(|window| *window == uki[uki.len() - 400..][..200]);
    let uki_at = start(contents::BOOT) + uki_at.unwrap() as u64;
    for (place, expected) in [
        (1024 + 40, "partition table"),
        (start(contents::ROOT) + 100_000, "partition root-a"),
        (start(contents::ROOT) + 100_000, "verity"),
        (start(contents::HASH_TREE) + 4096 + 5, "verity"),
        (start(contents::HASH_TREE) + 4096 + 5, "partition root-a-verity"),
        (uki_at, "partition esp"),
        (uki_at, "boot partition EFI/Linux"),
        (start(contents::BOOT) + (200 << 20), "boot partition layout"),
    ] {
        let folder = copy();
        flip(&folder.path().join(contents::RAW_DISK), place);
        let (code, failed) = verdict(folder.path(), own_key());
        assert_eq!(code, Some(ExitCode::Mismatch), "{expected}");
        assert!(failed.contains(&"file disk.raw".to_owned()), "{failed:?}");
        assert!(
            failed.iter().any(|check| check.starts_with(expected)),
            "{expected}: {failed:?}"
        );
    }
}

#[test]
fn flipped_missing_and_strange_files_are_named() {
    for name in [
        names::MANIFEST_SIGNATURE,
        names::UKI,
        names::OVMF_VARS,
        names::SPDX,
        names::PROVENANCE,
        names::CHECKSUMS,
    ] {
        let folder = copy();
        flip(&folder.path().join(name), 50);
        let (code, failed) = verdict(folder.path(), own_key());
        assert_eq!(code, Some(ExitCode::Mismatch), "{name}");
        assert!(
            failed.iter().any(|check| check.ends_with(name)),
            "{name}: {failed:?}"
        );
    }
    let folder = copy();
    flip(&folder.path().join(names::MANIFEST), 40);
    assert_eq!(verdict(folder.path(), own_key()).0, Some(ExitCode::Mismatch));
    let folder = copy();
    std::fs::remove_file(folder.path().join(names::DATABASE_CERTIFICATE)).unwrap();
    std::fs::write(folder.path().join("notes"), b"x").unwrap();
    let (_, findings) = verify(folder.path(), own_key()).unwrap();
    let state = |check: &str| {
        findings
            .list()
            .iter()
            .find(|finding| finding.check == check)
            .map(|finding| finding.state)
    };
    assert_eq!(state("file db.crt"), Some(State::Mismatch));
    assert_eq!(state("file notes"), Some(State::Warning));
}

#[test]
fn a_signed_lie_is_a_contradiction() {
    type Lie = fn(&mut Manifest);
    let lies: [(&str, Lie); 10] = [
        ("partition root-a", |manifest| {
            manifest.partitions[2].uuid = manifest.partitions[0].uuid.clone()
        }),
        ("uki sections", |manifest| {
            manifest.kernel.command_line.push_str(" debug")
        }),
        ("uki pcr11", |manifest| {
            manifest.kernel.pcr11.ready = Digest::of(b"other")
        }),
        ("packages", |manifest| manifest.packages = 2),
        ("debug switches", |manifest| {
            manifest.debug.push("serial-login".to_owned())
        }),
        ("debug switches", |manifest| manifest.debug.push("ssh".to_owned())),
        ("disk formats", |manifest| {
            manifest.files.retain(|file| file.name != "disk.raw")
        }),
        ("disk formats", |manifest| {
            let record = FileRecord::of_bytes("disk.vhd", b"unknown");
            manifest.files.push(record)
        }),
        ("role.json", |manifest| manifest.role = "worker".to_owned()),
        ("ovmf-vars.fd", |manifest| {
            manifest.keys.platform_key = Digest::of(b"other")
        }),
    ];
    for (check, lie) in lies {
        let (code, failed) = verdict_on(Lies {
            manifest: Some(lie),
            ..Lies::default()
        });
        // A disk that is signed and not there is a mismatch as well.
        let expected = [Some(ExitCode::Verification), Some(ExitCode::Mismatch)];
        assert!(
            expected[..1 + usize::from(check == "disk formats")].contains(&code),
            "{check}: {failed:?}"
        );
        assert!(failed.iter().any(|found| found == check), "{check}: {failed:?}");
    }
}

#[test]
fn a_qcow2_that_holds_another_disk_than_the_raw_one_is_a_contradiction() {
    let others: [fn(&File); 3] = [
        // One byte of the root filesystem, one where the raw disk has a hole, one missing.
        |disk| {
            let mut byte = [0];
            let place = (258 << 20) + 70_000;
            disk.read_exact_at(&mut byte, place).unwrap();
            disk.write_all_at(&[byte[0] ^ 0x80], place).unwrap();
        },
        |disk| disk.write_all_at(b"x", 200 << 20).unwrap(),
        |disk| disk.set_len(disk.metadata().unwrap().len() - 512).unwrap(),
    ];
    for other_disk in others {
        let (code, failed) = verdict_on(Lies {
            other_disk: Some(other_disk),
            ..Lies::default()
        });
        assert_eq!(code, Some(ExitCode::Verification), "{failed:?}");
        assert_eq!(failed, ["content of disk.qcow2"]);
    }
}

#[test]
fn a_release_without_one_of_its_disks_does_not_hold() {
    for name in ["disk.raw", "disk.qcow2"] {
        let folder = copy();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let (code, failed) = verdict(folder.path(), own_key());
        assert_eq!(code, Some(ExitCode::Mismatch), "{name}");
        assert!(failed.contains(&format!("file {name}")), "{failed:?}");
    }
}

#[test]
fn a_disk_that_nobody_signed_is_refused_beside_those_that_somebody_did() {
    let folder = copy();
    std::fs::write(folder.path().join("disk.vmdk"), b"another").unwrap();
    let (code, failed) = verdict(folder.path(), own_key());
    assert_eq!(
        (code, failed),
        (Some(ExitCode::Mismatch), vec!["file disk.vmdk".to_owned()])
    );
}

#[test]
fn signed_bytes_that_belong_to_no_partition_are_refused() {
    type Change = fn(&File);
    let places: [(&str, Change); 4] = [
        // Behind the first table, before the second, behind root filesystem and hash tree.
        ("partition gaps", |disk| {
            disk.write_all_at(b"x", 34 * 512).unwrap()
        }),
        ("partition gaps", |disk| {
            let size = disk.metadata().unwrap().len();
            disk.write_all_at(b"x", size - 33 * 512 - 1).unwrap()
        }),
        ("verity", |disk| {
            let size = disk.metadata().unwrap().len();
            disk.write_all_at(b"x", size - (1 << 20) - 1).unwrap()
        }),
        ("verity", |disk| disk.write_all_at(b"x", (258 << 20) - 1).unwrap()),
    ];
    for (check, disk) in places {
        let (code, failed) = verdict_on(Lies {
            disk: Some(disk),
            ..Lies::default()
        });
        assert_eq!(code, Some(ExitCode::Verification), "{check}: {failed:?}");
        assert_eq!(failed, [check]);
    }
}

#[test]
fn a_login_in_the_root_that_the_manifest_is_silent_about_is_a_contradiction() {
    for path in [
        "usr/lib/systemd/system/serial-getty@.service",
        "etc/systemd/system/serial-getty@ttyS0.service.d/10-kimage-login.conf",
        "usr/lib/systemd/system/getty@.service",
    ] {
        let (code, failed) = verdict_on(Lies {
            file: Some(path),
            ..Lies::default()
        });
        assert_eq!(code, Some(ExitCode::Verification), "{path}: {failed:?}");
        assert_eq!(failed, ["debug switches"]);
    }
}
