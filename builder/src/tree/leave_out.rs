//! What packages bring and the image does without: globs of the definition, applied to the finished tree, and as
//! early as unpacking where no maintainer script can miss the files.

use anyhow::{Context, Result};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::value::{Kind, Tree, TreePath};
use crate::definition::image::{Kernel, LeaveOut};

/// Folders that hold nothing a maintainer script reads.
const PASSIVE: [&str; 6] = [
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
];
/// `usr`, `share`, `doc`, `<package>`.
const PASSIVE_DEPTH: usize = 4;
const MODULES: &str = "usr/lib/modules";

/// Compiled globs.
pub struct LeaveOuts {
    files: Globs,
    modules: Globs,
    /// The globs as written: part of a layer's key.
    text: String,
}

/// Paths that match `out` and not `keep`.
struct Globs {
    out: GlobSet,
    keep: GlobSet,
}

impl Globs {
    fn new<'a>(
        out: impl Iterator<Item = &'a String>,
        keep: impl Iterator<Item = &'a String>,
    ) -> Result<Self> {
        Ok(Self {
            out: set(out)?,
            keep: set(keep)?,
        })
    }

    fn matches(&self, path: &str) -> bool {
        self.out.is_match(path) && !self.keep.is_match(path)
    }
}

impl LeaveOuts {
    /// Compiles the globs of a definition. A `keep` glob counts for its own entry and all others.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a LeaveOut>, kernel: &Kernel) -> Result<Self> {
        let entries: Vec<&LeaveOut> = entries.into_iter().collect();
        let out = entries.iter().flat_map(|entry| &entry.files);
        let keep = entries.iter().flat_map(|entry| &entry.keep);
        let files: Vec<_> = entries.iter().map(|entry| (&entry.files, &entry.keep)).collect();
        let text = format!("{files:?} {:?} {:?}", kernel.leave_out, kernel.keep);
        let modules = Globs::new(kernel.leave_out.iter(), kernel.keep.iter())?;
        Ok(Self {
            files: Globs::new(out, keep)?,
            modules,
            text,
        })
    }

    /// What of the globs shows in an unpacked layer.
    pub fn unpack_key(&self) -> &str {
        &self.text
    }

    /// Whether `path` need not be written when packages are unpacked.
    pub fn skips_unpacking(&self, path: &TreePath) -> bool {
        let text = text(path);
        // Directly below stand links to other packages' folders, which say where a licence is.
        if path.parts().len() <= PASSIVE_DEPTH {
            return false;
        }
        self.is_module_left_out(&text)
            || (below_any(&text, &PASSIVE) && self.files.matches(&format!("/{text}")))
    }

    /// Whether the image does without a file of this `path`.
    pub fn leaves_out(&self, path: &TreePath) -> bool {
        let text = text(path);
        self.files.matches(&format!("/{text}")) || self.is_module_left_out(&text)
    }

    /// Removes what the globs match, and the folders that are empty because of it.
    pub fn apply(&self, tree: &mut Tree) {
        let doomed: Vec<TreePath> = tree
            .entries()
            .filter(|(path, _)| self.leaves_out(path))
            .map(|(path, _)| path.clone())
            .collect();
        // Deepest first: a folder that matches stays while `keep` holds something in it.
        for path in doomed.iter().rev() {
            if is_empty_folder(tree, path) != Some(false) {
                tree.remove(path);
            }
            let mut parent = path.parent();
            while let Some(folder) = parent.filter(|folder| is_empty_folder(tree, folder) == Some(true)) {
                tree.remove(&folder);
                parent = folder.parent();
            }
        }
        self.remove_unfilled(tree);
    }

    /// Folders that unpacking never filled.
    fn remove_unfilled(&self, tree: &mut Tree) {
        let folders = tree.entries().filter(|(path, entry)| {
            let text = text(path);
            matches!(entry.kind, Kind::Directory)
                && (below_any(&text, &PASSIVE) || below_any(&text, &[MODULES]))
        });
        let folders: Vec<TreePath> = folders.map(|(path, _)| path.clone()).collect();
        for path in folders.iter().rev() {
            if is_empty_folder(tree, path) == Some(true) {
                tree.remove(path);
            }
        }
    }

    /// Kernel modules are named below `/usr/lib/modules/<version>/`.
    fn is_module_left_out(&self, path: &str) -> bool {
        let below = path.strip_prefix(MODULES).and_then(|rest| rest.strip_prefix('/'));
        below
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, module)| self.modules.matches(module))
    }
}

/// Whether a folder is empty; `None` for what is no folder.
fn is_empty_folder(tree: &Tree, path: &TreePath) -> Option<bool> {
    let folder = matches!(tree.get(path)?.kind, Kind::Directory);
    folder.then(|| tree.subtree(path).nth(1).is_none())
}

fn text(path: &TreePath) -> String {
    String::from_utf8_lossy(&path.to_bytes()).into_owned()
}

fn below_any(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| {
        path.strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
    })
}

fn set<'a>(globs: impl Iterator<Item = &'a String>) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for text in globs {
        let glob: Result<Glob, _> = GlobBuilder::new(text).literal_separator(true).build();
        set.add(glob.with_context(|| format!("bad glob `{text}`"))?);
    }
    Ok(set.build()?)
}
