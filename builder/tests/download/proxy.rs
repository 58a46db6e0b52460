//! Redirects, proxies, credentials and small documents.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use kimage_builder::download::{Policy, Proxies, document_with};
use kimage_builder::failure::{ExitCode, exit_code};
use kimage_builder::progress::Progress;

use super::fixture::{Bench, content, policy, request};
use super::server::{Server, reply, serve, serve_cut};

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
