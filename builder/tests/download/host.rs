//! The host's certificates and disks.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use kimage_builder::digest::Digest;
use kimage_builder::download::{Network, fetch_with};
use kimage_builder::failure::hints;
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;

use super::fixture::{Bench, content, policy, request};
use super::server::Server;

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
        let program = program.args(["--exact", "host::inner_https", "--ignored", "--nocapture"]);
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
        "host::inner_full_disk",
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
    in_own_mount("host::inner_read_only", mount);
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
