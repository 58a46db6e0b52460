//! The tree of files is the architecture: a stage may use earlier stages and the modules beside the flow, never a
//! later stage; the two sides of kimage meet in `roles` only. This reads the `use` lines, so it can't be argued with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

/// The stages in the order in which data flows.
const FLOW: [&str; 9] = [
    "definition",
    "archive",
    "lock",
    "inputs",
    "tree",
    "components",
    "partitions",
    "sign",
    "disk",
];

/// The end of the flow: sees every stage.
const LAST: &str = "release";

/// Beside the flow: any stage may use them, they use only each other.
const BESIDE: [&str; 9] = [
    "digest", "failure", "progress", "store", "tool", "download", "qemu", "private", "obstacle",
];

/// Outside of the flow: they use what stands beside it, no stage and not each other.
const OUTSIDE: [&str; 2] = ["cluster", "explain"];

/// See everything: the sequence itself and the commands in front of it.
const ABOVE: [&str; 7] = [
    "pipeline",
    "playground",
    "commands",
    "cli",
    "main",
    "lib",
    "doctor",
];

struct Source {
    path: PathBuf,
    module: String,
    names: Vec<String>,
}

/// Modules of this crate that a source text names, comments and strings aside.
fn names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let preceded = line[..at]
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || c == '_');
            let rest = &line[at + "crate::".len()..];
            if preceded {
                continue;
            }
            match rest.strip_prefix('{') {
                Some(group) => names.extend(group.split(',').filter_map(first_word)),
                None => names.extend(first_word(rest)),
            }
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

fn sources(folder: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(folder).unwrap();
                let top = relative
                    .components()
                    .next()
                    .unwrap()
                    .as_os_str()
                    .to_str()
                    .unwrap();
                let module = top.trim_end_matches(".rs").to_owned();
                let names = names(&std::fs::read_to_string(&path).unwrap());
                found.push(Source { path, module, names });
            }
        }
    }
    found
}

fn crate_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

/// What `module` may name.
fn allowed(module: &str) -> Option<Vec<&str>> {
    let beside = BESIDE.to_vec();
    if ABOVE.contains(&module) {
        return None;
    }
    if BESIDE.contains(&module) {
        return Some(beside);
    }
    if OUTSIDE.contains(&module) {
        return Some([&beside[..], &[module]].concat());
    }
    let before = if module == LAST {
        FLOW.len()
    } else {
        FLOW.iter()
            .position(|stage| *stage == module)
            .unwrap_or_else(|| panic!("module `{module}` has no place in the flow: give it one here"))
    };
    Some([&beside[..], &FLOW[..before], &[module]].concat())
}

#[test]
fn no_stage_imports_a_later_one() {
    let mut wrong = Vec::new();
    let all = sources(&crate_folder("builder/src"));
    assert!(all.len() > 30, "the reader finds the sources");
    for source in &all {
        let Some(allowed) = allowed(&source.module) else {
            continue;
        };
        for name in &source.names {
            let is_module = all.iter().any(|other| other.module == *name);
            if is_module && !allowed.contains(&name.as_str()) {
                wrong.push(format!(
                    "{}: `{}` must not use `{name}`",
                    source.path.display(),
                    source.module
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_two_sides_meet_in_roles_only() {
    let manifest = |name: &str| std::fs::read_to_string(crate_folder(name).join("Cargo.toml")).unwrap();
    assert!(!manifest("builder").contains("kimage-firstboot.workspace"));
    assert!(!manifest("firstboot").contains("kimage-builder"));
    assert!(!manifest("roles").contains("kimage-") || !manifest("roles").contains("kimage-builder"));
    for (side, other) in [
        ("builder/src", "kimage_firstboot"),
        ("firstboot/src", "kimage_builder"),
        ("roles/src", "kimage_builder"),
    ] {
        for source in sources(&crate_folder(side)) {
            let text = std::fs::read_to_string(&source.path).unwrap();
            assert!(!text.contains(other), "{}", source.path.display());
        }
    }
}

#[test]
fn the_reader_sees_what_it_must() {
    assert_eq!(names("use crate::tree::Tree;"), ["tree"]);
    assert_eq!(names("use crate::{disk, lock::Lock};"), ["disk", "lock"]);
    assert_eq!(names("let x = crate::sign::keys::new();"), ["sign"]);
    assert!(names("// use crate::tree::Tree;").is_empty());
    assert!(names("use other_crate::tree;").is_empty());
}
