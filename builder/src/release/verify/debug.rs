//! Debug switches: what the manifest says of them is what the root filesystem has.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Result, ensure};

use super::Subject;
use crate::partitions::squashfs::{Node, Reader};
use crate::tree::TreePath;
use crate::tree::console::{self, Seen};

/// Compares the manifest's switches with those that the root filesystem shows.
pub(super) fn check(subject: &Subject<'_>, root: &Reader<File>) -> Result<((), String)> {
    let look = |path: &str| {
        let found = root.get(&TreePath::parse(path.as_bytes())?)?;
        Ok(match found.map(|metadata| metadata.kind) {
            None => Seen::Nothing,
            Some(Node::Symlink(target)) => Seen::Link(target),
            Some(_) => Seen::Other,
        })
    };
    let found: BTreeSet<&str> = console::switches(look)?.into_iter().collect();
    let stated: BTreeSet<&str> = subject.manifest.debug.iter().map(String::as_str).collect();
    let list = |switches: &BTreeSet<&str>| match switches.len() {
        0 => "none".to_owned(),
        _ => switches.iter().copied().collect::<Vec<_>>().join(", "),
    };
    ensure!(
        stated == found,
        "the manifest says {}, the root filesystem has {}",
        list(&stated),
        list(&found)
    );
    Ok(((), format!("{}, in manifest and root filesystem", list(&found))))
}
