//! The smallest image that stage 0 boots: a distribution's kernel, our initrd, and a root of one busybox with first
//! boot in it. It is made in seconds, before any real image exists.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kimage_builder::partitions::initrd::{self, Initrd};
use kimage_builder::tool::Tool;
use kimage_builder::tree::{Content, Entry, Kind, Tree, TreePath};
use kimage_roles::role::{ROLE_PATH, Role};

use crate::packages::Locked;
use crate::programs::guest;

/// What the root, its programs and the kernel come from.
const PACKAGES: [&str; 9] = [
    "e2fsprogs",
    "libblkid1",
    "libc6",
    "libcom-err2",
    "libext2fs2t64",
    "libuuid1",
    "linux-image-6.8.0",
    "linux-modules-6.8.0",
    "linux-modules-extra-6.8.0",
];
const BASE: &str = "ubuntu-24.04";
const FOLDERS: &str = "bin sbin dev etc proc run sys tmp var lib64 usr/lib/kimage usr/sbin usr/share/factory/var/lib lib/x86_64-linux-gnu";
const APPLETS: &str =
    "sh mount grep touch cat echo sleep poweroff df tail tr cut wc sync readlink ls find cmp";
const LIBRARIES: &str = "libc.so.6 libext2fs.so.2 libcom_err.so.2 libblkid.so.1 libuuid.so.1 libe2p.so.2";
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Drivers of every bus that a test puts a disk on.
const HARDWARE: &str =
    "nvme ahci vmw_pvscsi mptsas megaraid_sas xhci_pci usb-storage uas hv_storvsc virtio_blk virtio_scsi";

/// A kernel with our initrd, and a sealed root that they boot.
pub struct SmallImage {
    /// Where its files are.
    pub folder: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Our initrd.
    pub initrd: PathBuf,
    /// The root file system.
    pub root: PathBuf,
    /// Its hash tree with the superblock.
    pub verity: PathBuf,
    /// The root of that tree, 64 hex digits.
    pub root_hash: String,
}

impl SmallImage {
    /// Makes it in `folder`, whatever lay there, with `init` as the first process of the real root. `cache` keeps what
    /// is unpacked of packages; `more` adds to the root.
    pub fn build(
        folder: &Path,
        cache: &Path,
        init: &str,
        more: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let noble = noble(cache)?;
        let version = only_child(&noble.join("lib/modules"))?;
        let initrd = folder.join("initrd");
        fs::write(&initrd, build_initrd(&noble, &version)?.bytes)?;
        let root = folder.join("root");
        fill_root(&noble, &root, init)?;
        more(&root)?;
        run(
            folder,
            "mksquashfs",
            "root root.squashfs -comp zstd -all-root -noappend -quiet -no-progress",
        )?;
        let report = run(folder, "veritysetup", "format root.squashfs root.verity")?;
        let root_hash = report.lines().find_map(|line| line.strip_prefix("Root hash:"));
        let root_hash = root_hash
            .context("veritysetup says no root hash")?
            .trim()
            .to_owned();
        Ok(Self {
            kernel: noble.join(format!("boot/vmlinuz-{version}")),
            initrd,
            root: folder.join("root.squashfs"),
            verity: folder.join("root.verity"),
            root_hash,
            folder: folder.to_owned(),
        })
    }
}

/// Runs a program of the system in `folder`; returns what it printed.
pub fn run(folder: &Path, program: &str, arguments: &str) -> Result<String> {
    let tool = Tool::new(program)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .directory(folder);
    let printed = tool.args(arguments.split_ascii_whitespace()).run()?;
    String::from_utf8(printed).with_context(|| format!("what {program} printed"))
}

/// Ubuntu's packages, unpacked; names of kernel packages carry its version.
fn noble(cache: &Path) -> Result<PathBuf> {
    let locked = Locked::of(BASE)?;
    let full = |name: &&str| {
        let mut names = locked.lock.package.iter().map(|package| package.name.as_str());
        let found = names.find(|full| full == name || name.ends_with("-6.8.0") && full.starts_with(name));
        found.with_context(|| format!("no package {name} in the lock"))
    };
    let names: Vec<&str> = PACKAGES.iter().map(full).collect::<Result<_>>()?;
    locked.unpacked(&names, cache)
}

fn only_child(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let names: Vec<_> = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(names.len() == 1, "{} holds {names:?}", folder.display());
    names[0]
        .to_str()
        .map(str::to_owned)
        .context("a name that is no text")
}

fn build_initrd(noble: &Path, version: &str) -> Result<Initrd> {
    let mut tree = Tree::new(0);
    for folder in ["usr", "usr/lib", "usr/lib/modules"] {
        tree.insert(TreePath::parse(folder.as_bytes())?, Entry::directory(0o755))?;
    }
    let modules = TreePath::parse(b"usr/lib/modules")?.join(version.as_bytes());
    shelve(&mut tree, &modules, &noble.join("lib/modules").join(version))?;
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let always = words("dm-verity overlay efivarfs");
    let initrd = initrd::build(&guest("kimage-init")?, &tree, version, &always, &words(HARDWARE))?;
    ensure!(initrd.unmatched.is_empty(), "no driver {:?}", initrd.unmatched);
    Ok(initrd)
}

fn shelve(tree: &mut Tree, path: &TreePath, folder: &Path) -> Result<()> {
    tree.insert(path.clone(), Entry::directory(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = path.join(entry.file_name().as_encoded_bytes());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            shelve(tree, &path, &entry.path())?;
        } else if kind.is_file() {
            let mut shelved = Entry::bytes(0o644, Vec::new());
            if let Kind::File { content, .. } = &mut shelved.kind {
                *content = Content::File(entry.path());
            }
            tree.insert(path, shelved)?;
        }
    }
    Ok(())
}

fn fill_root(noble: &Path, root: &Path, init: &str) -> Result<()> {
    for name in FOLDERS.split_ascii_whitespace() {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists());
    let busybox = busybox.context("a static busybox is needed: apt-get install busybox-static")?;
    copy(busybox, &root.join("bin/busybox"))?;
    for name in APPLETS.split(' ') {
        symlink("busybox", root.join("bin").join(name))?;
    }
    for name in ["mkfs.ext4", "e2fsck", "resize2fs"] {
        copy(
            &noble.join("usr/sbin").join(name),
            &root.join("usr/sbin").join(name),
        )?;
    }
    let libraries = noble.join("usr/lib/x86_64-linux-gnu");
    for name in LIBRARIES.split(' ') {
        copy(
            &libraries.join(name),
            &root.join("lib/x86_64-linux-gnu").join(name),
        )?;
    }
    copy(&libraries.join(LOADER), &root.join("lib64").join(LOADER))?;
    program(
        &root.join("usr/lib/kimage/kimage-firstboot"),
        &guest("kimage-firstboot")?,
    )?;
    fs::write(root.join("usr/share/factory/var/lib/factory-file"), "hello")?;
    let role = root.join(ROLE_PATH.trim_start_matches('/'));
    fs::write(role, contract().to_json()?)?;
    program(&root.join("sbin/init"), init.as_bytes())
}

/// What the builder tells first boot.
fn contract() -> Role {
    Role {
        schema: kimage_roles::role::SCHEMA,
        role: "test".to_owned(),
        image: "test".to_owned(),
        kernel: "test".to_owned(),
        root_size_mib: Some(96),
        components: Vec::new(),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("copy {}", from.display()))
        .map(drop)
}

fn program(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
