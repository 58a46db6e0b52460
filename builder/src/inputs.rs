//! Lock in, verified packages in the store out.

use anyhow::{Context, Result};
use jiff::Timestamp;

use crate::archive::mirrors::{self, Mirrors};
use crate::definition::Image;
use crate::download::{self, Network, Request};
use crate::lock::{Lock, LockedPackage};
use crate::progress::Progress;
use crate::store::Store;

/// What to fetch for an image: all packages of `roles`, each from every mirror of its suite and, last, from the
/// snapshot at the lock's time. Offline from nowhere: then no mirror is needed, and a host without apt sources must be
/// able to build.
pub fn requests(
    image: &Image,
    lock: &Lock,
    roles: &[&str],
    given: &[String],
    network: Network,
) -> Result<Vec<Request>> {
    let wanted = |package: &LockedPackage| {
        package.base || package.roles.iter().any(|role| roles.contains(&role.as_str()))
    };
    requests_for(image, lock, given, network, &wanted)
}

/// What to fetch for compiling components: the packages of the compile root, from the same places.
pub fn compilers(image: &Image, lock: &Lock, given: &[String], network: Network) -> Result<Vec<Request>> {
    requests_for(image, lock, given, network, &|package| package.compile)
}

fn requests_for(
    image: &Image,
    lock: &Lock,
    given: &[String],
    network: Network,
    wanted: &dyn Fn(&LockedPackage) -> bool,
) -> Result<Vec<Request>> {
    let packages = lock.package.iter().filter(|package| wanted(package));
    if network == Network::Offline {
        return Ok(packages.map(without_urls).collect());
    }
    let archive = &image.manifest.archive;
    let snapshot = archive
        .snapshot
        .as_ref()
        .map(|url| snapshot_url(url, lock.epoch))
        .transpose()?;
    let mut places: Vec<(&str, Mirrors)> = Vec::new();
    for suite in &archive.suites {
        let mirrors = mirrors::of(archive, suite, given)?;
        places.push((&suite.name, mirrors.and(snapshot.clone())));
    }
    let request = |package: &LockedPackage| {
        let (_, mirrors) = places
            .iter()
            .find(|(suite, _)| *suite == package.suite)
            .with_context(|| {
                format!(
                    "package {} is locked from suite {}, which the definition does not have",
                    package.name, package.suite
                )
            })?;
        Ok(Request {
            name: format!("{} {}", package.name, package.version),
            urls: mirrors.urls(&package.path),
            digest: package.sha256,
            size: package.size,
        })
    };
    packages.map(request).collect()
}

/// Fetches what the store lacks of the packages of `role`.
pub fn fetch(
    image: &Image,
    lock: &Lock,
    role: &str,
    given: &[String],
    network: Network,
    store: &Store,
    progress: &Progress,
) -> Result<()> {
    let requests = requests(image, lock, &[role], given, network)?;
    download::fetch(&requests, store, network, progress)
}

fn without_urls(package: &LockedPackage) -> Request {
    let name = format!("{} {}", package.name, package.version);
    Request {
        name,
        urls: Vec::new(),
        digest: package.sha256,
        size: package.size,
    }
}

#[expect(
    clippy::literal_string_with_formatting_args,
    reason = "the definition's own template"
)]
fn snapshot_url(template: &str, epoch: u32) -> Result<String> {
    let time = Timestamp::from_second(i64::from(epoch)).context("the lock's epoch")?;
    Ok(template.replace("{time}", &time.strftime("%Y%m%dT%H%M%SZ").to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_the_one_of_the_locks_time() {
        let url = snapshot_url("https://snapshot.example/ubuntu/{time}", 1_795_161_600).unwrap();
        assert_eq!(url, "https://snapshot.example/ubuntu/20261120T080000Z");
    }
}
