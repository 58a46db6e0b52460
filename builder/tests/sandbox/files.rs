//! What a command can change, and what it changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kimage_builder::tree::sandbox::Sandbox;
use kimage_builder::tree::sandbox::delta::{Change, delta};

use super::fixture::{Root, ids, run};

#[test]
fn binds_are_read_only_unless_asked() {
    let root = Root::new();
    let shared = root.beside("shared");
    fs::write(shared.join("file"), "host").unwrap();
    let script = [
        "/bin/sh",
        "-c",
        "cat /run/in/file; echo x > /run/in/new && exit 1; exit 0",
    ];
    let (outcome, text) = run(&mut root.sandbox().bind(&shared, Path::new("/run/in")), script);
    assert!(outcome.ending.success() && text.starts_with("host"), "{text}");
    let script = ["/bin/sh", "-c", "echo x > /run/out/new"];
    let (outcome, _) = run(
        &mut root.sandbox().bind_writable(&shared, Path::new("/run/out")),
        script,
    );
    assert!(outcome.ending.success() && shared.join("new").exists());
}

/// Every file below `root`: path, mode and content.
fn listing(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            found.push((path.clone(), metadata.mode(), content));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_overlay_leaves_the_lower_tree_alone_and_tells_the_difference() {
    let root = Root::new();
    let lower = root.path();
    for name in [
        "dev", "proc", "run", "sys", "tmp", "keep", "drop", "swap", "remade",
    ] {
        fs::create_dir(lower.join(name)).unwrap();
        fs::write(lower.join(name).join("file"), name).unwrap();
    }
    fs::write(lower.join("turns"), "file").unwrap();
    let before = listing(&lower);
    let (upper, work) = (root.beside("upper"), root.beside("work"));
    let mut sandbox = Sandbox::overlay(std::slice::from_ref(&lower), &upper, &work).program(&root.kimage);
    let script = "set -e; echo more >> /keep/file; rm -r /drop; rm /swap/file; mkdir /swap/file; chown 3:4 /swap/file; \
                  rm -r /remade; mkdir /remade; echo x > /remade/other; chown 5:6 /remade/other; rm /turns; ln -s keep /turns; \
                  echo x > /new; rm /new; echo x > /fresh; chown 7:8 /fresh; ln -s x /link; chown -h 9:10 /link";
    let (outcome, text) = run(&mut sandbox, ["/bin/sh", "-c", script]);
    assert!(outcome.ending.success(), "{text}");
    assert_eq!(listing(&lower), before);
    let owned: Vec<_> = outcome
        .owners
        .iter()
        .map(|(path, owner)| (path.to_string(), owner.uid))
        .collect();
    let expected = [
        ("/fresh", 7),
        ("/link", 9),
        ("/remade/other", 5),
        ("/swap/file", 3),
    ];
    assert_eq!(owned, expected.map(|(path, uid)| (path.to_owned(), uid)));
    let changes = delta(&upper, std::slice::from_ref(&lower)).unwrap();
    let shown: Vec<_> = changes
        .iter()
        .map(|(path, change)| (path.to_string(), *change))
        .collect();
    let expected = [
        ("/drop", Change::Removed),
        ("/fresh", Change::Added),
        ("/keep", Change::Changed),
        ("/keep/file", Change::Changed),
        ("/link", Change::Added),
        ("/remade", Change::Changed),
        ("/remade/file", Change::Removed),
        ("/remade/other", Change::Added),
        ("/swap", Change::Changed),
        ("/swap/file", Change::Removed),
        ("/swap/file", Change::Added),
        ("/turns", Change::Changed),
    ];
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
    // The upper directory of one build is a lower directory of the next.
    let (upper2, work2) = (root.beside("upper2"), root.beside("work2"));
    let layers = [upper, lower];
    let mut second = Sandbox::overlay(&layers, &upper2, &work2)
        .program(&root.kimage)
        .owners(&outcome.owners);
    let script =
        "set -e; test ! -e /drop; test ! -e /remade/file; rm -r /remade; mkdir /drop; mv /link /link2";
    let (outcome, text) = run(&mut second, ["/bin/sh", "-c", script]);
    assert!(outcome.ending.success(), "{text}");
    assert_eq!(ids(&outcome.owners, "fresh"), (7, 8));
    assert_eq!(ids(&outcome.owners, "link2"), (9, 10));
    let shown: Vec<_> = delta(&upper2, &layers)
        .unwrap()
        .iter()
        .map(|(path, change)| (path.to_string(), *change))
        .collect();
    let expected = [
        ("/drop", Change::Added),
        ("/link", Change::Removed),
        ("/link2", Change::Added),
        ("/remade", Change::Removed),
    ];
    assert_eq!(shown, expected.map(|(path, change)| (path.to_owned(), change)));
}
