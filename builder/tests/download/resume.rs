//! Transfers that break off and go on.

use std::sync::atomic::{AtomicUsize, Ordering};

use kimage_builder::failure::{ExitCode, exit_code};

use super::fixture::{Bench, content, policy, request};
use super::server::{Seen, Server, reply, serve, serve_cut};

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
