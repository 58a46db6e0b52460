//! Who may write where: the table of claims that all threads share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::{MERGED, Options, Origin, Outcome, Stamp, Unpacked, lock, merged};
use crate::tree::dpkg::Package;
use crate::tree::value::{Kind, TreePath};

/// What stands at a path.
#[derive(Debug, Clone)]
enum Claim {
    /// Only implied by what lies below it, so far.
    Implied,
    /// A folder with the mode that the first package (in the order given) ships.
    Directory {
        package: usize,
        origin: Option<(u16, Origin)>,
    },
    /// A file or link of a package.
    Leaf { package: usize },
    /// A folder of the tree below.
    BelowDirectory,
    /// Something else of the tree below.
    BelowLeaf,
}

/// How a leaf is to be written.
pub(super) enum Turn {
    /// At its place.
    Straight,
    /// Beside its place: another package was there first but loses.
    Late,
    /// Not at all.
    Skip,
}

struct Table {
    claims: BTreeMap<TreePath, Claim>,
    /// Folders made on disk.
    made: BTreeSet<TreePath>,
    taken: BTreeSet<TreePath>,
}

/// The folder that is unpacked into.
pub(super) struct Ground<'a> {
    pub(super) root: &'a Path,
    pub(super) packages: &'a [Package],
    pub(super) options: &'a Options<'a>,
    table: Mutex<Table>,
}

impl<'a> Ground<'a> {
    pub(super) fn prepare(root: &'a Path, packages: &'a [Package], options: &'a Options<'a>) -> Result<Self> {
        let mut claims = BTreeMap::from([(TreePath::root(), Claim::Implied)]);
        if let Some(below) = options.below {
            claims.extend(below.tree.entries().map(|(path, entry)| match entry.kind {
                Kind::Directory => (path.clone(), Claim::BelowDirectory),
                _ => (path.clone(), Claim::BelowLeaf),
            }));
        }
        let table = Table {
            claims,
            made: BTreeSet::from([TreePath::root()]),
            taken: BTreeSet::new(),
        };
        let ground = Self {
            root,
            packages,
            options,
            table: Mutex::new(table),
        };
        if options.below.is_none() {
            for name in MERGED {
                let target = TreePath::root().join(b"usr").join(name.as_bytes());
                ground.make_directory(&mut lock(&ground.table), &target)?;
                std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
            }
        }
        Ok(ground)
    }

    /// Makes sure that `path` is a folder, in the table and on disk.
    fn make_directory(&self, table: &mut Table, path: &TreePath) -> Result<()> {
        if table.made.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_directory(table, &parent)?;
        }
        match table.claims.get(path) {
            None => drop(table.claims.insert(path.clone(), Claim::Implied)),
            Some(Claim::Implied | Claim::Directory { .. } | Claim::BelowDirectory) => {}
            Some(Claim::Leaf { package }) => {
                bail!(
                    "{path} is a file or link of package {}",
                    self.packages[*package].name
                )
            }
            Some(Claim::BelowLeaf) => bail!("{path} is a file or link of the base"),
        }
        let place = path.under(self.root);
        DirBuilder::new()
            .mode(0o700)
            .create(&place)
            .with_context(|| format!("make {path}"))?;
        table.made.insert(path.clone());
        Ok(())
    }

    pub(super) fn claim_directory(
        &self,
        package: usize,
        path: &TreePath,
        mode: u16,
        origin: Origin,
    ) -> Result<()> {
        let mut table = lock(&self.table);
        self.make_directory(&mut table, path)?;
        let claim = table.claims.entry(path.clone()).or_insert(Claim::Implied);
        match claim {
            Claim::BelowDirectory => {}
            Claim::Directory { package: other, .. } if *other <= package => {}
            _ => {
                *claim = Claim::Directory {
                    package,
                    origin: Some((mode, origin)),
                }
            }
        }
        Ok(())
    }

    pub(super) fn claim_leaf(&self, package: usize, path: &TreePath) -> Result<Turn> {
        let mut table = lock(&self.table);
        if let Some(parent) = path.parent() {
            self.make_directory(&mut table, &parent)?;
        }
        match table.claims.get(path).cloned() {
            None => {
                table.claims.insert(path.clone(), Claim::Leaf { package });
                Ok(Turn::Straight)
            }
            Some(Claim::Leaf { package: other }) => {
                if self.replaces(&self.packages[package], &self.packages[other], path)? {
                    table.claims.insert(path.clone(), Claim::Leaf { package });
                    return Ok(Turn::Late);
                }
                Ok(Turn::Skip)
            }
            Some(Claim::BelowLeaf) => {
                let below = self.options.below.context("nothing below")?;
                if let Some(owner) = below.owners.get(path) {
                    let owner = &below.packages[*owner];
                    if !self.replaces(&self.packages[package], owner, path)? {
                        bail!("{path} belongs to {}, whose replacement it is", owner.name);
                    }
                    table.taken.insert(path.clone());
                }
                table.claims.insert(path.clone(), Claim::Leaf { package });
                Ok(Turn::Straight)
            }
            Some(Claim::Directory { package: other, .. }) => {
                bail!("{path} is a folder of package {}", self.packages[other].name)
            }
            Some(Claim::Implied | Claim::BelowDirectory) => bail!("{path} is a folder already"),
        }
    }

    /// Whether `one` wins `path` over `other`. deb-control(5), `Replaces`: the file is taken over; without it two
    /// packages that ship one path can't be installed together.
    fn replaces(&self, one: &Package, other: &Package, path: &TreePath) -> Result<bool> {
        match (one.replaces(other), other.replaces(one)) {
            (true, false) => Ok(true),
            (false, true) => Ok(false),
            (true, true) => bail!("{path}: {} and {} replace each other", one.name, other.name),
            (false, false) => bail!(
                "{path} is also in package {}, and neither replaces the other",
                other.name
            ),
        }
    }

    pub(super) fn finish(self, outcomes: Vec<Outcome>) -> Result<Unpacked> {
        let table = self.table.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut unpacked = Unpacked {
            origins: BTreeMap::new(),
            lists: Vec::new(),
            conffiles: Vec::new(),
            taken: table.taken,
        };
        let owner = |path: &TreePath| match table.claims.get(path) {
            Some(Claim::Leaf { package }) => Some(*package),
            _ => None,
        };
        for (index, outcome) in outcomes.into_iter().enumerate() {
            for (path, beside) in outcome.late {
                if owner(&path) == Some(index) {
                    fs::rename(&beside, path.under(self.root)).with_context(|| format!("place {path}"))?;
                } else {
                    fs::remove_file(&beside)?;
                }
            }
            let mine = |(path, _): &(TreePath, Origin)| owner(path) == Some(index);
            unpacked.origins.extend(outcome.origins.into_iter().filter(mine));
            let listed = |path: &TreePath| owner(&merged(path)).is_none_or(|owner| owner == index);
            unpacked
                .lists
                .push(outcome.list.into_iter().filter(listed).collect());
            unpacked.conffiles.push(outcome.conffiles);
        }
        // Modes last and deepest first, so that a folder closed to its owner does not stop the work.
        for path in table.made.iter().rev() {
            let mode = match table.claims.get(path) {
                Some(Claim::Directory {
                    origin: Some((mode, origin)),
                    ..
                }) => {
                    unpacked.origins.insert(path.clone(), origin.clone());
                    *mode
                }
                Some(Claim::BelowDirectory) => self
                    .options
                    .below
                    .and_then(|below| below.tree.get(path))
                    .map_or(0o755, |entry| entry.mode),
                _ => 0o755,
            };
            let place = path.under(self.root);
            fs::set_permissions(&place, Permissions::from_mode(u32::from(mode)))?;
            if let Some(origin) = unpacked.origins.get_mut(path) {
                origin.stamp = Stamp::of(&fs::symlink_metadata(&place)?);
            }
        }
        Ok(unpacked)
    }
}
