//! A store of its own, bytes to fetch and patience for busy machines.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use kimage_builder::digest::Digest;
use kimage_builder::download::{Network, Policy, Proxies, Request, fetch_with};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;

pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) _folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(folder.path()).unwrap(),
            _folder: folder,
        }
    }

    pub(crate) fn fetch(&self, requests: &[Request], policy: &Policy) -> anyhow::Result<()> {
        fetch_with(
            requests,
            &self.store,
            Network::Online,
            &Progress::silent(),
            policy,
        )
    }

    pub(crate) fn holds(&self, content: &[u8]) -> bool {
        let path = self.store.blob(&Digest::of(content)).unwrap();
        path.is_some_and(|path| fs::read(path).unwrap() == content)
    }

    pub(crate) fn partial_files(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.store.root().join("partial")) else {
            return Vec::new();
        };
        let files = entries.map(|entry| entry.unwrap().path());
        let parts = files.filter(|path| path.extension().is_some_and(|extension| extension == "part"));
        parts.map(|path| fs::metadata(path).unwrap().len()).collect()
    }
}

/// Generous, since the machine may be busy; tests of timeouts shorten what they are about.
pub(crate) fn policy() -> Policy {
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

pub(crate) fn content(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn request(content: &[u8], urls: &[String]) -> Request {
    let (digest, size) = (Digest::of(content), content.len() as u64);
    Request {
        name: "hello 1.0".to_owned(),
        urls: urls.iter().map(|url| url.as_str().into()).collect(),
        digest,
        size,
    }
}

/// A URL where nobody listens.
pub(crate) fn dead_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/x", listener.local_addr().unwrap())
}
