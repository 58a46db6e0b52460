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
    let output = kimage(&["doctor", "--quiet", "--offline"]);
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

/// A vendor file with one artifact: these files, and links with their targets.
fn forged(kind: &str, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let key = Digest::of(b"some component's key");
    let mut items: Vec<serde_json::Value> = Vec::new();
    for (path, content) in files {
        let (digest, size) = (Digest::of(content).to_string(), content.len());
        items.push(serde_json::json!({
            "path": path, "type": "file", "digest": digest, "size": size, "executable": true
        }));
    }
    for (path, target) in links {
        items.push(serde_json::json!({ "path": path, "type": "link", "target": target }));
    }
    let artifact = serde_json::json!({ "kind": kind, "key": key.to_string(), "items": items });
    let index = serde_json::json!({ "schema": 1, "blobs": [], "artifacts": [artifact] });
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("kimage-vendor.json", &serde_json::to_vec(&index).unwrap());
    for (path, content) in files {
        add(&format!("artifacts/{kind}/{key}/{path}"), content);
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_vendor_file_that_would_put_a_file_of_the_host_into_images_is_refused_with_exit_code_5() {
    let record = |source: &str, digest: Digest| {
        let record = serde_json::json!({
            "name": "tool", "version": "v1", "licence": "MIT", "links": [], "images": [], "go_modules": [],
            "files": [{ "path": "/usr/bin/tool", "mode": 0o755, "source": source, "size": 4, "digest": digest.to_string() }],
        });
        serde_json::to_vec(&record).unwrap()
    };
    let tool = Digest::of(b"tool");
    let good = record("0", tool);
    let folder = tempfile::tempdir().unwrap();
    let import = |bytes: &[u8], number: usize| {
        let (file, store) = (
            folder.path().join("forged.tar"),
            folder.path().join(format!("store-{number}")),
        );
        std::fs::write(&file, bytes).unwrap();
        kimage(&[
            "vendor",
            "--import",
            file.to_str().unwrap(),
            "--store",
            store.to_str().unwrap(),
        ])
    };
    let output = import(
        &forged("component", &[("0", b"tool"), ("component.json", &good)], &[]),
        0,
    );
    // Nothing is wrong with it, but no lock says that it is what belongs under its key.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("no image.lock of the workspace knows"), "{said}");
    let attacks: [(&str, Vec<u8>); 6] = [
        (
            "/etc/hostname",
            forged(
                "component",
                &[("component.json", &record("/etc/hostname", tool))],
                &[],
            ),
        ),
        (
            "../x",
            forged("component", &[("component.json", &record("../x", tool))], &[]),
        ),
        (
            "link",
            forged(
                "component",
                &[("component.json", &record("0", tool))],
                &[("0", "/etc/hostname")],
            ),
        ),
        (
            "link",
            forged(
                "component",
                &[("0", b"tool"), ("component.json", &good)],
                &[("unused", "x")],
            ),
        ),
        (
            "/usr/bin/tool",
            forged("component", &[("0", b"evil"), ("component.json", &good)], &[]),
        ),
        (
            "packages",
            forged("packages", &[("0", b"a whole root file system")], &[]),
        ),
    ];
    for (number, (word, bytes)) in (1..).zip(attacks) {
        let output = import(&bytes, number);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{word}: {text}");
        assert!(text.contains(word), "{word}: {text}");
        let kept = folder.path().join(format!("store-{number}/artifacts"));
        let kept = walk(&kept).into_iter().filter(|path| path.is_file()).count();
        assert_eq!(kept, 0, "{word}");
    }
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        found.extend(walk(&entry.path()));
        found.push(entry.path());
    }
    found
}

/// A release folder as far as `kimage run` looks into it before it boots.
fn release() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk.raw", "ovmf-vars.fd"] {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_len(528 << 10).unwrap();
    }
    folder
}

#[test]
fn run_names_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let output = kimage(&["run", empty.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.contains("holds no disk.raw\nhint: ") && error.contains("kimage build"),
        "{error}"
    );

    let release = release();
    std::fs::remove_file(release.path().join("ovmf-vars.fd")).unwrap();
    let output = kimage(&["run", release.path().to_str().unwrap()]);
    assert!(
        text(&output.stderr).contains("holds no ovmf-vars.fd"),
        "{output:?}"
    );
}

#[test]
fn run_without_qemu_names_its_packages() {
    let release = release();
    let output = Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(["run", release.path().to_str().unwrap()])
        .env("PATH", release.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("`qemu-system-x86_64` is not on the PATH"),
        "{error}"
    );
    assert!(
        error.contains("hint: ") && error.contains("apt-get install qemu-system-x86"),
        "{error}"
    );
}

/// Runs `kimage run` with a QEMU that writes its arguments to a file, overwrites the disk's start, and ends with `status`.
fn run_with_fake_qemu(status: u8, more: &[&str]) -> (Output, String, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt;

    let release = release();
    let program = release.path().join("qemu-system-x86_64");
    let arguments = release.path().join("arguments");
    let script = format!(
        "#!/bin/sh\necho \"$@\" > {}\nfor word; do case $word in *id=disk0,*) disk=${{word#*file=}} ;; esac; done\n\
         printf changed | dd of=${{disk%%,*}} conv=notrunc 2> /dev/null\nexit {status}\n",
        arguments.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(["run", release.path().to_str().unwrap(), "--accel", "tcg"])
        .args(["--store", release.path().join("store").to_str().unwrap()])
        .args(more)
        .env("PATH", format!("{}:/usr/bin:/bin", release.path().display()))
        .output()
        .unwrap();
    (
        output,
        std::fs::read_to_string(arguments).unwrap_or_default(),
        release,
    )
}

#[test]
fn run_leaves_the_release_as_it_is_and_nothing_behind() {
    let (output, arguments, release) = run_with_fake_qemu(0, &["--disk-size", "1G", "--cpus", "3"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for expected in [
        "q35,smm=on",
        "-smp 3",
        "-accel tcg",
        "-serial mon:stdio",
        "unit=1,file=",
    ] {
        assert!(arguments.contains(expected), "{expected}: {arguments}");
    }
    let disk = std::fs::read(release.path().join("disk.raw")).unwrap();
    assert!(
        disk.iter().all(|byte| *byte == 0),
        "the disk of the release was written to"
    );
    let left = std::fs::read_dir(release.path().join("store/scratch"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "the machine's disk stays behind");
}

#[test]
fn a_kept_disk_has_what_the_machine_wrote() {
    let kept = tempfile::tempdir().unwrap();
    let disk = kept.path().join("machine.raw");
    let keep = ["--keep", disk.to_str().unwrap()];
    let (output, arguments, _release) = run_with_fake_qemu(0, &keep);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        arguments.contains(&format!("file={},format=raw,cache=writeback", disk.display())),
        "{arguments}"
    );
    let mut start = [0; 7];
    std::io::Read::read_exact(&mut std::fs::File::open(&disk).unwrap(), &mut start).unwrap();
    assert_eq!(&start, b"changed");
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), (528 << 10) + (8 << 30));
    assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 1);
}

#[test]
fn a_qemu_that_fails_is_an_error() {
    let (output, _, _release) = run_with_fake_qemu(1, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("QEMU ended with exit status: 1"),
        "{output:?}"
    );
}

#[test]
fn doctor_outside_a_workspace_says_that_archives_are_not_checked() {
    let (store, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = Tool::new(env!("CARGO_BIN_EXE_kimage"))
        .args(["doctor", "--store", store.path().to_str().unwrap()])
        .inherit(&["PATH"])
        .directory(here.path())
        .output()
        .unwrap();
    assert!(
        text(&output.stderr).contains("archives are not checked"),
        "{output:?}"
    );
    assert!(!text(&output.stdout).contains("InRelease"), "{output:?}");
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
