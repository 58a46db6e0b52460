//! Keys, certificates and variable stores as others read them: OpenSSL and the Python package `virt-firmware`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "oracle/python.rs"]
mod python;
#[path = "oracle/tool.rs"]
mod tool;

use std::fs;
use std::path::{Path, PathBuf};

use kimage_builder::sign::keys::{FileSigner, create};
use kimage_builder::sign::{Purpose, Signer, ovmf_vars};
use kimage_builder::tool::Tool;

/// New keys in `folder`, and their signer.
fn keys(folder: &Path) -> (PathBuf, FileSigner) {
    let keys = folder.join("keys");
    create(&keys).unwrap();
    let signer = FileSigner::load(&keys).unwrap();
    (keys, signer)
}

fn text(tool: Tool) -> String {
    String::from_utf8(tool.run().unwrap()).unwrap()
}

#[test]
fn openssl_checks_a_release_signature_and_reads_the_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, own) = keys(folder.path());
    let (message, signature) = (folder.path().join("message"), folder.path().join("signature"));
    fs::write(&message, b"manifest").unwrap();
    fs::write(&signature, own.sign(Purpose::Release, b"manifest").unwrap()).unwrap();
    let verify = || {
        let verify = tool::tool("openssl")
            .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"])
            .arg(keys.join("release.pub"));
        verify.arg("-in").arg(&message).arg("-sigfile").arg(&signature)
    };
    assert!(text(verify()).contains("Signature Verified Successfully"));
    fs::write(&message, b"manifesT").unwrap();
    assert!(verify().run().is_err());
    let key = text(
        tool::tool("openssl")
            .args(["pkey", "-noout", "-text", "-in"])
            .arg(keys.join("release.key")),
    );
    assert!(key.to_lowercase().contains("ed25519"), "{key}");
    for name in ["PK", "KEK", "db"] {
        let path = keys.join(format!("{name}.crt"));
        tool::tool("openssl")
            .args(["verify", "-CAfile"])
            .arg(&path)
            .arg(&path)
            .run()
            .unwrap();
    }
}

#[test]
fn virt_firmware_reads_our_variable_store() {
    let folder = tempfile::tempdir().unwrap();
    let (_, own) = keys(folder.path());
    let path = folder.path().join("vars.fd");
    fs::write(&path, ovmf_vars::enrolled(own.identity()).unwrap()).unwrap();
    let printed = python::python("virt-fw-vars")
        .arg("--input")
        .arg(&path)
        .args(["--print", "--verbose"]);
    let printed = text(printed);
    for part in [
        "name=PK guid=guid:EfiGlobalVariable",
        "name=KEK guid=guid:EfiGlobalVariable",
        "name=db guid=guid:EfiImageSecurityDatabase",
        "name=dbx guid=guid:EfiImageSecurityDatabase",
        "time=2020-01-01 00:00:00+00:00",
        "CN=kimage platform key",
        "CN=kimage key exchange key",
        "CN=kimage signature database key",
        "name=SecureBootEnable guid=guid:EfiSecureBootEnableDisable size=1\n  bool: ON",
        "name=CustomMode guid=guid:EfiCustomModeEnable size=1\n  bool: off",
    ] {
        assert!(printed.contains(part), "{part}:\n{printed}");
    }
}
