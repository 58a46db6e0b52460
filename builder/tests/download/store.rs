//! What comes from the store, and several transfers at once.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{fs, thread};

use kimage_builder::digest::Digest;
use kimage_builder::download::{Network, Request, fetch_with};
use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;

use super::fixture::{Bench, content, dead_url, policy, request};
use super::server::{Server, serve};

#[test]
fn eight_blobs_are_fetched_at_a_time_and_no_more() {
    let blobs: Vec<Vec<u8>> = (0..24).map(|seed| content(5000, seed)).collect();
    let served = blobs.clone();
    let running = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let server = Server::start(move |request, stream| {
        let (state, changed) = &*running;
        let mut counts = state.lock().unwrap();
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        changed.notify_all();
        assert!(counts.0 <= 8, "{} at a time", counts.0);
        // Nobody is served before eight have come: fetching one by one would hang here.
        let (mut counts, timeout) = changed
            .wait_timeout_while(counts, Duration::from_secs(60), |counts| counts.1 < 8)
            .unwrap();
        if timeout.timed_out() {
            return;
        }
        counts.0 -= 1;
        drop(counts);
        let index: usize = request.path()[1..].parse().unwrap();
        serve(request, stream, &served[index], "\"x\"");
    });
    let requests: Vec<Request> = blobs
        .iter()
        .enumerate()
        .map(|(index, blob)| request(blob, &[server.url(&format!("/{index}"))]))
        .collect();
    let bench = Bench::new();
    bench.fetch(&requests, &policy()).unwrap();
    assert!(blobs.iter().all(|blob| bench.holds(blob)));
    assert_eq!(server.seen().len(), 24);
    bench.fetch(&requests, &policy()).unwrap();
    assert_eq!(server.seen().len(), 24, "what the store has is not fetched again");
}

#[test]
fn offline_uses_the_store_and_files_only() {
    let (here, on_disk, absent) = (content(10, 23), content(20, 24), content(30, 25));
    let server = Server::honest(absent.clone());
    let bench = Bench::new();
    bench.store.put(&here).unwrap();
    let mirror = tempfile::tempdir().unwrap();
    fs::write(mirror.path().join("a b"), &on_disk).unwrap();
    let file_url = format!("file://{}/a%20b", mirror.path().display());
    let offline = |requests: &[Request]| {
        fetch_with(
            requests,
            &bench.store,
            Network::Offline,
            &Progress::silent(),
            &policy(),
        )
    };
    offline(&[
        request(&here, &[server.url("/x")]),
        request(&on_disk, &[server.url("/y"), file_url]),
    ])
    .unwrap();
    assert!(bench.holds(&on_disk));
    let error = offline(&[request(&absent, &[server.url("/x")])]).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert!(
        hints(&error).any(|hint| hint.contains("kimage vendor")),
        "{error:#}"
    );
    assert!(server.seen().is_empty());
}

#[test]
fn a_damaged_blob_is_fetched_again_and_never_used() {
    let blob = content(5000, 26);
    let server = Server::honest(blob.clone());
    let bench = Bench::new();
    let requests = [request(&blob, &[server.url("/x")])];
    bench.fetch(&requests, &policy()).unwrap();
    flip_a_byte_in_secret(&bench.store.blob_path(&Digest::of(&blob)));
    bench.fetch(&requests, &policy()).unwrap();
    assert!(bench.holds(&blob));
    assert_eq!(server.seen().len(), 2);
}

/// Changes a byte; size and mtime stay.
fn flip_a_byte_in_secret(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[100] ^= 1;
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn two_builds_at_once_fetch_a_blob_once() {
    let blob = content(20_000, 27);
    let server = Server::honest(blob.clone());
    let folder = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Store::open(folder.path()).unwrap();
                let requests = [request(&blob, &[server.url("/x")])];
                fetch_with(&requests, &store, Network::Online, &Progress::silent(), &policy()).unwrap();
                assert!(store.blob(&Digest::of(&blob)).unwrap().is_some());
            });
        }
    });
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn the_same_blob_asked_for_twice_is_fetched_once() {
    let blob = content(100, 28);
    let server = Server::honest(blob.clone());
    let bench = Bench::new();
    let twice = [request(&blob, &[dead_url()]), request(&blob, &[server.url("/x")])];
    bench.fetch(&twice, &policy()).unwrap();
    assert_eq!(server.seen().len(), 1);
    let mut contradiction = twice.clone();
    contradiction[1].size += 1;
    assert!(bench.fetch(&contradiction, &policy()).is_err());
}

#[test]
fn an_empty_blob_is_a_blob() {
    let server = Server::honest(Vec::new());
    let bench = Bench::new();
    bench
        .fetch(&[request(b"", &[server.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(b""));
}
