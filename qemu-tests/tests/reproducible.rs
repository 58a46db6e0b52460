//! Two builds of one lock give the same bytes: in different folders, at different times, with different job counts,
//! as different users, from different stores.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs;
use std::path::Path;

use kimage_builder::digest::Digest;
use kimage_qemu_tests::images::{WORKSPACE_PARTS, command, finish, keys, kimage, release, workspace};

/// An ordinary user without home, files or rights.
const NOBODY: &str = "65534";

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
    for part in ["blobs", "artifacts/component", "artifacts/toolchain"] {
        let into = target.join(part).parent().unwrap().to_owned();
        finish(command("cp").arg("-r").arg(store.join(part)).arg(into)).unwrap();
    }
}

#[test]
fn another_user_in_another_folder_with_another_store_and_job_count_gets_the_same_bytes() {
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

    let mut build = command("setpriv");
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
    let mut build = command(kimage().unwrap());
    build
        .args([
            "build",
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
    assert!(names(one).len() > 10);
    let digest = |path: &Path| Digest::of_file(path).unwrap();
    let different: Vec<_> = names(one)
        .into_iter()
        .filter(|name| digest(&one.join(name)) != digest(&other.join(name)))
        .collect();
    assert!(different.is_empty(), "these differ: {different:?}");
}
