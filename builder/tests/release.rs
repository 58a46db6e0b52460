//! The release documents against checkers that others wrote: the SPDX and CycloneDX projects' own Python libraries
//! and OpenSSL. `qemu-tests/run-all` installs them into `target/oracles`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "release/manifest.rs"]
mod manifest;
#[path = "oracle/tool.rs"]
mod oracle;
#[path = "oracle/python.rs"]
mod python;

use std::path::Path;

use kimage_builder::digest::Digest;
use kimage_builder::release::bill::{Bill, ComponentEntry, GoModule, Package};
use kimage_builder::release::manifest::Manifest;
use kimage_builder::release::{self, names};
use kimage_builder::sign::{Identity, Purpose, Signer};
use oracle::tool;
use ring::signature::{Ed25519KeyPair, KeyPair};

struct ReleaseKey {
    pair: Ed25519KeyPair,
    identity: Identity,
}

impl ReleaseKey {
    fn new(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let release = pair.public_key().as_ref().try_into().unwrap();
        let (platform_key, key_exchange_key, database) = (vec![], vec![], vec![]);
        Self {
            pair,
            identity: Identity {
                platform_key,
                key_exchange_key,
                database,
                release,
                enrolment: None,
                development: true,
            },
        }
    }
}

impl Signer for ReleaseKey {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        anyhow::ensure!(purpose == Purpose::Release, "this key signs releases only");
        Ok(self.pair.sign(message).as_ref().to_vec())
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn bill() -> Bill {
    let package = |name: &str, version: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: "amd64".to_owned(),
        source: None,
        path: format!("pool/main/{name}_{version}_amd64.deb"),
        sha256: Digest::of(name.as_bytes()),
    };
    let module = |path: &str| GoModule {
        path: path.to_owned(),
        version: "v1.2.3+incompatible".to_owned(),
        sum: "h1:AAAA".to_owned(),
    };
    Bill {
        distribution: "ubuntu".to_owned(),
        distribution_version: "24.04".to_owned(),
        packages: vec![
            package("libstdc++6", "14.2.0-4ubuntu2~24.04"),
            package("tzdata", "2:2026a-0~1"),
        ],
        components: vec![ComponentEntry {
            name: "etcd".to_owned(),
            version: "v3.6.14".to_owned(),
            source: Digest::of(b"etcd"),
            go_modules: vec![
                module("go.etcd.io/etcd/server/v3"),
                module("github.com/Azure/go-ansiterm"),
            ],
            files: vec![("/usr/bin/etcd".to_owned(), Digest::of(b"binary"))],
        }],
    }
}

fn written(folder: &Path) -> (Manifest, ReleaseKey) {
    let key = ReleaseKey::new([7; 32]);
    (
        release::write(folder, manifest::sample(), &bill(), &key).unwrap(),
        key,
    )
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn both_bills_of_materials_are_valid_against_their_schemas_and_name_every_package_and_module() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path());
    let script = r#"
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
if errors: sys.exit(f"CycloneDX: {errors}")
document = parse_file(sys.argv[2])
messages = validate_full_spdx_document(document)
if messages: sys.exit("SPDX: " + "\n".join(m.validation_message for m in messages))
print(sorted(p.name for p in document.packages))
"#;
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let judge = python::python("python").args(["-c", script, &path(names::CYCLONEDX), &path(names::SPDX)]);
    let output = judge.output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for name in [
        "libstdc++6",
        "tzdata",
        "etcd",
        "go.etcd.io/etcd/server/v3",
        "github.com/Azure/go-ansiterm",
    ] {
        assert!(text.contains(&format!("'{name}'")), "{name} is missing in {text}");
        let cyclonedx = std::fs::read_to_string(path(names::CYCLONEDX)).unwrap();
        assert!(cyclonedx.contains(&format!("\"name\": \"{name}\"")), "{name}");
    }
}

#[test]
fn openssl_accepts_the_manifest_signature_and_refuses_a_changed_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let (_, key) = written(folder.path());
    // SubjectPublicKeyInfo of an Ed25519 key: RFC 8410, section 4.
    let mut spki = vec![
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    spki.extend_from_slice(&key.identity().release);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("key.der"), spki).unwrap();
    let verify = [
        "pkeyutl",
        "-verify",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        &path("key.der"),
        "-rawin",
    ];
    let files = [
        "-in",
        &path(names::MANIFEST),
        "-sigfile",
        &path(names::MANIFEST_SIGNATURE),
    ];
    tool("openssl").args(verify).args(files).run().unwrap();

    let mut bytes = std::fs::read(path(names::MANIFEST)).unwrap();
    bytes[40] ^= 1;
    std::fs::write(path(names::MANIFEST), bytes).unwrap();
    let error = release::read_signed_manifest(folder.path(), &key.identity().release).unwrap_err();
    assert_eq!(
        kimage_builder::failure::exit_code(&error),
        kimage_builder::failure::ExitCode::Mismatch
    );
}

#[test]
fn a_signed_manifest_reads_back_and_a_foreign_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (manifest, key) = written(folder.path());
    let (read, _) = release::read_signed_manifest(folder.path(), &key.identity().release).unwrap();
    assert_eq!(read, manifest);
    let foreign = ReleaseKey::new([8; 32]);
    assert!(release::read_signed_manifest(folder.path(), &foreign.identity().release).is_err());
}

#[test]
fn sha256sum_checks_every_other_file_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path());
    std::fs::write(folder.path().join("disk.raw"), b"not a disk").unwrap();
    let sums = tool("sha256sum").args(["-c", "--strict", names::CHECKSUMS]);
    let text = String::from_utf8(sums.directory(folder.path()).run().unwrap()).unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap().count() - 1;
    assert_eq!(text.matches(": OK").count(), files, "{text}");
}

#[test]
fn equal_inputs_give_equal_documents() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(first.path());
    written(second.path());
    for name in [
        names::MANIFEST,
        names::MANIFEST_SIGNATURE,
        names::SPDX,
        names::CYCLONEDX,
        names::PROVENANCE,
    ] {
        let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(name)).unwrap();
        assert!(read(&first) == read(&second), "{name}");
    }
}
