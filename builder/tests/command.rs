//! The command line as scripts see it: exit codes, streams, completion.

#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::path::Path;
use std::process::Output;

use kimage_builder::digest::Digest;
use kimage_builder::download::{Request, vendor};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;

fn kimage(arguments: &[&str]) -> Output {
    Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(arguments)
        .inherit(&["PATH"])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    for wrong in [
        &["build"][..],
        &["no-such"],
        &["build", "--role", "x", "--format", "floppy"],
        &[],
    ] {
        assert_eq!(kimage(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let help = kimage(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("kimage build --role control-plane"));
}

#[test]
fn an_error_names_its_cause_and_its_remedy() {
    let output = kimage(&["doctor", "--quiet"]);
    assert!(
        text(&output.stdout).contains("neither XDG_CACHE_HOME nor HOME"),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(1));

    let output = kimage(&["--store", "/proc/kimage", "vendor", "--import", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("error: store `/proc/kimage`: write"), "{error}");
    assert!(
        error.contains("\nhint: ") && error.contains("--store DIR"),
        "{error}"
    );
}

#[test]
fn a_vendor_file_is_imported_and_a_damaged_one_is_exit_code_5() {
    let folder = tempfile::tempdir().unwrap();
    let source = Store::open(&folder.path().join("source")).unwrap();
    let (digest, _) = source.put(b"some package").unwrap();
    let request = Request {
        name: "some".to_owned(),
        urls: Vec::new(),
        digest,
        size: 12,
    };
    let file = folder.path().join("inputs.tar");
    vendor::write(&[request], &[], &source, &file, &Progress::silent()).unwrap();

    let target = folder.path().join("target");
    let import = |file: &Path| {
        kimage(&[
            "vendor",
            "--import",
            file.to_str().unwrap(),
            "--json",
            "--store",
            target.to_str().unwrap(),
        ])
    };
    let output = import(&file);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["blobs"], 1);
    assert_eq!(summary["digest"], Digest::of_file(&file).unwrap().0.to_string());
    assert!(Store::open(&target).unwrap().blob(&digest).unwrap().is_some());

    let mut bytes = std::fs::read(&file).unwrap();
    let place = bytes
        .windows(12)
        .position(|window| window == b"some package")
        .unwrap();
    bytes[place] = b'S';
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(import(&file).status.code(), Some(5));
}

#[test]
fn doctor_speaks_json() {
    let store = tempfile::tempdir().unwrap();
    let output = kimage(&[
        "doctor",
        "--json",
        "--offline",
        "--store",
        store.path().to_str().unwrap(),
    ]);
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    for name in [
        "user namespaces",
        "seccomp notification",
        "overlayfs",
        "store",
        "Go",
        "Rust",
        "QEMU",
        "OVMF",
        "KVM",
    ] {
        let check = checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(check["state"] != "fine", check["remedy"].is_string(), "{check}");
    }
}

#[test]
fn completion_is_a_script_of_the_shell() {
    let script = kimage(&["completion", "bash"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kimage.bash");
    std::fs::write(&file, &script.stdout).unwrap();
    let load = format!("source {} && complete -p kimage", file.display());
    let loaded = Tool::new("bash").args(["--norc", "-c", &load]).run().unwrap();
    assert!(text(&loaded).contains("kimage"), "{}", text(&loaded));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut kimage = Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(["completion", "bash"])
        .into_command();
    assert_eq!(kimage.stdout(writer).status().unwrap().code(), Some(0));
}
