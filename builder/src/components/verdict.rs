//! Whether a component is the locked one: its output's digest decides, wherever it comes from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::artifact;
use super::record::BuiltComponent;
use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};
use crate::lock::LockedOutput;
use crate::store::{Store, remove_tree};

/// Where outputs that are not the locked ones are put aside, in the store's caches.
const ODD: &str = "odd-components";

/// Makes sure that `built`, which was just made in `folder`, is what the lock expects. If not, it is put aside, where
/// nothing will use it and a person can look at it.
///
/// # Errors
/// [`ExitCode::Mismatch`] with both digests, what differs, and where it is.
pub(super) fn check(
    built: &BuiltComponent,
    expected: &LockedOutput,
    folder: &Path,
    store: &Store,
) -> Result<()> {
    let found = built.output()?;
    if found == expected.output {
        return Ok(());
    }
    let aside = put_aside(folder, &built.name, &found, store)?;
    let message = format!(
        "this host makes {found} of it, the lock says {}: {}. What came out is in {} and is not used",
        expected.output,
        difference(&expected.files, &built.listing()),
        aside.display()
    );
    let hint = "compare it with another host's; if it is right, for example after a change of kimage itself, \
        `kimage lock --rebuild` locks it";
    Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into())
}

/// The component in the artifact `folder`, if its bytes are what it says, and it is what the lock expects.
pub(super) fn stored(
    folder: &Path,
    expected: Option<&LockedOutput>,
    store: &Store,
) -> Result<BuiltComponent> {
    let built = artifact::read(folder)?;
    built.check_bytes(store)?;
    if let Some(expected) = expected {
        let found = built.output()?;
        if found != expected.output {
            bail!(
                "its digest is {found}, the lock says {}: {}",
                expected.output,
                difference(&expected.files, &built.listing())
            );
        }
    }
    Ok(built)
}

/// The first file that is not as it was locked, in words.
fn difference(locked: &BTreeMap<String, Digest>, found: &BTreeMap<String, Digest>) -> String {
    let paths = locked
        .keys()
        .chain(found.keys().filter(|path| !locked.contains_key(*path)));
    let differing: Vec<&String> = paths
        .filter(|path| locked.get(*path) != found.get(*path))
        .collect();
    let Some(first) = differing.first() else {
        return "the files are the same, what is said of them is not".to_owned();
    };
    let shown = |files: &BTreeMap<String, Digest>| {
        files
            .get(*first)
            .map_or("absent".to_owned(), |digest| format!("sha256 {digest}"))
    };
    format!(
        "{} files differ, the first is {first} ({}, locked {})",
        differing.len(),
        shown(found),
        shown(locked)
    )
}

fn put_aside(folder: &Path, name: &str, output: &Digest, store: &Store) -> Result<PathBuf> {
    let target = store.cache(ODD)?.join(format!("{name}-{}", output.short()));
    let context = || format!("put {} aside", target.display());
    remove_tree(&target).with_context(context)?;
    fs::create_dir(&target).with_context(context)?;
    // The folder itself belongs to the store, which will remove it.
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        fs::rename(entry.path(), target.join(entry.file_name())).with_context(context)?;
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_differs_has_a_name() {
        let files = |entries: &[(&str, &str)]| -> BTreeMap<String, Digest> {
            entries
                .iter()
                .map(|(path, text)| ((*path).to_owned(), Digest::of(text.as_bytes())))
                .collect()
        };
        let locked = files(&[("/a", "a"), ("/b", "b")]);
        let text = difference(&locked, &files(&[("/a", "a"), ("/b", "wolf")]));
        assert!(text.starts_with("1 files differ, the first is /b"), "{text}");
        let text = difference(&locked, &files(&[("/a", "a")]));
        assert!(text.contains("/b (absent, locked sha256"), "{text}");
        assert!(difference(&locked, &locked).contains("the files are the same"));
    }
}
