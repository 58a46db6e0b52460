//! Redirects, proxies, credentials and small documents.

use std::fs;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kimage_builder::download::{Address, Network, Policy, Proxies, document_with, fetch_with};
use kimage_builder::failure::{ExitCode, exit_code};
use kimage_builder::progress::{Progress, Verbosity};

use super::fixture::{Bench, content, policy, request};
use super::server::{Server, reply, serve, serve_cut};

/// All that a progress says.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Told {
    fn progress(&self) -> Progress {
        Progress::lines(
            Box::new(self.clone()),
            Duration::from_millis(1),
            Verbosity::Verbose,
        )
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
fn credentials_in_a_url_are_written_nowhere_also_when_the_download_is_cut() {
    let blob = content(200_000, 11);
    let (served, whole) = (blob.clone(), Arc::new(AtomicBool::new(false)));
    let mended = Arc::clone(&whole);
    let server = Server::start(move |request, stream| match request.range() {
        Some(_) if !whole.load(Ordering::SeqCst) => reply(stream, "503 Service Unavailable", "", b""),
        Some(_) => serve(request, stream, &served, "\"x\""),
        None => serve_cut(request, stream, &served, "\"x\"", 150_000),
    });
    let url = format!("http://me:pass%77ord@{}/x?token=t0psecret", server.address);
    let bench = Bench::new();
    let told = Told::default();
    let policy = Policy {
        rounds: 1,
        ..policy()
    };
    let wanted = request(&blob, &[url]);
    let shown = format!("{wanted:?}");
    let error = fetch_with(
        std::slice::from_ref(&wanted),
        &bench.store,
        Network::Online,
        &told.progress(),
        &policy,
    )
    .unwrap_err();
    assert_eq!(bench.partial_files(), [150_000]);
    let mut places = vec![
        ("error", format!("{error:#}")),
        ("progress", told.text()),
        ("debug", shown),
    ];
    let mut folders = vec![bench.store.root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                places.push((
                    "file",
                    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned(),
                ));
            }
        }
    }
    for (what, text) in &places {
        for secret in ["pass%77ord", "password", "bWU6cGFzc3dvcmQ", "t0psecret"] {
            assert!(!text.contains(secret), "{what}: {text}");
        }
    }
    assert!(
        places.iter().any(|(_, text)| text.contains("****@127.0.0.1")),
        "{places:?}"
    );
    // What was noted is enough to go on with the same file.
    mended.store(true, Ordering::SeqCst);
    bench.fetch(&[wanted], &policy).unwrap();
    assert_eq!(server.seen().last().unwrap().header("if-range"), Some("\"x\""));
    assert!(bench.holds(&blob));
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
    let urls = [absent.url("/InRelease"), flaky.url("/InRelease")].map(Address::from);
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
    let error = document_with(
        &[endless.url("/x").into()],
        100_000,
        &Progress::silent(),
        &policy(),
    )
    .unwrap_err();
    assert!(
        format!("{error:#}").contains("longer than 100000 bytes"),
        "{error:#}"
    );
}
