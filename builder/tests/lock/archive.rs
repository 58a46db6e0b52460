//! A small package archive on disk, signed by a certificate that lives as long as the test.

#[path = "signing.rs"]
mod signing;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kimage_builder::archive::suites::{self, Snapshot};
use kimage_builder::definition::{self, ImageDefinition};
use kimage_builder::digest::Digest;
use kimage_builder::lock::{self, Lock, Pins};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;
use sequoia_openpgp::cert::{Cert, CertBuilder};
use sequoia_openpgp::serialize::SerializeInto;

/// The moment of all tests that name the time themselves. It has passed, so that the command's own clock is later.
pub(crate) const NOW: &str = "2024-06-21T12:00:00Z";

/// The line that the command's clock would find expired.
pub(crate) const VALID_UNTIL: &str = "Valid-Until: Thu, 27 Jun 2024 12:00:00 UTC\n";

/// What one test varies.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) certificate: Cert,
    /// Stanzas of the Packages index.
    pub(crate) packages: Vec<String>,
    /// Lines of the Release file.
    pub(crate) fields: String,
    pub(crate) by_hash: bool,
    /// The base's `install`.
    pub(crate) install: Vec<&'static str>,
    /// More of the suite.
    pub(crate) suite_options: &'static str,
    /// More of `image.toml`.
    pub(crate) extra: String,
}

/// A certificate made at the time `at`, valid for so many days.
pub(crate) fn certificate(at: &str, days: u64) -> Cert {
    let period = Duration::from_secs(days * 86_400);
    let builder = CertBuilder::new()
        .set_creation_time(time(at))
        .set_validity_period(period);
    builder
        .add_userid("archive@example.com")
        .add_signing_subkey()
        .generate()
        .unwrap()
        .0
}

/// One that is valid in all tests.
pub(crate) fn lasting_certificate() -> Cert {
    certificate("2024-01-01T00:00:00Z", 36_500)
}

pub(crate) fn time(text: &str) -> SystemTime {
    let seconds = text.parse::<Timestamp>().unwrap().as_second();
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
}

/// The bytes that stand for a .deb: a lock looks at their digest only.
pub(crate) fn content(name: &str, version: &str) -> String {
    format!("{name} {version}")
}

pub(crate) fn package(name: &str, version: &str, fields: &str) -> String {
    let content = content(name, version);
    let (size, digest) = (content.len(), Digest::of(content.as_bytes()));
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}_{version}.deb\nSize: {size}\n\
         SHA256: {digest}\nPriority: optional\n{fields}\n"
    )
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            certificate: lasting_certificate(),
            packages: vec![
                package("libc6", "2.40-1", "Essential: yes\n"),
                package("tool", "1.0-1", "Depends: libc6 (>= 2.30), editor | nano\n"),
                package("vim", "9.1", "Provides: editor\n"),
                package("agent", "3", "Depends: tool\n"),
            ],
            fields: format!(
                "Suite: stable\nCodename: rock\nDate: Thu, 20 Jun 2024 12:00:00 UTC\n{VALID_UNTIL}"
            ),
            by_hash: false,
            install: vec!["tool"],
            suite_options: "",
            extra: String::new(),
        };
        bench.write_definition();
        bench
    }

    /// An archive that the command's own clock does not find expired.
    pub(crate) fn timeless() -> Self {
        let mut bench = Self::new();
        bench.fields = bench.fields.replace(VALID_UNTIL, "");
        bench.publish();
        bench
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("workspace")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root().join("images/base/image.lock")
    }

    pub(crate) fn mirror(&self) -> PathBuf {
        self.folder.path().join("mirror/test")
    }

    pub(crate) fn mirror_url(&self) -> String {
        format!("file://{}", self.mirror().display())
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.folder.path().join("store")).unwrap()
    }

    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn write_definition(&self) {
        let (fingerprint, install) = (self.certificate.fingerprint().to_hex(), &self.install);
        let image = format!(
            "schema = 1\ntitle = \"Test\"\n[archive]\narchitecture = \"amd64\"\npath = \"test\"\nkeys = [\"key.asc\"]\n\
             fingerprints = [\"{fingerprint}\"]\n[[archive.suites]]\nname = \"stable\"\ncomponents = [\"main\"]\n{}\
             [packages]\ninstall = {install:?}\n{}\n[kernel]\ncommand-line = []\nstage0-always = []\n\
             stage0-hardware = []\n",
            self.suite_options, self.extra
        );
        let base = self.root().join("images/base");
        self.write(&base.join("image.toml"), image.as_bytes());
        self.write(
            &base.join("key.asc"),
            &self.certificate.armored().to_vec().unwrap(),
        );
        for (role, install) in [("worker", "\"agent\""), ("other", "")] {
            let text = format!(
                "schema = 1\ntitle = \"Role\"\n[packages]\ninstall = [{install}]\n[budget]\nimage-mb = 1\nboot-seconds = 1\n"
            );
            self.write(
                &self.root().join("roles").join(role).join("role.toml"),
                text.as_bytes(),
            );
        }
    }

    pub(crate) fn definition(&self) -> ImageDefinition {
        definition::load_image(&self.root(), "base").unwrap()
    }

    pub(crate) fn index(&self) -> String {
        self.packages.join("\n")
    }

    /// The Release file over `index`.
    pub(crate) fn release(&self, index: &str) -> String {
        let by_hash = if self.by_hash {
            "Acquire-By-Hash: yes\n"
        } else {
            ""
        };
        let (digest, size) = (Digest::of(index.as_bytes()), index.len());
        format!(
            "{}{by_hash}SHA256:\n {digest} {size} main/binary-amd64/Packages\n",
            self.fields
        )
    }

    /// Signs and writes everything as a mirror has it.
    pub(crate) fn publish(&self) {
        self.publish_signed(sign);
    }

    /// [`Self::publish`] with another way to sign.
    pub(crate) fn publish_signed(&self, sign: impl Fn(&Cert, &str) -> Vec<u8>) {
        let index = self.index();
        let dist = self.mirror().join("dists/stable");
        let folder = dist.join("main/binary-amd64");
        let path = match self.by_hash {
            true => folder
                .join("by-hash/SHA256")
                .join(Digest::of(index.as_bytes()).to_string()),
            false => folder.join("Packages"),
        };
        self.write(&path, index.as_bytes());
        for stanza in &self.packages {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let bytes = content(field("Package: "), field("Version: "));
            self.write(&self.mirror().join(field("Filename: ")), bytes.as_bytes());
        }
        self.write(&self.inrelease(), &sign(&self.certificate, &self.release(&index)));
    }

    pub(crate) fn inrelease(&self) -> PathBuf {
        self.mirror().join("dists/stable/InRelease")
    }

    /// What the archive has at the time [`NOW`].
    pub(crate) fn read(&self) -> anyhow::Result<Snapshot> {
        let (image, now) = (self.definition().image, NOW.parse().unwrap());
        suites::fetch(
            &image,
            &[self.mirror_url()],
            &self.store(),
            now,
            &Progress::silent(),
        )
    }

    pub(crate) fn resolve(&self, pins: &Pins<'_>) -> anyhow::Result<Lock> {
        let definition = self.definition();
        lock::resolve(
            &definition.image,
            &definition.roles,
            &definition.components,
            None,
            &self.read()?,
            pins,
        )
    }

    /// Runs the command on this workspace, with this mirror.
    pub(crate) fn kimage(&self, arguments: &[&str]) -> Output {
        self.kimage_from(&self.mirror_url(), arguments)
    }

    pub(crate) fn kimage_from(&self, mirror: &str, arguments: &[&str]) -> Output {
        Tool::new(env!("CARGO_BIN_EXE_kimage"))
            .args(arguments)
            .arg("--definitions")
            .arg(self.root())
            .arg("--store")
            .arg(self.folder.path().join("store"))
            .args(["--mirror", mirror])
            .inherit(&["PATH"])
            .output()
            .unwrap()
    }
}

/// Clear-signs `text` an hour before [`NOW`].
pub(crate) fn sign(certificate: &Cert, text: &str) -> Vec<u8> {
    sign_at(certificate, text, "2024-06-21T11:00:00Z")
}

/// Clear-signs `text` and dates the signature `at`.
pub(crate) fn sign_at(certificate: &Cert, text: &str, at: &str) -> Vec<u8> {
    signing::clear_sign(certificate, text.as_bytes(), time(at))
}
