//! Kernels and EFI stubs as distributions ship them; keys made once per run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use kimage_builder::sign::keys::{FileSigner, create};
use kimage_builder::tool::Tool;
use kimage_qemu_tests::packages::Locked;

/// A child that finds programs where the tests' own shell does.
pub(crate) fn tool(program: &str) -> Tool {
    Tool::new(program).env("LC_ALL", "C").inherit(&["PATH"])
}

/// What a child printed.
pub(crate) fn text(tool: Tool) -> String {
    String::from_utf8_lossy(&tool.run().unwrap()).into_owned()
}

/// Two key sets: ours and a stranger's.
pub(crate) struct Keys {
    pub(crate) folder: PathBuf,
    pub(crate) own: FileSigner,
    pub(crate) foreign: FileSigner,
}

pub(crate) static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap().keep();
    let make = |name: &str| {
        create(&folder.join(name)).unwrap();
        FileSigner::load(&folder.join(name)).unwrap()
    };
    Keys {
        own: make("own"),
        foreign: make("foreign"),
        folder: folder.join("own"),
    }
});

/// The folder with the content of a locked package.
fn unpacked(locked: &Locked, name: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    locked.unpacked(&[name], cache).unwrap()
}

/// systemd's EFI programs: stub and boot manager.
pub(crate) struct SystemdBoot {
    pub(crate) stub: Vec<u8>,
    pub(crate) manager: Vec<u8>,
}

fn systemd_boot(image: &str) -> SystemdBoot {
    let folder = unpacked(&Locked::of(image).unwrap(), "systemd-boot-efi");
    let read = |name: &str| fs::read(folder.join("usr/lib/systemd/boot/efi").join(name)).unwrap();
    SystemdBoot {
        stub: read("linuxx64.efi.stub"),
        manager: read("systemd-bootx64.efi"),
    }
}

/// Version 255 of Ubuntu 24.04.
pub(crate) static NOBLE: LazyLock<SystemdBoot> = LazyLock::new(|| systemd_boot("ubuntu-24.04"));

/// Version 257 of Debian 13.
pub(crate) static TRIXIE: LazyLock<SystemdBoot> = LazyLock::new(|| systemd_boot("debian-13"));

/// The kernel of Ubuntu 24.04.
pub(crate) static KERNEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let locked = Locked::of("ubuntu-24.04").unwrap();
    let mut names = locked.lock.package.iter().map(|package| package.name.as_str());
    let name = names
        .find(|name| name.starts_with("linux-image-6.8.0-") && name.ends_with("-generic"))
        .unwrap();
    let version = name.strip_prefix("linux-image-").unwrap();
    fs::read(unpacked(&locked, name).join(format!("boot/vmlinuz-{version}"))).unwrap()
});

/// An initrd whose `/init` reports and powers off.
pub(crate) static INITRD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("init.c");
    fs::write(&source, include_str!("init.c")).unwrap();
    tool("cc")
        .args(["-static", "-O1", "-o"])
        .arg(folder.path().join("init"))
        .arg(&source)
        .run()
        .unwrap();
    tool("sh")
        .args(["-c", "echo init | cpio --quiet -o -H newc"])
        .directory(folder.path())
        .run()
        .unwrap()
});
