//! Two builds of one lock give the same bytes: in different folders, at different times, with different job counts,
//! as different users, from different stores.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use kimage_builder::digest::Digest;
use kimage_qemu_tests::images::{
    WORKSPACE_PARTS, command, finish, keys, kimage, release, store_parts, workspace,
};

/// An ordinary user without home, files or rights.
const NOBODY: &str = "65534";

/// Two clocks, years from each other and from the tests' own, on both sides of it.
const CLOCKS: [&str; 2] = ["2003-02-28 23:59:58", "2031-11-05 06:07:08"];

/// `program`, for which it is `clock` now.
fn at(clock: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = command("faketime");
    // Only the clock: kimage's own notes about files go by the true times of files.
    command.env("NO_FAKE_STAT", "1").arg(clock).arg(program);
    command
}

/// A copy of what a definition is made of, readable by anybody, with other modification times than the original.
fn copied_workspace(target: &Path) {
    fs::create_dir(target).unwrap();
    for name in WORKSPACE_PARTS {
        finish(command("cp").arg("-r").arg(workspace().join(name)).arg(target)).unwrap();
    }
    finish(command("chmod").args(["-R", "a+rX"]).arg(target)).unwrap();
}

/// A store with inputs and built components only: every tree is made anew.
fn copied_store(target: &Path) {
    let store = kimage_builder::store::Store::default_root().unwrap();
    fs::create_dir_all(target.join("artifacts")).unwrap();
    for part in store_parts(&store) {
        let into = target.join(part).parent().unwrap().to_owned();
        finish(command("cp").arg("-r").arg(store.join(part)).arg(into)).unwrap();
    }
}

#[test]
fn another_user_in_another_folder_at_another_time_with_another_store_and_job_count_gets_the_same_bytes() {
    let first = release("ubuntu-24.04", "etcd").unwrap();
    let elsewhere = tempfile::Builder::new()
        .prefix("kimage other place ")
        .tempdir_in("/var/tmp")
        .unwrap();
    let place = elsewhere.path();
    copied_workspace(&place.join("definitions"));
    copied_store(&place.join("store"));
    let program = place.join("kimage");
    fs::copy(kimage().unwrap(), &program).unwrap();
    finish(
        command("cp")
            .arg("-r")
            .arg(keys().unwrap())
            .arg(place.join("keys")),
    )
    .unwrap();
    finish(
        command("chown")
            .args(["-R", &format!("{NOBODY}:{NOBODY}")])
            .arg(place),
    )
    .unwrap();

    let mut build = at(CLOCKS[1], "setpriv");
    build.args([
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--inh-caps=-all",
        "sh",
        "-c",
    ]);
    build.arg("umask 077; exec \"$0\" \"$@\"").arg(&program);
    build.args([
        "build",
        "--format",
        "raw,qcow2",
        "--offline",
        "--role",
        "etcd",
        "--jobs",
        "1",
        "--store",
        "store",
        "--output",
        "out",
    ]);
    build.args(["--keys", "keys", "--definitions", "definitions"]);
    build
        .env("HOME", "/nonexistent")
        .env("TZ", "Pacific/Kiritimati")
        .env("LC_ALL", "C");
    finish(build.current_dir(place)).unwrap();
    same_bytes(&first, &place.join("out/etcd"));
}

#[test]
fn building_again_without_any_cache_gives_the_same_bytes() {
    let first = release("ubuntu-24.04", "worker").unwrap();
    let other = tempfile::tempdir_in(workspace().join("target")).unwrap();
    let mut build = at(CLOCKS[0], kimage().unwrap());
    build
        .args([
            "build",
            "--format",
            "raw,qcow2",
            "--role",
            "worker",
            "--no-cache",
            "--jobs",
            "3",
            "--output",
        ])
        .arg(other.path());
    build.arg("--keys").arg(keys().unwrap());
    finish(build.current_dir(workspace())).unwrap();
    same_bytes(&first, &other.path().join("worker"));
}

/// The tests above show nothing about time if the false clock does not reach kimage.
#[test]
fn a_false_clock_reaches_kimage() {
    for clock in CLOCKS {
        let said = finish(at(clock, "date").arg("+%F")).unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&said).trim(), &clock[..10]);
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let maps = finish(at(CLOCKS[0], "sh").args(["-c", "echo $LD_PRELOAD"]))
        .unwrap()
        .stdout;
    let library = String::from_utf8_lossy(&maps).trim().to_owned();
    assert!(library.ends_with(".so.1"), "{library}");
    // What the dynamic linker says of the real program, which a static one would not.
    let mut traced = at(CLOCKS[0], kimage().unwrap());
    traced.args(["keys", "new"]).arg(elsewhere.path().join("keys"));
    let said = finish(traced.env("LD_DEBUG", "libs")).unwrap().stderr;
    assert!(String::from_utf8_lossy(&said).contains("calling init: /"));
    assert!(String::from_utf8_lossy(&said).contains("libfaketime"));
}

#[test]
fn keys_tell_nothing_of_the_time_when_they_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let made = CLOCKS.map(|clock| {
        let keys = folder.path().join(&clock[..4]);
        finish(at(clock, kimage().unwrap()).args(["keys", "new"]).arg(&keys)).unwrap();
        keys
    });
    for name in ["PK", "KEK", "db"] {
        let dates = |keys: &Path| {
            let mut openssl = command("openssl");
            openssl.args(["x509", "-noout", "-dates", "-in"]);
            finish(openssl.arg(keys.join(name).with_extension("crt")))
                .unwrap()
                .stdout
        };
        assert_eq!(dates(&made[0]), dates(&made[1]), "{name}.crt");
        // EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10, 8.2.2) begins with a time of 16 bytes.
        let time = |keys: &Path| fs::read(keys.join(name).with_extension("auth")).unwrap()[..16].to_vec();
        assert_eq!(time(&made[0]), time(&made[1]), "{name}.auth");
    }
}

#[test]
fn provenance_names_no_time() {
    let first = release("ubuntu-24.04", "etcd").unwrap();
    let envelope: serde_json::Value =
        serde_json::from_slice(&fs::read(first.join("provenance.json")).unwrap()).unwrap();
    let mut decode = command("openssl");
    let payload = first.parent().unwrap().join("payload");
    fs::write(&payload, envelope["payload"].as_str().unwrap()).unwrap();
    let statement = finish(decode.args(["base64", "-d", "-A", "-in"]).arg(&payload))
        .unwrap()
        .stdout;
    fs::remove_file(&payload).unwrap();
    let statement: serde_json::Value = serde_json::from_slice(&statement).unwrap();
    let details = statement["predicate"]["runDetails"].as_object().unwrap();
    assert_eq!(details.keys().collect::<Vec<_>>(), ["builder", "metadata"]);
    // SLSA v1 puts startedOn and finishedOn here.
    let metadata = details["metadata"].as_object().unwrap();
    assert_eq!(metadata.keys().collect::<Vec<_>>(), ["invocationId"]);
}

fn same_bytes(one: &Path, other: &Path) {
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(one), names(other));
    for format in ["disk.raw", "disk.qcow2"] {
        assert!(one.join(format).is_file(), "{format} is absent");
    }
    assert!(names(one).len() > 10);
    let digest = |path: &Path| Digest::of_file(path).unwrap();
    let different: Vec<_> = names(one)
        .into_iter()
        .filter(|name| digest(&one.join(name)) != digest(&other.join(name)))
        .collect();
    assert!(different.is_empty(), "these differ: {different:?}");
}
