//! Fetches what the archive says now: each suite's signed release, and the package indexes that it vouches for.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

use super::index::{self, Package};
use super::mirrors::{self, Mirrors};
use super::signed::{self, Keyring, Release};
use crate::definition::Image;
use crate::definition::image::Suite;
use crate::digest::Digest;
use crate::download::{self, Network, Request};
use crate::failure::{ExitCode, Failure};
use crate::progress::Progress;
use crate::store::Store;

/// Largest unpacked index in bytes; Debian's main has 50 MB.
const INDEX_LIMIT: u64 = 1 << 30;

/// The state of all suites of an image at one moment.
pub struct Snapshot {
    /// In the definition's order.
    pub suites: Vec<SuiteState>,
    /// Every package of every suite.
    pub packages: Vec<Arc<Package>>,
}

/// One suite's signed state.
pub struct SuiteState {
    /// Its name in the definition.
    pub name: String,
    /// Digest of its InRelease.
    pub inrelease: Digest,
    /// What it says.
    pub release: Release,
}

/// Fetches and checks all suites. `now` is the clock.
pub fn fetch(
    image: &Image,
    given: &[String],
    store: &Store,
    now: Timestamp,
    progress: &Progress,
) -> Result<Snapshot> {
    let archive = &image.manifest.archive;
    let keyring = keyring(image)?;
    let mut suites = Vec::new();
    let mut requests = Vec::new();
    let mut files = Vec::new();
    for (position, suite) in archive.suites.iter().enumerate() {
        let mirrors = mirrors::of(archive, suite, given)?;
        let state = release(suite, &mirrors, &keyring, now, progress)?;
        for component in &suite.components {
            let request = index_request(suite, component, &archive.architecture, &state.release, &mirrors)?;
            files.push((position, request.name.clone(), request.digest));
            requests.push(request);
        }
        suites.push(state);
    }
    download::fetch(&requests, store, Network::Online, progress).context("fetch package indexes")?;
    let mut packages = Vec::new();
    for (suite, name, digest) in files {
        let path = store
            .blob(&digest)?
            .with_context(|| format!("{name} has left the store"))?;
        let text = unpack(&std::fs::read(path)?).with_context(|| format!("unpack {name}"))?;
        packages.extend(
            index::parse(&text, &archive.architecture, suite).with_context(|| format!("read {name}"))?,
        );
    }
    Ok(Snapshot { suites, packages })
}

fn keyring(image: &Image) -> Result<Keyring> {
    let archive = &image.manifest.archive;
    let mut files = Vec::new();
    for name in &archive.keys {
        let path = image.folder.join(name);
        files.push((
            name.clone(),
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    Keyring::new(&files, &archive.fingerprints).map_err(|error| {
        Failure::new(
            ExitCode::Usage,
            format!("{}/image.toml: {error:#}", image.folder.display()),
        )
        .into()
    })
}

fn release(
    suite: &Suite,
    mirrors: &Mirrors,
    keyring: &Keyring,
    now: Timestamp,
    progress: &Progress,
) -> Result<SuiteState> {
    let urls = mirrors.urls(&format!("dists/{}/InRelease", suite.name));
    let bytes = download::document(&urls, signed::LIMIT, progress).with_context(|| {
        let hint = "is the archive reachable? name another mirror with --mirror URL, or build on another base: --image debian-13";
        Failure::new(ExitCode::Fetch, format!("fetch suite {}", suite.name)).hint(hint)
    })?;
    let release = signed::read(&bytes, keyring, &format!("InRelease of {}", suite.name), now)?;
    let names = [&release.suite, &release.codename];
    if !names.iter().any(|name| name.as_deref() == Some(&suite.name)) {
        let message = format!(
            "InRelease of {}: it is for suite {} ({})",
            suite.name,
            release.suite.as_deref().unwrap_or("without name"),
            release.codename.as_deref().unwrap_or("no codename"),
        );
        return Err(Failure::new(ExitCode::Mismatch, message)
            .hint("choose another mirror with --mirror URL")
            .into());
    }
    Ok(SuiteState {
        name: suite.name.clone(),
        inrelease: Digest::of(&bytes),
        release,
    })
}

fn index_request(
    suite: &Suite,
    component: &str,
    architecture: &str,
    release: &Release,
    mirrors: &Mirrors,
) -> Result<Request> {
    let folder = format!("{component}/binary-{architecture}");
    let name = format!("{folder}/Packages.xz");
    let (size, digest) = *release.indexes.get(&name).with_context(|| {
        let message = format!("suite {} has no {name}", suite.name);
        Failure::new(ExitCode::Usage, message).hint("check `components` and `architecture` in image.toml")
    })?;
    let mut urls = Vec::new();
    if release.by_hash {
        urls.extend(mirrors.urls(&format!("dists/{}/{folder}/by-hash/SHA256/{digest}", suite.name)));
    }
    urls.extend(mirrors.urls(&format!("dists/{}/{name}", suite.name)));
    Ok(Request {
        name: format!("{} {name}", suite.name),
        urls,
        digest,
        size,
    })
}

fn unpack(bytes: &[u8]) -> Result<String> {
    let mut text = String::new();
    let reader = lzma_rust2::XzReader::new(bytes, true);
    reader.take(INDEX_LIMIT + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= INDEX_LIMIT, "more than {INDEX_LIMIT} bytes");
    Ok(text)
}
