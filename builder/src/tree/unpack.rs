//! Unpacks many .debs into one folder on several threads. Who owns a path is decided by the packages' `Replaces`
//! fields, never by which thread came first, so the result depends on the packages only.
//!
//! The folder is private to this process. Every path is claimed in a table before anything is written, and the table
//! knows what stands at each parent: nothing is ever written through a link, except that `bin`, `sbin`, `lib` and
//! `lib64` mean the folders below `/usr` (merged /usr).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use super::deb::{Deb, Member, MemberKind};
use super::dpkg::Package;
use super::value::{Kind, Tree, TreePath};
use crate::digest::{Digest, Hasher};
use crate::progress::Task;

/// The folders that merged /usr replaces by links.
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
const CHUNK: usize = 1 << 20;

/// What unpacking left behind.
pub struct Unpacked {
    /// Where each path came from: packages' paths only.
    pub origins: BTreeMap<TreePath, Origin>,
    /// Per package, in the order given: the paths it ships as written in its archive, folders too (dpkg's `.list`),
    /// without those that another package replaces.
    pub lists: Vec<Vec<TreePath>>,
    /// Per package: MD5 of each shipped configuration file.
    pub conffiles: Vec<BTreeMap<TreePath, String>>,
    /// Paths that one of these packages takes over from a package of the tree below.
    pub taken: BTreeSet<TreePath>,
}

/// A path as its package shipped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Owner id and name in the archive.
    pub user: (u32, Vec<u8>),
    /// Group id and name in the archive.
    pub group: (u32, Vec<u8>),
    /// For a regular file: its size, digest and how to tell that it is still the same.
    pub file: Option<(u64, Digest)>,
    /// The inode as it was after writing.
    pub stamp: Stamp,
}

/// Tells whether an inode is the same and unchanged: no program can set the change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// Change time: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an inode.
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// How to unpack.
pub struct Options<'a> {
    /// The tree that the folder is a delta of (an overlay's lower side); the folder is a whole tree without it.
    pub below: Option<Below<'a>>,
    /// Files that are not worth writing because the image leaves them out.
    pub skip: &'a (dyn Fn(&TreePath) -> bool + Sync),
    /// Modification time of every file, seconds since 1970.
    pub mtime: u32,
    /// Threads.
    pub jobs: usize,
}

/// The finished tree that packages are added to.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Its packages.
    pub packages: &'a [Package],
    /// Which package owns a path.
    pub owners: &'a BTreeMap<TreePath, usize>,
}

/// Unpacks `debs` (with their `packages`, in the same order) into `root`, an empty private folder.
pub fn unpack(
    root: &Path,
    debs: &[Deb],
    packages: &[Package],
    options: &Options<'_>,
    task: &Task,
) -> Result<Unpacked> {
    let ground = Ground::prepare(root, packages, options)?;
    // The largest first: the end of the work is then made of small pieces that share out evenly.
    let mut order: Vec<usize> = (0..debs.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(debs[*index].size()), *index));
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Outcome>>>> = debs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, debs.len().max(1)) {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = &packages[index].name;
                    let outcome = Worker::new(&ground, index)
                        .run(&debs[index])
                        .with_context(|| format!("unpack {name}"));
                    if outcome.is_err() {
                        next.store(debs.len(), Ordering::Relaxed);
                    }
                    *lock(&results[index]) = Some(outcome);
                    task.advance(1);
                }
            });
        }
    });
    let results = results
        .into_iter()
        .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    let results: Vec<Option<Result<Outcome>>> = results.collect();
    let mut outcomes = Vec::new();
    let mut unfinished = false;
    for result in results {
        match result {
            Some(outcome) => outcomes.push(outcome?),
            None => unfinished = true,
        }
    }
    if unfinished {
        bail!("unpacking stopped early");
    }
    ground.finish(outcomes)
}

/// The path's place in a merged-/usr tree.
pub fn merged(path: &TreePath) -> TreePath {
    let parts = path.parts();
    match parts.first() {
        Some(first) if MERGED.iter().any(|name| name.as_bytes() == first.as_slice()) => parts
            .iter()
            .fold(TreePath::root().join(b"usr"), |path, part| path.join(part)),
        _ => path.clone(),
    }
}

/// What one package left: joined with the others' afterwards.
#[derive(Default)]
struct Outcome {
    list: Vec<TreePath>,
    origins: Vec<(TreePath, Origin)>,
    conffiles: BTreeMap<TreePath, String>,
    /// Files that won a conflict: written beside, renamed when all is written.
    late: Vec<(TreePath, PathBuf)>,
}

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
enum Turn {
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

struct Ground<'a> {
    root: &'a Path,
    packages: &'a [Package],
    options: &'a Options<'a>,
    table: Mutex<Table>,
}

impl<'a> Ground<'a> {
    fn prepare(root: &'a Path, packages: &'a [Package], options: &'a Options<'a>) -> Result<Self> {
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

    fn claim_directory(&self, package: usize, path: &TreePath, mode: u16, origin: Origin) -> Result<()> {
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

    fn claim_leaf(&self, package: usize, path: &TreePath) -> Result<Turn> {
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

    fn finish(self, outcomes: Vec<Outcome>) -> Result<Unpacked> {
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

/// Unpacks one package.
struct Worker<'a> {
    ground: &'a Ground<'a>,
    index: usize,
    outcome: Outcome,
    /// Where this package's files were written, for its hard links; `None` where they were not.
    written: BTreeMap<TreePath, Option<PathBuf>>,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(ground: &'a Ground<'a>, index: usize) -> Self {
        Self {
            ground,
            index,
            outcome: Outcome::default(),
            written: BTreeMap::new(),
            buffer: vec![0; CHUNK],
        }
    }

    fn run(mut self, deb: &Deb) -> Result<Outcome> {
        deb.each_file(|member, content| self.member(member, content))?;
        Ok(self.outcome)
    }

    fn member(&mut self, member: Member, content: &mut dyn Read) -> Result<()> {
        self.outcome.list.push(member.path.clone());
        let path = merged(&member.path);
        let stamp = Stamp {
            inode: 0,
            changed: (0, 0),
        };
        let mut origin = Origin {
            user: member.user,
            group: member.group,
            file: None,
            stamp,
        };
        if member.kind == MemberKind::Directory {
            return self
                .ground
                .claim_directory(self.index, &path, member.mode, origin);
        }
        if self.is_merged_link(&member.path, &member.kind)? {
            return Ok(());
        }
        let late = match self.ground.claim_leaf(self.index, &path)? {
            Turn::Straight if (self.ground.options.skip)(&path) => None,
            Turn::Straight => Some(path.under(self.ground.root)),
            Turn::Late => {
                let beside = self.beside(&path);
                self.outcome.late.push((path.clone(), beside.clone()));
                Some(beside)
            }
            Turn::Skip => None,
        };
        let Some(place) = late else {
            self.written.insert(path, None);
            return Ok(());
        };
        match member.kind {
            MemberKind::Directory => {}
            MemberKind::Symlink(target) => {
                use std::os::unix::ffi::OsStrExt;
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), &place)?;
            }
            MemberKind::Hardlink(target) => {
                let Some(Some(existing)) = self.written.get(&merged(&target)) else {
                    bail!("{path} is a hard link to {target}, which was left out or replaced");
                };
                fs::hard_link(existing, &place)?;
                let target = merged(&target);
                let same = self.outcome.origins.iter().find(|(path, _)| *path == target);
                origin.file = same.and_then(|(_, origin)| origin.file);
            }
            MemberKind::File(size) => {
                let digest = self.write(&place, member.mode, size, content)?;
                origin.file = Some((size, digest));
                self.note_conffile(&member.path, &place)?;
                self.written.insert(path.clone(), Some(place.clone()));
            }
        }
        origin.stamp = Stamp::of(&fs::symlink_metadata(&place)?);
        self.outcome.origins.push((path, origin));
        Ok(())
    }

    /// base-files ships the links of merged /usr, which stand already.
    fn is_merged_link(&self, path: &TreePath, kind: &MemberKind) -> Result<bool> {
        let [first] = path.parts() else { return Ok(false) };
        if !MERGED.iter().any(|name| name.as_bytes() == first.as_slice()) {
            return Ok(false);
        }
        match kind {
            MemberKind::Symlink(target)
                if TreePath::parse(target).is_ok_and(|target| target == merged(path)) =>
            {
                Ok(true)
            }
            _ => bail!("{path} must be a link into /usr"),
        }
    }

    fn beside(&self, path: &TreePath) -> PathBuf {
        let name = format!(".kimage-{}-{}", self.index, Digest::of(&path.to_bytes()).short());
        path.parent()
            .unwrap_or_default()
            .join(name.as_bytes())
            .under(self.ground.root)
    }

    fn write(&mut self, place: &Path, mode: u16, size: u64, content: &mut dyn Read) -> Result<Digest> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(place)?;
        let mut hasher = Hasher::new();
        let mut left = size;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            content
                .read_exact(&mut self.buffer[..step])
                .context("truncated")?;
            hasher.update(&self.buffer[..step]);
            file.write_all(&self.buffer[..step])?;
            left -= step as u64;
        }
        self.settle(&file, mode)?;
        Ok(hasher.finish())
    }

    fn settle(&self, file: &File, mode: u16) -> Result<()> {
        file.set_permissions(Permissions::from_mode(u32::from(mode)))?;
        // Python's byte code names its source's modification time: with the time that the image will show it stays valid.
        let time =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(self.ground.options.mtime));
        file.set_modified(time)?;
        Ok(())
    }

    fn note_conffile(&mut self, path: &TreePath, place: &Path) -> Result<()> {
        if self.ground.packages[self.index].conffiles.contains(path) {
            use md5::Digest as _;
            let sum = md5::Md5::digest(fs::read(place)?);
            self.outcome
                .conffiles
                .insert(path.clone(), crate::digest::hex(&sum));
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
