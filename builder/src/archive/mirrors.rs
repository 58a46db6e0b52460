//! Where an archive may be had: `--mirror`, the definition, or the host's own apt sources.

use std::io::Read;
use std::path::Path;

use anyhow::Result;

use crate::definition::image::{Archive, Suite};
use crate::definition::mirror_url;
use crate::download::Address;
use crate::failure::{ExitCode, Failure};

/// Where apt keeps its sources.
const APT_FOLDER: &str = "/etc/apt";
/// Most bytes that are read of a mirror list.
const MIRROR_LIST_BYTES: u64 = 1 << 20;

/// Base URLs (what stands before `dists/` and `pool/`, without a final slash) of one suite, best first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors(Vec<Address>);

impl Mirrors {
    /// The URLs of `path` (`pool/main/...`, `dists/...`) on each mirror.
    pub fn urls(&self, path: &str) -> Vec<Address> {
        self.0.iter().map(|base| base.below(path)).collect()
    }

    /// The same mirrors and one more at the end: a snapshot that has what mirrors have dropped.
    pub fn and(mut self, last: Option<String>) -> Self {
        self.0.extend(last.map(Address::from));
        self
    }
}

/// The mirrors of `suite`. URLs given with `--mirror` win over all others.
///
/// # Errors
/// [`ExitCode::Fetch`] when nobody names one, [`ExitCode::Usage`] when a given one is no URL.
pub fn of(archive: &Archive, suite: &Suite, given: &[String]) -> Result<Mirrors> {
    for url in given {
        mirror_url(url).map_err(|why| Failure::new(ExitCode::Usage, format!("--mirror: {why}")))?;
    }
    find(archive, suite, given, Path::new(APT_FOLDER))
}

fn find(archive: &Archive, suite: &Suite, given: &[String], apt: &Path) -> Result<Mirrors> {
    let path = suite.path.as_deref().unwrap_or(&archive.path);
    let fitting: Vec<String> = given
        .iter()
        .filter(|url| last_part(url) == path)
        .cloned()
        .collect();
    // Paths of this archive's other suites: such a mirror has something else than this one.
    let others = archive.suites.iter().filter_map(|suite| suite.path.as_deref());
    let others: Vec<&str> = others
        .chain([archive.path.as_str()])
        .filter(|other| *other != path)
        .collect();
    let sources = apt_sources(apt);
    let candidates = [
        fitting,
        // A mirror whose path does not tell what it mirrors is taken at its user's word.
        given
            .iter()
            .filter(|url| !others.contains(&last_part(url)))
            .cloned()
            .collect(),
        suite.mirrors.clone(),
        archive.mirrors.clone(),
        sources
            .urls
            .into_iter()
            .filter(|url| last_part(url) == path)
            .collect(),
    ];
    let mut urls = candidates
        .into_iter()
        .find(|urls| !urls.is_empty())
        .ok_or_else(|| {
            let mut message = format!(
                "no mirror for suite {}: the definition names none and apt's sources have no `{path}`",
                suite.name
            );
            if !sources.passed_over.is_empty() {
                message.push_str(&format!(
                    " (passed over, kimage can't read it: {})",
                    listed(&sources.passed_over)
                ));
            }
            Failure::new(ExitCode::Fetch, message).hint(format!(
                "name one with --mirror URL, where URL ends in `/{path}` and has `dists/{}` below it",
                suite.name
            ))
        })?;
    for url in &mut urls {
        url.truncate(url.trim_end_matches('/').len());
    }
    urls.dedup();
    Ok(Mirrors(urls.into_iter().map(Address::from).collect()))
}

/// Addresses in a row, for messages.
pub(super) fn listed(addresses: &[Address]) -> String {
    let shown: Vec<String> = addresses.iter().map(Address::to_string).collect();
    shown.join(", ")
}

fn last_part(url: &str) -> &str {
    url.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// What apt's sources name.
#[derive(Default)]
struct Sources {
    /// Base URLs.
    urls: Vec<String>,
    /// Sources of other methods (`cdrom:`) and mirror lists that can't be read, for the error when no URL fits.
    passed_over: Vec<Address>,
}

impl Sources {
    fn add(&mut self, uri: String) {
        if is_plain(&uri) {
            self.urls.push(uri);
            return;
        }
        let listed = uri
            .strip_prefix("mirror+file:")
            .and_then(|path| read_mirror_list(Path::new(path)));
        match listed {
            Some(urls) => self.urls.extend(urls),
            None => self.passed_over.push(Address::from(uri)),
        }
    }
}

fn is_plain(uri: &str) -> bool {
    ["http://", "https://", "file:/"]
        .iter()
        .any(|scheme| uri.starts_with(scheme))
}

/// The URLs of a mirror list, best first (apt-transport-mirror(1)): one a line, words like `priority:2` after it, the
/// lowest number first and those without one last. `None` when it can't be read or names no URL.
fn read_mirror_list(path: &Path) -> Option<Vec<String>> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MIRROR_LIST_BYTES).read_to_string(&mut text).ok()?;
    let mut urls: Vec<(u32, String)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(url) = words.next().filter(|url| is_plain(url)) else {
            continue;
        };
        let priority = words.find_map(|word| word.strip_prefix("priority:")?.parse().ok());
        urls.push((priority.unwrap_or(u32::MAX), url.to_owned()));
    }
    urls.sort_by_key(|(priority, _)| *priority);
    (!urls.is_empty()).then(|| urls.into_iter().map(|(_, url)| url).collect())
}

/// Base URLs in apt's sources, in both of its formats (sources.list(5)). What can't be read is passed over: apt
/// itself is not needed on the host.
fn apt_sources(folder: &Path) -> Sources {
    let mut files = vec![folder.join("sources.list")];
    let parts = std::fs::read_dir(folder.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten();
    let mut parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.extend(parts);
    let mut sources = Sources::default();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        if file.extension().is_some_and(|extension| extension == "sources") {
            deb822_sources(&text).into_iter().for_each(|uri| sources.add(uri));
        } else if file.extension().is_some_and(|extension| extension == "list") {
            text.lines()
                .filter_map(one_line_source)
                .for_each(|uri| sources.add(uri));
        }
    }
    sources
}

/// `deb [options] URL suite component...`
fn one_line_source(line: &str) -> Option<String> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    rest.split_whitespace().next().map(str::to_owned)
}

fn deb822_sources(text: &str) -> Vec<String> {
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut urls = Vec::new();
    for stanza in text.split("\n\n") {
        let value = |name: &str| {
            let mut lines = stanza
                .lines()
                .skip_while(|line| !line.to_ascii_lowercase().starts_with(name));
            let first = lines.next()?.split_once(':')?.1.to_owned();
            let more = lines.take_while(|line| line.starts_with([' ', '\t']));
            Some(more.fold(first, |value, line| value + line))
        };
        let enabled = value("enabled:").is_none_or(|value| value.trim() != "no");
        let binary = value("types:").is_some_and(|value| value.split_whitespace().any(|kind| kind == "deb"));
        if enabled && binary {
            urls.extend(
                value("uris:")
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(str::to_owned),
            );
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(mirrors: &[&str]) -> Archive {
        Archive {
            architecture: "amd64".to_owned(),
            mirrors: mirrors.iter().map(ToString::to_string).collect(),
            path: "debian".to_owned(),
            snapshot: None,
            keys: vec![],
            fingerprints: vec![],
            suites: vec![],
        }
    }

    fn suite(path: Option<&str>) -> Suite {
        Suite {
            name: "trixie".to_owned(),
            components: vec![],
            mirrors: vec![],
            path: path.map(str::to_owned),
            max_age_days: None,
        }
    }

    #[test]
    fn both_formats_of_apt_sources_are_read() {
        let apt = tempfile::tempdir().unwrap();
        std::fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        let list = "# deb http://no.example/debian x main\ndeb [arch=amd64 signed-by=/k] http://a.example/debian/ trixie main\ndeb-src http://s.example/debian x main\n";
        std::fs::write(apt.path().join("sources.list"), list).unwrap();
        let sources = "Types: deb\n# comment\nURIs: http://b.example/debian\n https://c.example/debian-security/\nSuites: trixie\n\nTypes: deb\nEnabled: no\nURIs: http://d.example/debian\n";
        std::fs::write(apt.path().join("sources.list.d/debian.sources"), sources).unwrap();
        let found = find(&archive(&[]), &suite(None), &[], apt.path()).unwrap();
        assert_eq!(
            found.urls("pool/x"),
            ["http://a.example/debian/pool/x", "http://b.example/debian/pool/x"]
        );
        let security = find(&archive(&[]), &suite(Some("debian-security")), &[], apt.path()).unwrap();
        assert_eq!(security.urls("x"), ["https://c.example/debian-security/x"]);
    }

    #[test]
    fn a_mirror_list_is_read_and_one_that_cannot_be_is_named() {
        let apt = tempfile::tempdir().unwrap();
        let list = apt.path().join("mirrors.txt");
        std::fs::write(&list, "# ours\nhttp://late.example/debian\nhttp://b.example/debian\tpriority:2 type:deb\nhttps://a.example/debian/ priority:1\nnonsense\n").unwrap();
        let write = |uri: &str| {
            let line = format!("deb cdrom:[Disc]/ trixie main\ndeb {uri} trixie main\n");
            std::fs::write(apt.path().join("sources.list"), line).unwrap();
            find(&archive(&[]), &suite(None), &[], apt.path())
        };
        for slashes in ["", "//"] {
            let found = write(&format!("mirror+file:{slashes}{}", list.display())).unwrap();
            assert_eq!(
                found.urls("x"),
                [
                    "https://a.example/debian/x",
                    "http://b.example/debian/x",
                    "http://late.example/debian/x"
                ]
            );
        }
        for unread in ["mirror+file:/nonexistent", "mirror://m.example/list.txt"] {
            let error = write(unread).unwrap_err();
            assert!(error.to_string().contains(unread), "{error}");
            assert!(crate::failure::hints(&error).any(|hint| hint.contains("--mirror")));
        }
    }

    #[test]
    fn a_given_mirror_wins_and_is_matched_by_its_path() {
        let nowhere = Path::new("/nonexistent");
        let given = [
            "http://m.example/debian/".to_owned(),
            "http://m.example/debian-security".to_owned(),
        ];
        let of = |path, given: &[String]| {
            let mut archive = archive(&["http://d.example/debian"]);
            archive.suites = vec![suite(None), suite(Some("debian-security"))];
            find(&archive, &suite(path), given, nowhere).unwrap()
        };
        assert_eq!(of(None, &given).urls("x"), ["http://m.example/debian/x"]);
        assert_eq!(
            of(Some("debian-security"), &given).urls("x"),
            ["http://m.example/debian-security/x"]
        );
        assert_eq!(
            of(None, &["http://cache:3142/all".to_owned()]).urls("x"),
            ["http://cache:3142/all/x"]
        );
        // Its path begins like the archive's, which says nothing.
        for path in [None, Some("debian-security")] {
            assert_eq!(
                of(path, &["http://m.example/debian-mirror".to_owned()]).urls("x"),
                ["http://m.example/debian-mirror/x"]
            );
        }
        assert_eq!(of(None, &given[1..]).urls("x"), ["http://d.example/debian/x"]);
        assert_eq!(of(None, &[]).urls("x"), ["http://d.example/debian/x"]);
    }

    #[test]
    fn no_mirror_at_all_says_how_to_name_one() {
        let error = find(&archive(&[]), &suite(None), &[], Path::new("/nonexistent")).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Fetch);
        assert!(crate::failure::hints(&error).any(|hint| hint.contains("--mirror")));
    }
}
