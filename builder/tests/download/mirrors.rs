//! Mirrors that stall, lie or are not there.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use kimage_builder::digest::Digest;
use kimage_builder::download::{Policy, Request};
use kimage_builder::failure::{ExitCode, exit_code, hints};

use super::fixture::{Bench, content, dead_url, policy, request};
use super::server::{Seen, Server, drip, reply, serve, serve_cut, wait_for_hangup};

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
