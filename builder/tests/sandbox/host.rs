//! Hosts that allow it and hosts that do not.

use std::fs;
use std::path::Path;
use std::process::Command;

use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::tree::sandbox::probe_by;

use super::fixture::{KIMAGE, this_program};

#[test]
fn the_probe_says_yes_where_the_sandbox_works() {
    let folder = tempfile::tempdir().unwrap();
    probe_by(Path::new(KIMAGE), folder.path()).unwrap();
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the probe cleans up"
    );
}

#[test]
fn a_host_that_refuses_is_told_the_remedy() {
    let [program, rest @ ..] = this_program("host::helper_is_refused");
    // A user namespace that may have no others in it: what a locked-down host looks like.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "sh", "-c", script, "sh"])
        .arg(program)
        .args(rest);
    let output = command
        .output()
        .expect("this test needs unshare: install the package util-linux");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
#[ignore = "runs where namespaces are refused, started by a_host_that_refuses_is_told_the_remedy"]
fn helper_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = probe_by(Path::new(KIMAGE), folder.path()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Sandbox);
    let hints: Vec<_> = hints(&error).collect();
    assert!(
        hints.len() == 1 && hints[0].contains("user.max_user_namespaces"),
        "{hints:?}"
    );
}
