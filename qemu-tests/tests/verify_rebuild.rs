//! `kimage verify --rebuild` on releases of the images that ship: what was built comes out again, and what somebody
//! changed is named.

#![expect(
    clippy::unwrap_used,
    reason = "what these tests need and do not find ends them"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use kimage_qemu_tests::images::{command, copy_workspace, finish, keys, kimage, release, workspace};

/// Exit codes that README.md promises.
const MISMATCH: i32 = 5;
const VERIFICATION: i32 = 7;

fn verify(folder: &Path, more: &[&str]) -> Output {
    let mut verify = command(kimage().unwrap());
    verify.arg("verify").arg(folder).arg("--key");
    verify.arg(keys().unwrap().join("release.pub")).args(more);
    verify.current_dir(workspace()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A copy of a release that may be spoiled.
fn copied(role: &str) -> (PathBuf, tempfile::TempDir) {
    let from = release("ubuntu-24.04", role).unwrap();
    let place = tempfile::tempdir_in(workspace().join("target")).unwrap();
    let folder = place.path().join(role);
    finish(
        command("cp")
            .args(["-r", "--sparse=always"])
            .arg(from)
            .arg(&folder),
    )
    .unwrap();
    (folder, place)
}

fn replace(path: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(old), "{} without {old}", path.display());
    fs::write(path, text.replacen(old, new, 1)).unwrap();
}

fn comes_out_again(role: &str) {
    let folder = release("ubuntu-24.04", role).unwrap();
    let output = verify(&folder, &["--rebuild"]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for component in ["etcd", "firstboot"] {
        assert!(
            said.contains(&format!("build {component}")),
            "{component} was not compiled again:\n{said}"
        );
    }
    for claim in ["rebuild root filesystem", "rebuild uki", "rebuild contents"] {
        assert!(said.contains(claim), "nothing about `{claim}`:\n{said}");
    }
    assert!(said.contains("verified in"), "{said}");
}

/// The role with the fewest programs: all are compiled again, from sources, with empty caches.
#[test]
fn an_etcd_comes_out_again_from_its_sources() {
    comes_out_again("etcd");
}

#[test]
fn a_changed_byte_of_the_disk_is_a_mismatch_that_names_the_disk() {
    let (folder, _place) = copied("etcd");
    let path = folder.join("disk.raw");
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let partitions = manifest["partitions"].as_array().unwrap();
    let root = partitions
        .iter()
        .find(|partition| partition["name"].as_str().unwrap().starts_with("root"))
        .unwrap();
    let at = root["offset"].as_u64().unwrap() + root["size"].as_u64().unwrap() / 2;
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).unwrap();
    disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let output = verify(&folder, &["--rebuild"]);
    assert_eq!(output.status.code(), Some(MISMATCH), "{}", said(&output));
    assert!(said(&output).contains("disk.raw"), "{}", said(&output));
}

#[test]
fn a_changed_manifest_is_a_mismatch_that_names_the_manifest() {
    let (folder, _place) = copied("etcd");
    replace(
        &folder.join("manifest.json"),
        "\"role\": \"etcd\"",
        "\"role\": \"worker\"",
    );
    let output = verify(&folder, &["--rebuild"]);
    assert_eq!(output.status.code(), Some(MISMATCH), "{}", said(&output));
    assert!(said(&output).contains("manifest.json"), "{}", said(&output));
}

/// A signer who is no liar about bytes, but built from another definition than he says: only a rebuild can tell.
#[test]
fn a_release_of_another_definition_names_the_first_file_that_differs() {
    let keys = keys().unwrap();
    let place = tempfile::tempdir_in(workspace().join("target")).unwrap();
    let definitions = place.path().join("definitions");
    fs::create_dir(&definitions).unwrap();
    copy_workspace(&definitions).unwrap();
    let back_door = definitions.join("roles/etcd/files/etc/back-door.conf");
    fs::create_dir_all(back_door.parent().unwrap()).unwrap();
    fs::write(back_door, "open\n").unwrap();
    let mut build = command(kimage().unwrap());
    build.args(["build", "--role", "etcd", "--definitions"]);
    build.arg(&definitions).arg("--output").arg(place.path());
    finish(build.arg("--keys").arg(keys)).unwrap();

    let folder = place.path().join("etcd");
    let honest = verify(&folder, &[]);
    assert!(honest.status.success(), "{}", said(&honest));
    let output = verify(&folder, &["--rebuild"]);
    assert_eq!(output.status.code(), Some(VERIFICATION), "{}", said(&output));
    assert!(
        said(&output).contains("the first is /etc/back-door.conf"),
        "{}",
        said(&output)
    );
}
