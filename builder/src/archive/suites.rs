//! Fetches what the archive says now: each suite's signed release, and the package indexes that it vouches for.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use jiff::Timestamp;
use lzma_rust2::XzReader;

use super::index::{Package, parse};
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

/// Largest index in bytes as mirrors have it; Ubuntu's universe has 15 MB.
const COMPRESSED_LIMIT: u64 = 128 << 20;

/// Memory for xz's dictionary in KiB: `xz -9` needs 64 MiB.
const XZ_MEMORY: u32 = 128 << 10;

/// Forms of an index, the smallest first. Small archives of one's own often have only `.gz` or plain text.
const COMPRESSIONS: [&str; 3] = [".xz", ".gz", ""];

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
    let mut indexes = Vec::new();
    for (position, suite) in archive.suites.iter().enumerate() {
        let mirrors = mirrors::of(archive, suite, given)?;
        let state = release(image, suite, &mirrors, &keyring, now, progress)?;
        for component in &suite.components {
            indexes.push(index(position, image, component, &state.release, &mirrors)?);
        }
        suites.push(state);
    }
    let requests: Vec<Request> = indexes.iter().map(|index| index.request.clone()).collect();
    download::fetch(&requests, store, Network::Online, progress).context("fetch package indexes")?;
    let mut packages = Vec::new();
    for index in indexes {
        let name = &index.request.name;
        let path = store
            .blob(&index.request.digest)?
            .with_context(|| format!("{name} has left the store"))?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let text = unpack(BufReader::new(file), &index).with_context(|| format!("unpack {name}"))?;
        packages.extend(
            parse(&text, &archive.architecture, index.suite).with_context(|| format!("read {name}"))?,
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
    image: &Image,
    suite: &Suite,
    mirrors: &Mirrors,
    keyring: &Keyring,
    now: Timestamp,
    progress: &Progress,
) -> Result<SuiteState> {
    let urls = mirrors.urls(&format!("dists/{}/InRelease", suite.name));
    let path = suite.path.as_deref().unwrap_or(&image.manifest.archive.path);
    let bytes = download::document(&urls, signed::LIMIT, progress).with_context(|| {
        let message = format!("suite {} of image {} can't be fetched from {}", suite.name, image.name, mirrors::listed(&urls));
        Failure::new(ExitCode::Fetch, message).hint(format!(
            "name a mirror that you can reach: --mirror https://HOST/{path}; or take another base with --image NAME"
        ))
    })?;
    let release = signed::read(&bytes, keyring, &format!("InRelease of {}", suite.name), now)?;
    if !release.is_of(&suite.name) {
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

/// An index as a Release file lists it.
struct Index {
    /// Position of its suite.
    suite: usize,
    request: Request,
    compression: &'static str,
    /// Size and digest after unpacking, where the Release file has them.
    plain: Option<(u64, Digest)>,
}

/// The smallest form of a component's index that the Release file lists.
fn index(
    position: usize,
    image: &Image,
    component: &str,
    release: &Release,
    mirrors: &Mirrors,
) -> Result<Index> {
    let archive = &image.manifest.archive;
    let suite = &archive.suites[position].name;
    let folder = format!("{component}/binary-{}", archive.architecture);
    let plain = format!("{folder}/Packages");
    let listed = COMPRESSIONS.iter().find_map(|compression| {
        let name = format!("{plain}{compression}");
        let entry = *release.indexes.get(&name)?;
        Some((*compression, name, entry))
    });
    let (compression, name, (size, digest)) = listed.with_context(|| {
        let message = format!("suite {suite} has no {plain}");
        Failure::new(ExitCode::Usage, message).hint("check `components` and `architecture` in image.toml")
    })?;
    if size > COMPRESSED_LIMIT {
        let message = format!("suite {suite}: {name} has {size} bytes, more than {COMPRESSED_LIMIT}");
        return Err(Failure::new(ExitCode::Mismatch, message).into());
    }
    let mut urls = Vec::new();
    if release.by_hash {
        urls.extend(mirrors.urls(&format!("dists/{suite}/{folder}/by-hash/SHA256/{digest}")));
    }
    urls.extend(mirrors.urls(&format!("dists/{suite}/{name}")));
    let name = format!("{suite} {name}");
    Ok(Index {
        suite: position,
        request: Request {
            name,
            urls,
            digest,
            size,
        },
        compression,
        plain: release.indexes.get(&plain).copied(),
    })
}

/// Unpacks at most what the Release file states, and checks that it is what it states.
fn unpack(packed: impl Read, index: &Index) -> Result<String> {
    if index.request.size == 0 {
        return Ok(String::new());
    }
    let reader: Box<dyn Read + '_> = match index.compression {
        ".xz" => Box::new(XzReader::new_mem_limit(packed, true, XZ_MEMORY)),
        ".gz" => Box::new(GzDecoder::new(packed)),
        _ => Box::new(packed),
    };
    let limit = index.plain.map_or(INDEX_LIMIT, |(size, _)| size.min(INDEX_LIMIT));
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    let refuse = |why: String| Failure::new(ExitCode::Mismatch, why);
    if bytes.len() as u64 > limit {
        return Err(refuse(format!("it unpacks to more than {limit} bytes")).into());
    }
    if index
        .plain
        .is_some_and(|plain| plain != (bytes.len() as u64, Digest::of(&bytes)))
    {
        return Err(refuse("unpacked, it is not what the release lists".to_owned()).into());
    }
    String::from_utf8(bytes).context("not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn unpacked(text: &[u8], plain: Option<(u64, Digest)>) -> Result<String> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(text).unwrap();
        let packed = packed.finish().unwrap();
        let request = Request {
            name: "Packages.gz".to_owned(),
            urls: Vec::new(),
            digest: Digest::of(&packed),
            size: packed.len() as u64,
        };
        unpack(
            packed.as_slice(),
            &Index {
                suite: 0,
                request,
                compression: ".gz",
                plain,
            },
        )
    }

    #[test]
    fn an_index_unpacks_to_what_the_release_lists() {
        let text = vec![b'x'; 1 << 20];
        assert_eq!(unpacked(&text, None).unwrap().len(), 1 << 20);
        assert_eq!(
            unpacked(&text, Some((1 << 20, Digest::of(&text)))).unwrap().len(),
            1 << 20
        );
        assert!(
            unpacked(&text, Some((1 << 10, Digest::of(&text))))
                .unwrap_err()
                .to_string()
                .contains("more than 1024")
        );
        assert!(unpacked(&text, Some((1 << 20, Digest::of(b"x")))).is_err());
        assert!(unpacked(&[0xff, 0xfe], None).is_err());
    }
}
