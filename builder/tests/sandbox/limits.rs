//! What a command may use of the host, alone and with all that it starts.

use kimage_builder::tree::sandbox::{Ending, Exceeded, Limits};

use super::fixture::{Root, run};

const MEMORY: u64 = 160 << 20;

/// Fills so many times 32 MiB, each in a process of its own that then lasts.
fn hog(processes: u32) -> String {
    format!(
        "hog() {{ x=0123456789abcdef; i=0; while [ $i -lt 21 ]; do x=$x$x; i=$((i+1)); done; sleep 60; }}\n\
         n=0; while [ $n -lt {processes} ]; do hog & n=$((n+1)); done; sleep 20; exit 0"
    )
}

fn ending(limits: Limits, script: &str) -> (Ending, String) {
    let root = Root::new();
    let (outcome, text) = run(&mut root.sandbox().limits(limits), ["/bin/sh", "-c", script]);
    (outcome.ending, text)
}

#[test]
fn a_command_that_starts_ever_more_processes_is_ended_with_all_of_them() {
    let script = "i=0; while [ $i -lt 400 ]; do sleep 60 & i=$((i+1)); done; sleep 20; exit 0";
    let limits = Limits {
        tasks: 64,
        ..Limits::default()
    };
    let (ending, text) = ending(limits, script);
    // The host's root is not bound by the kernel's own limit; for others the shell can't go on.
    let stopped = ending == Ending::Exceeded(Exceeded::Tasks(64)) || matches!(ending, Ending::Exited(1..));
    assert!(stopped, "{ending}: {text}");
}

#[test]
fn processes_that_hold_too_much_memory_together_are_ended() {
    let limits = Limits {
        memory: MEMORY,
        ..Limits::default()
    };
    let (found, text) = ending(limits, &hog(16));
    assert_eq!(found, Ending::Exceeded(Exceeded::Memory(MEMORY)), "{text}");
    assert_eq!(found.to_string(), "stopped: it used more than 160 MiB of memory");
    let (found, text) = ending(limits, "x=fine; sleep 1; exit 0");
    assert_eq!(found, Ending::Exited(0), "{text}");
}

#[test]
fn one_process_that_asks_for_too_much_does_not_get_it() {
    let limits = Limits {
        memory: MEMORY,
        ..Limits::default()
    };
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    let (ending, text) = ending(limits, script);
    assert!(!ending.success() && text.contains("memory"), "{ending}: {text}");
}

#[test]
fn files_in_memory_have_a_limit() {
    let limits = Limits {
        temporary: 1 << 20,
        ..Limits::default()
    };
    for folder in ["/tmp", "/run", "/dev/shm"] {
        let size = if folder == "/dev/shm" { 100 << 20 } else { 4 << 20 };
        let script = format!("busybox head -c {size} /dev/zero > {folder}/x && exit 0; exit 9");
        let (ending, text) = ending(limits, &script);
        assert_eq!(ending, Ending::Exited(9), "{folder}: {text}");
    }
}
