//! Fetching against servers that stall, lie, cut, change and vanish.

#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

#[path = "download/server.rs"]
mod server;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kimage_builder::digest::Digest;
use kimage_builder::download::{Network, Policy, Proxies, Request, document_with, fetch_with};
use kimage_builder::failure::{ExitCode, exit_code, hints};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;
use server::{Seen, Server, drip, reply, serve, serve_cut, wait_for_hangup};

struct Bench {
    store: Store,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(folder.path()).unwrap(),
            _folder: folder,
        }
    }

    fn fetch(&self, requests: &[Request], policy: &Policy) -> anyhow::Result<()> {
        fetch_with(
            requests,
            &self.store,
            Network::Online,
            &Progress::silent(),
            policy,
        )
    }

    fn holds(&self, content: &[u8]) -> bool {
        let path = self.store.blob(&Digest::of(content)).unwrap();
        path.is_some_and(|path| fs::read(path).unwrap() == content)
    }

    fn partial_files(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.store.root().join("partial")) else {
            return Vec::new();
        };
        let files = entries.map(|entry| entry.unwrap().path());
        let parts = files.filter(|path| path.extension().is_some_and(|extension| extension == "part"));
        parts.map(|path| fs::metadata(path).unwrap().len()).collect()
    }
}

/// Generous, since the machine may be busy; tests of timeouts shorten what they are about.
fn policy() -> Policy {
    Policy {
        parallel: 8,
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(60),
        window: Duration::from_secs(60),
        minimum_rate: 0,
        rounds: 3,
        backoff: Duration::from_millis(1),
        backoff_limit: Duration::from_millis(2),
        proxies: Proxies::none(),
    }
}

fn content(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn request(content: &[u8], urls: &[String]) -> Request {
    let (digest, size) = (Digest::of(content), content.len() as u64);
    Request {
        name: "hello 1.0".to_owned(),
        urls: urls.to_vec(),
        digest,
        size,
    }
}

/// A URL where nobody listens.
fn dead_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/x", listener.local_addr().unwrap())
}

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
fn a_cut_connection_is_continued_where_it_ended() {
    let blob = content(100_000, 1);
    let served = blob.clone();
    let server = Server::start(move |request, stream| {
        let limit = if request.range().is_none() {
            60_000
        } else {
            usize::MAX
        };
        serve_cut(request, stream, &served, "\"v1\"", limit);
    });
    let bench = Bench::new();
    bench
        .fetch(&[request(&blob, &[server.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&blob));
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].range(), Some(60_000));
    assert_eq!(seen[1].header("if-range"), Some("\"v1\""));
    assert!(bench.partial_files().is_empty());
}

#[test]
fn a_later_run_continues_what_an_earlier_one_left() {
    let blob = content(100_000, 2);
    let served = blob.clone();
    let broken = Server::start(move |request, stream| match request.range() {
        None => serve_cut(request, stream, &served, "\"v1\"", 40_000),
        Some(_) => reply(stream, "503 Service Unavailable", "", b""),
    });
    let bench = Bench::new();
    let error = bench
        .fetch(&[request(&blob, &[broken.url("/x")])], &policy())
        .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert_eq!(bench.partial_files(), [40_000]);
    let good = Server::honest(blob.clone());
    bench
        .fetch(&[request(&blob, &[good.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&blob));
    assert_eq!(good.seen()[0].range(), Some(40_000));
    assert_eq!(
        good.seen()[0].header("if-range"),
        None,
        "another server's validator means nothing here"
    );
}

#[test]
fn a_file_that_changed_meanwhile_is_fetched_anew() {
    let (old, new) = (content(50_000, 3), content(50_000, 4));
    let served = new.clone();
    let count = AtomicUsize::new(0);
    let server = Server::start(
        move |request, stream| match count.fetch_add(1, Ordering::SeqCst) {
            0 => serve_cut(request, stream, &old, "\"old\"", 20_000),
            _ => serve(request, stream, &served, "\"new\""),
        },
    );
    let bench = Bench::new();
    bench
        .fetch(&[request(&new, &[server.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&new));
    assert_eq!(
        server.seen().len(),
        2,
        "If-Range made the server send the whole new file"
    );
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let blob = content(50_000, 5);
    let served = blob.clone();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_, stream| {
        let limit = if count.fetch_add(1, Ordering::SeqCst) == 0 {
            10_000
        } else {
            usize::MAX
        };
        let plain = Seen {
            line: String::new(),
            headers: Vec::new(),
        };
        serve_cut(&plain, stream, &served, "\"x\"", limit);
    });
    let bench = Bench::new();
    bench
        .fetch(&[request(&blob, &[server.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&blob));
}

#[test]
fn a_server_that_answers_another_range_is_read_from_the_start() {
    let blob = content(50_000, 6);
    let served = blob.clone();
    let server = Server::start(move |request, stream| match request.range() {
        None if request.header("range").is_none() && request.path() == "/cut" => {
            serve_cut(request, stream, &served, "\"x\"", 10_000);
        }
        _ => reply(
            stream,
            "206 Partial Content",
            "Content-Range: bytes 7-49999/50000\r\n",
            &served[7..],
        ),
    });
    let good = Server::honest(blob.clone());
    let bench = Bench::new();
    bench
        .fetch(
            &[request(&blob, &[server.url("/cut"), good.url("/x")])],
            &policy(),
        )
        .unwrap();
    assert!(bench.holds(&blob));
}

#[test]
fn a_stalled_mirror_is_left_for_the_next() {
    let blob = content(100_000, 7);
    let served = blob.clone();
    let stalling = Server::start(move |request, stream| {
        serve_cut(request, stream, &served, "\"x\"", 30_000);
        wait_for_hangup(stream);
    });
    let good = Server::honest(blob.clone());
    let bench = Bench::new();
    let policy = Policy {
        stall: Duration::from_secs(2),
        ..policy()
    };
    let begun = Instant::now();
    bench
        .fetch(&[request(&blob, &[stalling.url("/x"), good.url("/x")])], &policy)
        .unwrap();
    assert!(bench.holds(&blob));
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "the stall must have been waited for"
    );
    assert_eq!(
        good.seen()[0].range(),
        Some(30_000),
        "what came before the stall is kept"
    );
}

#[test]
fn a_mirror_that_never_answers_is_left_for_the_next() {
    let blob = content(1000, 8);
    let mute = Server::start(|_, stream| wait_for_hangup(stream));
    let good = Server::honest(blob.clone());
    let bench = Bench::new();
    let policy = Policy {
        stall: Duration::from_secs(2),
        ..policy()
    };
    bench
        .fetch(&[request(&blob, &[mute.url("/x"), good.url("/x")])], &policy)
        .unwrap();
    assert!(bench.holds(&blob));
}

#[test]
fn a_trickling_mirror_is_left_for_the_next() {
    let blob = content(100_000, 9);
    let served = blob.clone();
    let trickling = Server::start(move |request, stream| {
        serve_cut(request, stream, &served, "\"x\"", 10);
        drip(stream, &served[10..], Duration::from_millis(50));
    });
    let good = Server::honest(blob.clone());
    let bench = Bench::new();
    let policy = Policy {
        window: Duration::from_millis(500),
        minimum_rate: 10_000,
        ..policy()
    };
    bench
        .fetch(&[request(&blob, &[trickling.url("/x"), good.url("/x")])], &policy)
        .unwrap();
    assert!(bench.holds(&blob));
    assert_eq!(trickling.seen().len(), 1);
}

#[test]
fn a_dead_mirror_is_asked_once_and_not_for_every_blob() {
    let blobs: Vec<Vec<u8>> = (100..120).map(|seed| content(100, seed)).collect();
    let served = blobs.clone();
    let broken = Server::start(|_, stream| reply(stream, "500 Internal Server Error", "", b""));
    let good = Server::start(move |request, stream| {
        let index: usize = request.path()[1..].parse().unwrap();
        serve(request, stream, &served[index], "\"x\"");
    });
    let urls = |index: usize| [broken.url("/x"), good.url(&format!("/{index}"))];
    let requests: Vec<Request> = blobs
        .iter()
        .enumerate()
        .map(|(index, blob)| request(blob, &urls(index)))
        .collect();
    let bench = Bench::new();
    bench
        .fetch(
            &requests,
            &Policy {
                parallel: 1,
                ..policy()
            },
        )
        .unwrap();
    assert_eq!(broken.seen().len(), 1);
}

#[test]
fn not_found_is_final_and_a_server_error_is_not() {
    let blob = content(1000, 10);
    let served = blob.clone();
    let absent = Server::start(|_, stream| reply(stream, "404 Not Found", "", b"gone"));
    let count = AtomicUsize::new(0);
    let flaky = Server::start(
        move |request, stream| match count.fetch_add(1, Ordering::SeqCst) {
            0 => reply(stream, "503 Service Unavailable", "Retry-After: 0\r\n", b""),
            1 => reply(stream, "429 Too Many Requests", "Retry-After: 99999\r\n", b""),
            _ => serve(request, stream, &served, "\"x\""),
        },
    );
    let bench = Bench::new();
    bench
        .fetch(&[request(&blob, &[absent.url("/x"), flaky.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&blob));
    assert_eq!((absent.seen().len(), flaky.seen().len()), (1, 3));
}

#[test]
fn wrong_bytes_everywhere_are_a_mismatch_that_names_both_digests() {
    let (wanted, lie) = (content(3000, 11), content(3000, 12));
    let liar = Server::honest(lie.clone());
    let bench = Bench::new();
    let error = bench
        .fetch(&[request(&wanted, &[liar.url("/a"), dead_url()])], &policy())
        .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch);
    let text = format!("{error:#}");
    for part in [
        "hello 1.0",
        &liar.url("/a"),
        &Digest::of(&wanted).to_string(),
        &Digest::of(&lie).to_string(),
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert_eq!(liar.seen().len(), 1, "a wrong file is not asked for again");
    assert!(!bench.holds(&wanted) && !bench.holds(&lie));
    assert!(bench.partial_files().is_empty());
}

#[test]
fn a_lying_mirror_does_not_spoil_an_honest_one() {
    let (wanted, lie) = (content(80_000, 13), content(80_000, 14));
    let bench = Bench::new();
    let (liar, honest) = (Server::honest(lie.clone()), Server::honest(wanted.clone()));
    bench
        .fetch(
            &[request(&wanted, &[liar.url("/x"), honest.url("/x")])],
            &policy(),
        )
        .unwrap();
    assert!(bench.holds(&wanted));

    // Worse: the liar breaks off halfway, so that the honest one continues wrong bytes.
    let wanted = content(80_000, 15);
    let cut = Server::start(move |request, stream| serve_cut(request, stream, &lie, "\"x\"", 50_000));
    let honest = Server::honest(wanted.clone());
    bench
        .fetch(&[request(&wanted, &[cut.url("/x"), honest.url("/x")])], &policy())
        .unwrap();
    assert!(bench.holds(&wanted));
    assert_eq!(
        honest.seen().iter().map(Seen::range).collect::<Vec<_>>(),
        [Some(50_000), None]
    );
}

#[test]
fn a_file_of_another_length_is_a_mismatch_and_is_not_read() {
    let (wanted, long) = (content(1000, 16), content(50_000_000, 17));
    let server = Server::honest(long);
    let endless = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream
            .write_all(b"400\r\n")
            .and_then(|()| stream.write_all(&[7; 1024]))
            .is_ok()
        {
            let _ = stream.write_all(b"\r\n");
        }
    });
    let bench = Bench::new();
    for url in [server.url("/x"), endless.url("/x")] {
        let error = bench.fetch(&[request(&wanted, &[url])], &policy()).unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::Mismatch, "{error:#}");
        assert!(bench.partial_files().is_empty());
    }
}

#[test]
fn nothing_reachable_says_what_was_tried_and_what_to_do() {
    let blob = content(10, 18);
    let urls = [
        dead_url(),
        "http://no-such-host.invalid/x".to_owned(),
        "ftp://example.com/x".to_owned(),
    ];
    let bench = Bench::new();
    let error = bench.fetch(&[request(&blob, &urls)], &policy()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    let text = format!("{error:#}");
    for part in [
        urls[0].as_str(),
        "refused",
        "(tried 3 times)",
        urls[1].as_str(),
        "neither an http, https nor file URL",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let hint = hints(&error).collect::<String>();
    assert!(
        hint.contains("--mirror") && hint.contains("kimage vendor"),
        "{hint}"
    );
}

#[test]
fn one_bad_blob_does_not_keep_the_others_from_coming() {
    let (good, bad) = (content(1000, 19), content(1000, 20));
    let server = Server::honest(good.clone());
    let bench = Bench::new();
    let requests = [
        request(&bad, &[server.url("/bad")]),
        request(&good, &[server.url("/good")]),
    ];
    let error = bench
        .fetch(
            &requests,
            &Policy {
                parallel: 1,
                ..policy()
            },
        )
        .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Mismatch);
    assert!(bench.holds(&good));
}

#[test]
fn a_dead_network_ends_transfers_under_way() {
    let (big, small) = (content(100_000, 21), content(10, 22));
    let served = big.clone();
    let arrived = Arc::new((Mutex::new(false), Condvar::new()));
    let signal = Arc::clone(&arrived);
    let hanging = Server::start(move |request, stream| {
        serve_cut(request, stream, &served, "\"x\"", 1000);
        *signal.0.lock().unwrap() = true;
        signal.1.notify_all();
        wait_for_hangup(stream);
    });
    let failing = Server::start(move |_, stream| {
        let (state, changed) = &*arrived;
        drop(
            changed
                .wait_while(state.lock().unwrap(), |arrived| !*arrived)
                .unwrap(),
        );
        reply(stream, "502 Bad Gateway", "", b"");
    });
    let bench = Bench::new();
    let requests = [
        request(&big, &[hanging.url("/x")]),
        request(&small, &[failing.url("/x")]),
    ];
    // Without the interruption this would take as long as the stall: an hour.
    let error = bench
        .fetch(
            &requests,
            &Policy {
                stall: Duration::from_secs(3600),
                ..policy()
            },
        )
        .unwrap_err();
    assert!(format!("{error:#}").contains("502"), "{error:#}");
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

#[test]
fn redirects_are_followed_but_not_for_ever_and_not_to_files() {
    let blob = content(3000, 29);
    let served = blob.clone();
    let server = Server::start(move |request, stream| match request.path() {
        "/loop" => reply(stream, "302 Found", "Location: /loop\r\n", b""),
        "/secret" => reply(stream, "302 Found", "Location: file:///etc/hostname\r\n", b""),
        "/a/old" => reply(stream, "301 Moved Permanently", "Location: new?x=1\r\n", b""),
        "/a/new?x=1" => serve(request, stream, &served, "\"x\""),
        _ => reply(stream, "404 Not Found", "", b""),
    });
    let bench = Bench::new();
    bench
        .fetch(&[request(&blob, &[server.url("/a/old")])], &policy())
        .unwrap();
    assert!(bench.holds(&blob));
    for (path, why) in [("/loop", "redirects"), ("/secret", "file of this host")] {
        let error = bench
            .fetch(&[request(b"other", &[server.url(path)])], &policy())
            .unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
}

#[test]
fn plain_http_goes_through_the_proxy_without_a_tunnel() {
    let blob = content(3000, 30);
    let proxy = Server::honest(blob.clone());
    let variables = |name: &str| match name {
        "http_proxy" => Some(format!("http://user:pass@{}", proxy.address)),
        "no_proxy" => Some("127.0.0.1".to_owned()),
        _ => None,
    };
    let policy = Policy {
        proxies: Proxies::from_variables(variables),
        ..policy()
    };
    let bench = Bench::new();
    bench
        .fetch(
            &[request(&blob, &["http://mirror.invalid:81/a?b".to_owned()])],
            &policy,
        )
        .unwrap();
    assert!(bench.holds(&blob));
    let seen = &proxy.seen()[0];
    assert_eq!(seen.line, "GET http://mirror.invalid:81/a?b HTTP/1.1");
    assert_eq!(seen.header("host"), Some("mirror.invalid:81"));
    assert_eq!(seen.header("proxy-authorization"), Some("Basic dXNlcjpwYXNz"));

    let direct = Server::honest(b"direct".to_vec());
    bench
        .fetch(&[request(b"direct", &[direct.url("/x")])], &policy)
        .unwrap();
    assert_eq!(direct.seen()[0].line, "GET /x HTTP/1.1");
    assert_eq!(proxy.seen().len(), 1);
}

#[test]
fn https_asks_the_proxy_for_a_tunnel() {
    let proxy = Server::start(|_, stream| reply(stream, "403 Forbidden", "", b""));
    let variables = |name: &str| (name == "https_proxy").then(|| proxy.address.clone());
    let policy = Policy {
        proxies: Proxies::from_variables(variables),
        ..policy()
    };
    let bench = Bench::new();
    let error = bench
        .fetch(
            &[request(b"x", &["https://mirror.invalid/a".to_owned()])],
            &policy,
        )
        .unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert_eq!(proxy.seen()[0].line, "CONNECT mirror.invalid:443 HTTP/1.1");
}

#[test]
fn credentials_in_a_url_reach_the_server_and_no_message() {
    let server = Server::start(|_, stream| reply(stream, "401 Unauthorized", "", b""));
    let url = format!("http://me:secret@{}/x", server.address);
    let bench = Bench::new();
    let error = bench.fetch(&[request(b"x", &[url])], &policy()).unwrap_err();
    assert_eq!(
        server.seen()[0].header("authorization"),
        Some("Basic bWU6c2VjcmV0")
    );
    assert!(!format!("{error:#}").contains("secret"), "{error:#}");
}

#[test]
fn a_document_comes_from_the_first_url_that_has_it() {
    let absent = Server::start(|_, stream| reply(stream, "404 Not Found", "", b""));
    let text = content(5000, 31);
    let served = text.clone();
    let count = AtomicUsize::new(0);
    let flaky = Server::start(move |request, stream| {
        let limit = if count.fetch_add(1, Ordering::SeqCst) == 0 {
            100
        } else {
            usize::MAX
        };
        serve_cut(request, stream, &served, "\"x\"", limit);
    });
    let urls = [absent.url("/InRelease"), flaky.url("/InRelease")];
    assert_eq!(
        document_with(&urls, 5000, &Progress::silent(), &policy()).unwrap(),
        text
    );
    let error = document_with(&urls, 4999, &Progress::silent(), &policy()).unwrap_err();
    assert_eq!(exit_code(&error), ExitCode::Fetch);
    assert!(
        format!("{error:#}").contains("longer than 4999 bytes"),
        "{error:#}"
    );
}

#[test]
fn a_document_without_end_is_cut_off() {
    let endless = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[7; 4096]).is_ok() {}
    });
    let error = document_with(&[endless.url("/x")], 100_000, &Progress::silent(), &policy()).unwrap_err();
    assert!(
        format!("{error:#}").contains("longer than 100000 bytes"),
        "{error:#}"
    );
}

/// Runs one of this file's ignored tests with a filesystem of its own at `KIMAGE_TEST_STORE`.
fn in_own_mount(test: &str, mount: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{mount} && exec \"$0\" --exact {test} --ignored --nocapture");
    let tool = Tool::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    passes(
        tool.arg(std::env::current_exe().unwrap())
            .env("KIMAGE_TEST_STORE", folder.path()),
    );
}

fn passes(tool: Tool) {
    let output = tool
        .inherit(&["PATH"])
        .output()
        .expect("`unshare` of util-linux is needed");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn https_trusts_the_hosts_roots_and_nobody_else() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    fs::write(&roots, certified.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let server = Server::start_raw(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        // The client hangs up in the middle when it does not trust us.
        let mut head = [0; 4096];
        if tls.read(&mut head).is_ok() {
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecret";
            let _ = tls.write_all(answer).and_then(|()| tls.flush());
        }
    });
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let inner = |roots: &Path, wanted: &str| {
        let program = Tool::new(std::env::current_exe().unwrap());
        let program = program.args(["--exact", "inner_https", "--ignored", "--nocapture"]);
        passes(
            program
                .env("SSL_CERT_FILE", roots)
                .env("KIMAGE_TEST_PORT", &port)
                .env("KIMAGE_TEST_WANTED", wanted),
        );
    };
    inner(&roots, "fetched");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&roots, other.cert.pem()).unwrap();
    inner(&roots, "certificate");
    fs::write(&roots, "").unwrap();
    inner(&roots, "ca-certificates");
}

#[test]
#[ignore = "needs the server of https_trusts_the_hosts_roots_and_nobody_else"]
fn inner_https() {
    let [port, wanted] = ["KIMAGE_TEST_PORT", "KIMAGE_TEST_WANTED"].map(|name| std::env::var(name).unwrap());
    let bench = Bench::new();
    let url = format!("https://localhost:{port}/x");
    match bench.fetch(&[request(b"secret", &[url])], &policy()) {
        Ok(()) => assert!(wanted == "fetched" && bench.holds(b"secret")),
        Err(error) => assert!(
            format!("{error:#}").contains(&wanted),
            "{wanted} is missing in: {error:#}"
        ),
    }
}

#[test]
fn a_full_disk_is_one_clear_error_and_leaves_nothing_half() {
    in_own_mount(
        "inner_full_disk",
        "mount -t tmpfs -o size=400k tmpfs $KIMAGE_TEST_STORE",
    );
}

#[test]
#[ignore = "needs the mount that a_full_disk_is_one_clear_error_and_leaves_nothing_half makes"]
fn inner_full_disk() {
    let root = std::env::var("KIMAGE_TEST_STORE").unwrap();
    let store = Store::open(Path::new(&root)).unwrap();
    let error = store.put(&content(500_000, 32)).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("No space left") && text.contains(&root), "{text}");
    assert!(hints(&error).any(|hint| hint.contains("--store")));
    let error = store
        .artifact_or_build("tree", &Digest::of(b"key"), |folder| {
            fs::write(folder.join("big"), content(500_000, 33))?;
            Ok(())
        })
        .unwrap_err();
    assert!(format!("{error:#}").contains("No space left"), "{error:#}");
    assert_eq!(store.artifact("tree", &Digest::of(b"key")), None);

    // Too large by its announced size: refused before the first byte.
    let blob = content(500_000, 34);
    let server = Server::honest(blob.clone());
    let fetch = |store: &Store, blob: &[u8]| {
        fetch_with(
            &[request(blob, &[server.url("/x")])],
            store,
            Network::Online,
            &Progress::silent(),
            &policy(),
        )
    };
    let error = fetch(&store, &blob).unwrap_err();
    assert!(format!("{error:#}").contains("free"), "{error:#}");
    assert!(server.seen().is_empty());
    // What failed has left room for this.
    store.put(&content(200_000, 35)).unwrap();
}

#[test]
fn a_read_only_store_serves_what_it_has_and_says_what_it_cannot() {
    let mount = "mount -t tmpfs tmpfs $KIMAGE_TEST_STORE && mkdir -p $KIMAGE_TEST_STORE/blobs/sha256/e3 \
        && : > $KIMAGE_TEST_STORE/blobs/sha256/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 \
        && mount -o remount,ro $KIMAGE_TEST_STORE";
    in_own_mount("inner_read_only", mount);
}

#[test]
#[ignore = "needs the mount that a_read_only_store_serves_what_it_has_and_says_what_it_cannot makes"]
fn inner_read_only() {
    let root = std::env::var("KIMAGE_TEST_STORE").unwrap();
    let store = Store::open(Path::new(&root)).unwrap();
    assert!(store.blob(&Digest::of(b"")).unwrap().is_some());
    let error = store.put(b"more").unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("Read-only file system") && text.contains(&root),
        "{text}"
    );
    assert!(hints(&error).any(|hint| hint.contains("--store")));
}
