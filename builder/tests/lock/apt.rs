//! apt as oracle: what `apt-get --no-install-recommends` would install on an empty system.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kimage_builder::archive::index::Package;
use kimage_builder::archive::suites::{self, Snapshot};
use kimage_builder::definition;
use kimage_builder::lock::{self, Pins};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;
use kimage_builder::tool::Tool;

/// Ubuntu's archive and, from this host's own apt sources, Debian's: 30 MB of indexes.
#[test]
fn every_role_of_every_image_gets_what_apt_would_install() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for image in ["ubuntu-24.04", "debian-13"] {
        let folder = tempfile::tempdir().unwrap();
        let definition = definition::load_image(root, image).unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let now = jiff::Timestamp::now();
        let snapshot = suites::fetch(&definition.image, &[], &store, now, &Progress::silent()).unwrap();
        let newest = Pins::Newest(None);
        let lock = lock::resolve(
            &definition.image,
            &definition.roles,
            &definition.components,
            None,
            &snapshot,
            &newest,
        )
        .unwrap();
        let base = &lock.request[0];
        // apt would add what is essential to what compiles components.
        for request in lock.request[1..].iter().filter(|request| !request.compile) {
            let role = request.role.as_deref().unwrap();
            let install: BTreeSet<&String> = base.install.iter().chain(&request.install).collect();
            let left_out: BTreeSet<&String> = base.leave_out.iter().chain(&request.leave_out).collect();
            let apt = choice(&folder.path().join(role), &snapshot, &install, &left_out);
            let ours = lock
                .packages_of(role)
                .map(|one| (one.name.clone(), one.version.clone()));
            let ours: BTreeMap<String, String> = ours.collect();
            assert!(ours.len() > 100);
            assert_eq!(ours, apt, "{image} {role}");
        }
    }
}

/// Name to version of what apt installs for `install`, with `left_out` standing as installed.
fn choice(
    folder: &Path,
    snapshot: &Snapshot,
    install: &BTreeSet<&String>,
    left_out: &BTreeSet<&String>,
) -> BTreeMap<String, String> {
    prepare(folder, snapshot, left_out);
    let at = |path: &str| format!("{}/{path}", folder.display());
    let options = [
        format!("Dir::Etc={}", at("etc")),
        format!("Dir::State={}", folder.display()),
        format!("Dir::State::status={}", at("status")),
        format!("Dir::Cache={}", at("cache")),
        "APT::Architecture=amd64".into(),
        "APT::Architectures::=amd64".into(),
        "APT::Sandbox::User=".into(),
        // apt would count itself as essential.
        "pkgCacheGen::ForceEssential=,".into(),
    ];
    let apt = || {
        options
            .iter()
            .fold(Tool::new("/usr/bin/apt-get"), |tool, option| {
                tool.args(["-o", option.as_str()])
            })
    };
    let run = |tool: Tool| {
        tool.env("PATH", "/usr/bin:/bin")
            .run()
            .expect("install apt, or see what it says")
    };
    run(apt().arg("update"));
    let output = run(apt()
        .args(["-s", "--no-install-recommends", "install", "?essential"])
        .args(install.iter()));
    let output = String::from_utf8(output).unwrap();
    let installed = output.lines().filter_map(|line| line.strip_prefix("Inst "));
    installed
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap().to_owned();
            (
                name,
                words.find_map(|word| word.strip_prefix('(')).unwrap().to_owned(),
            )
        })
        .collect()
}

/// One flat repository per suite, and a system that has nothing but what is left out.
fn prepare(folder: &Path, snapshot: &Snapshot, left_out: &BTreeSet<&String>) {
    for path in [
        "etc/apt.conf.d",
        "etc/preferences.d",
        "etc/sources.list.d",
        "lists/partial",
        "cache/archives/partial",
    ] {
        std::fs::create_dir_all(folder.join(path)).unwrap();
    }
    let mut status = String::new();
    for name in left_out {
        writeln!(
            status,
            "Package: {name}\nStatus: install ok installed\nVersion: 9999:1\nArchitecture: amd64\n\
             Multi-Arch: allowed\nMaintainer: none\nDescription: none\n"
        )
        .unwrap();
    }
    std::fs::write(folder.join("status"), status).unwrap();
    let mut sources = String::new();
    for (place, suite) in snapshot.suites.iter().enumerate() {
        let repository = folder.join("repository").join(&suite.name);
        std::fs::create_dir_all(&repository).unwrap();
        let stanzas = snapshot.packages.iter().filter(|package| package.suite == place);
        let index: String = stanzas.map(|package| stanza(package)).collect();
        std::fs::write(repository.join("Packages"), index).unwrap();
        writeln!(sources, "deb [trusted=yes] file:{} ./", repository.display()).unwrap();
    }
    std::fs::write(folder.join("etc/sources.list"), sources).unwrap();
}

fn stanza(package: &Package) -> String {
    let priority = ["required", "important", "standard", "optional", "extra"][usize::from(package.priority)];
    let Package {
        name,
        version,
        architecture,
        path,
        size,
        sha256,
        ..
    } = package;
    let mut text = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMulti-Arch: allowed\nPriority: {priority}\n\
         Filename: {path}\nSize: {size}\nSHA256: {sha256}\n"
    );
    let depends = package
        .depends
        .iter()
        .map(|group| joined(group, " | "))
        .collect::<Vec<_>>()
        .join(", ");
    let provides = package.provides.iter().map(|(name, version)| match version {
        Some(version) => format!("{name} (= {version})"),
        None => name.clone(),
    });
    let provides = provides.collect::<Vec<_>>().join(", ");
    for (field, value) in [
        ("Depends", depends),
        ("Conflicts", joined(&package.conflicts, ", ")),
        ("Provides", provides),
    ] {
        if !value.is_empty() {
            writeln!(text, "{field}: {value}").unwrap();
        }
    }
    text.push_str(if package.essential {
        "Essential: yes\n\n"
    } else {
        "\n"
    });
    text
}

fn joined(relations: &[impl ToString], separator: &str) -> String {
    relations
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(separator)
}
