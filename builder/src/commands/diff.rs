//! `kimage diff`.

use std::fmt::Write;

use anyhow::Result;

use super::inspect::open;
use super::{print, print_json};
use crate::cli::Diff;
use crate::release::difference::{Change, Difference, Move, Side, between};

/// Says what differs; that something does is no failure.
pub(super) fn run(arguments: &Diff) -> Result<()> {
    let (old, new) = (open(&arguments.old)?, open(&arguments.new)?);
    let difference = between(
        Side {
            folder: &arguments.old,
            manifest: &old,
        },
        Side {
            folder: &arguments.new,
            manifest: &new,
        },
    )?;
    if arguments.json {
        return print_json(&difference);
    }
    print(text(&difference).as_bytes())
}

fn text(difference: &Difference) -> String {
    if difference.is_empty() {
        return "identical\n".to_owned();
    }
    let mut text = String::new();
    section(&mut text, "image", &difference.image);
    section(&mut text, "components", &difference.components);
    section(&mut text, "packages", &difference.packages);
    section(&mut text, "Go modules", &difference.go_modules);
    let files = &difference.files;
    if !files.is_empty() {
        heading(
            &mut text,
            "files",
            &files.iter().map(|file| file.change).collect::<Vec<_>>(),
        );
    }
    for file in files {
        let _ = match file.change {
            Move::Added => writeln!(text, "  + {}", file.path),
            Move::Removed => writeln!(text, "  - {}", file.path),
            _ => writeln!(text, "  ~ {}: {}", file.path, file.differs.join(", ")),
        };
    }
    text
}

fn section(text: &mut String, name: &str, changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    heading(
        text,
        name,
        &changes.iter().map(|change| change.change).collect::<Vec<_>>(),
    );
    for Change { name, old, new, .. } in changes {
        let _ = match (old, new) {
            (Some(old), Some(new)) => writeln!(text, "  ~ {name} {old} -> {new}"),
            (None, Some(new)) => writeln!(text, "  + {name} {new}"),
            (Some(old), None) => writeln!(text, "  - {name} {old}"),
            (None, None) => Ok(()),
        };
    }
}

/// `packages: 2 added, 1 upgraded`.
fn heading(text: &mut String, name: &str, moves: &[Move]) {
    let kinds = [
        (Move::Added, "added"),
        (Move::Removed, "removed"),
        (Move::Upgraded, "upgraded"),
        (Move::Downgraded, "downgraded"),
        (Move::Changed, "changed"),
    ];
    let counts = kinds
        .iter()
        .map(|(kind, word)| (moves.iter().filter(|found| *found == kind).count(), word));
    let counts: Vec<String> = counts
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    let _ = writeln!(text, "{name}: {}", counts.join(", "));
}
