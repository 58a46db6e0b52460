//! The same tree from another user, folder, umask and number of threads.

use std::collections::BTreeSet;
use std::path::PathBuf;

use kimage_builder::tool::Tool;
use kimage_builder::tree::fingerprint;

use super::fixture::{PROGRAM, assembled, assembled_in, fill, listing, program};

/// Runs in a child process of the next test, as another user.
#[test]
#[ignore = "the child of the next test"]
fn child_prints_a_fingerprint() {
    let folder = PathBuf::from(std::env::var_os("KIMAGE_TEST_FOLDER").unwrap());
    let assembled = assembled_in(&folder, 1);
    std::fs::write(folder.join("listing"), listing(&assembled.tree)).unwrap();
    println!("fingerprint {}", fingerprint(&assembled.tree));
}

#[test]
fn another_user_folder_umask_and_number_of_threads_give_the_same_tree() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run this test as root: it becomes another user"
    );
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("a longer name");
    std::fs::create_dir(&other).unwrap();
    fill(&other);
    let [test, kimage] = [
        (std::env::current_exe().unwrap(), "test"),
        (program().to_owned(), "kimage"),
    ]
    .map(|(from, name)| {
        let to = folder.path().join(name);
        std::fs::copy(from, &to).unwrap();
        to
    });
    let own = Tool::new("/bin/chown").args(["-R", "65534:65534"]);
    own.arg(folder.path()).run().unwrap();
    let script = "umask 077; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" --ignored --exact --nocapture same::child_prints_a_fingerprint";
    let output = Tool::new("/bin/sh")
        .args(["-c", script])
        .arg(test)
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", &other)
        .env(PROGRAM, kimage)
        .env("KIMAGE_TEST_FOLDER", &other)
        .run()
        .unwrap();
    let output = String::from_utf8(output).unwrap();
    let theirs = std::fs::read_to_string(other.join("listing")).unwrap();
    let (ours, theirs) = (listing(&assembled().tree), theirs);
    let (ours, theirs): (BTreeSet<&str>, BTreeSet<&str>) = (ours.lines().collect(), theirs.lines().collect());
    assert!(
        ours == theirs,
        "{:#?}",
        ours.symmetric_difference(&theirs).collect::<Vec<_>>()
    );
    let theirs = output
        .lines()
        .find_map(|line| line.split_once("fingerprint "))
        .unwrap()
        .1;
    assert_eq!(theirs, fingerprint(&assembled().tree).to_string());
}
