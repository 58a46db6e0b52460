//! Nothing outlives its caller.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kimage_builder::tree::sandbox::Sandbox;

use super::fixture::{KIMAGE, Root, this_program};

#[test]
#[ignore = "started and killed by a_killed_caller_leaves_no_process"]
fn helper_runs_for_ever() {
    let root = PathBuf::from(std::env::var_os("KIMAGE_TEST_ROOT").unwrap());
    let script = [
        "/bin/sh",
        "-c",
        "sleep 1000 & (sleep 1000 &); touch /started; sleep 1000",
    ];
    Sandbox::directory(&root)
        .program(Path::new(KIMAGE))
        .run(script, &mut |_| {})
        .unwrap();
}

/// The living processes that descend from `ancestor`.
fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        parents.push((pid, fields[1].parse::<u32>().unwrap()));
    }
    let mut found = BTreeSet::from([ancestor]);
    while parents
        .iter()
        .any(|(pid, parent)| found.contains(parent) && !found.contains(pid))
    {
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
    }
    found.remove(&ancestor);
    found
}

/// Start time of a process: with the id it names the process for ever.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

#[test]
fn a_killed_caller_leaves_no_process() {
    let root = Root::new();
    let [program, rest @ ..] = this_program("processes::helper_runs_for_ever");
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("KIMAGE_TEST_ROOT", root.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut caller = command.spawn().unwrap();
    let begun = Instant::now();
    while !root.path().join("started").exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the sandbox did not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let family: Vec<_> = descendants(caller.id())
        .into_iter()
        .filter_map(|pid| Some((pid, start_time(pid)?)))
        .collect();
    assert!(family.len() >= 5, "{family:?}");
    caller.kill().unwrap();
    caller.wait().unwrap();
    let begun = Instant::now();
    while family
        .iter()
        .any(|(pid, started)| start_time(*pid).as_ref() == Some(started))
    {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "processes of {family:?} are still there"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
}
