//! Kernels and EFI stubs as distributions ship them, fetched once into the target folder; keys made once per run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use kimage_builder::sign::keys::{FileSigner, create};
use kimage_builder::tool::Tool;

/// A child that finds programs where the tests' own shell does.
pub(crate) fn tool(program: &str) -> Tool {
    Tool::new(program).env("LC_ALL", "C").inherit(&[
        "PATH",
        "HOME",
        "http_proxy",
        "https_proxy",
        "PIP_INDEX_URL",
    ])
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

/// One fetch at a time, also between the test binaries of one `cargo test`.
static FETCHING: Mutex<()> = Mutex::new(());

struct Archive {
    base: String,
    indices: [&'static str; 2],
}

fn ubuntu() -> Archive {
    let indices = [
        "dists/noble-updates/main/binary-amd64/Packages.gz",
        "dists/noble-updates/universe/binary-amd64/Packages.gz",
    ];
    Archive {
        base: "http://archive.ubuntu.com/ubuntu".to_owned(),
        indices,
    }
}

/// The mirror that this host's own apt uses.
fn debian() -> Archive {
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let base = sources
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| {
            let words = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .flat_map(str::split_whitespace);
            words
                .map(str::to_owned)
                .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        });
    let base = base.expect("apt on this host names a Debian mirror (needed for the EFI stub of trixie)");
    let indices = [
        "dists/trixie/main/binary-amd64/Packages.xz",
        "dists/trixie-updates/main/binary-amd64/Packages.xz",
    ];
    Archive { base, indices }
}

impl Archive {
    /// The folder with the unpacked newest package whose name satisfies `wanted`.
    fn unpack(&self, label: &str, wanted: impl Fn(&str) -> bool) -> PathBuf {
        let _one = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let folder = cache.join(label);
        if folder.exists() {
            return folder;
        }
        fs::create_dir_all(&cache).unwrap();
        let mut found = None;
        for index in self.indices {
            let packed = self.fetch(index, &cache);
            let reader = if index.ends_with(".gz") { "gzip" } else { "xz" };
            let list = text(tool(reader).arg("-dc").arg(&packed));
            for stanza in list.split("\n\n") {
                let field = |name: &str| {
                    let line = stanza
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.map(str::to_owned)
                };
                if field("Package").is_some_and(|name| wanted(&name)) {
                    found = Some((field("Filename").unwrap(), field("SHA256").unwrap()));
                }
            }
        }
        let (path, digest) = found.unwrap_or_else(|| panic!("no package for {label} in {}", self.base));
        let deb = self.fetch(&path, &cache);
        let (real, _) = kimage_builder::digest::Digest::of_file(&deb).unwrap();
        assert_eq!(real.to_string(), digest, "{path}");
        let scratch = tempfile::tempdir_in(&cache).unwrap();
        tool("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(scratch.path())
            .run()
            .unwrap();
        fs::rename(scratch.keep(), &folder).unwrap();
        folder
    }

    fn fetch(&self, path: &str, cache: &Path) -> PathBuf {
        let url = format!("{}/{path}", self.base);
        let file = cache.join(path.replace('/', "_"));
        tool("curl")
            .args(["-fsSL", "--retry", "3", "-o"])
            .arg(&file)
            .arg(&url)
            .run()
            .unwrap();
        file
    }
}

/// systemd's EFI programs: stub and boot manager.
pub(crate) struct SystemdBoot {
    pub(crate) stub: Vec<u8>,
    pub(crate) manager: Vec<u8>,
}

fn systemd_boot(folder: &Path) -> SystemdBoot {
    let read = |name: &str| fs::read(folder.join("usr/lib/systemd/boot/efi").join(name)).unwrap();
    SystemdBoot {
        stub: read("linuxx64.efi.stub"),
        manager: read("systemd-bootx64.efi"),
    }
}

/// Version 255 of Ubuntu 24.04.
pub(crate) static NOBLE: LazyLock<SystemdBoot> =
    LazyLock::new(|| systemd_boot(&ubuntu().unpack("noble-systemd-boot", |name| name == "systemd-boot-efi")));

/// Version 257 of Debian 13.
pub(crate) static TRIXIE: LazyLock<SystemdBoot> = LazyLock::new(|| {
    systemd_boot(&debian().unpack("trixie-systemd-boot", |name| name == "systemd-boot-efi"))
});

/// A kernel of Ubuntu 24.04.
pub(crate) static KERNEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let wanted = |name: &str| name.starts_with("linux-image-6.8.0-") && name.ends_with("-generic");
    let boot = ubuntu().unpack("noble-kernel", wanted).join("boot");
    let mut entries = fs::read_dir(boot).unwrap().map(|entry| entry.unwrap().path());
    fs::read(
        entries
            .find(|path| path.to_string_lossy().contains("vmlinuz"))
            .unwrap(),
    )
    .unwrap()
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
