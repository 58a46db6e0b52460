//! The two cached layers of a tree: the base with the image's packages, and a role's packages configured on top of
//! it. A layer is an artifact of the store: `root/` holds its files, `index` what they are ([`super::index`]).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::configure::{self, Timing};
use super::control::Paragraph;
use super::deb::Deb;
use super::dpkg::{self, Database, Package};
use super::index::{self, Entries};
use super::leave_out::LeaveOuts;
use super::sandbox::delta::{self, Change};
use super::sandbox::{Owner, Owners, Sandbox};
use super::scan::{self, Knowledge};
use super::unpack::{self, Below, Unpacked, merged};
use super::users::{self, Accounts};
use super::value::{Content, Entry, Kind, Tree, TreePath};
use crate::definition::image::{Group, User};
use crate::digest::{Digest, Hasher};
use crate::progress::Progress;

/// Part of every key: raised with each change of what this module makes of the same packages.
const VERSION: &str = "kimage layer 1";
const INDEX: &str = "index";
const ROOT: &str = "root";

/// Modules are complete once they are unpacked, and no script changes them.
const DEPMOD: &str = "for folder in /usr/lib/modules/*/; do [ ! -d \"$folder\" ] || /usr/sbin/depmod \"$(basename \"$folder\")\"; done";
/// The cache of shared libraries, whatever the scripts did.
const LDCONFIG: &str = "/usr/sbin/ldconfig";

/// One .deb of a layer.
#[derive(Debug, Clone)]
pub struct Input {
    /// Binary package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// Digest of the .deb.
    pub digest: Digest,
    /// Where it is.
    pub path: PathBuf,
}

/// Everything that determines a layer.
pub struct Recipe<'a> {
    /// The packages, in any order.
    pub inputs: Vec<Input>,
    /// What need not be unpacked.
    pub leave_outs: &'a LeaveOuts,
    /// Users with fixed ids.
    pub users: &'a [User],
    /// Groups with fixed ids.
    pub groups: &'a [Group],
    /// Time of every file, seconds since 1970.
    pub epoch: u32,
}

/// How layers are made on this machine: nothing of it shows in the result.
#[derive(Clone, Copy)]
pub struct Workshop<'a> {
    /// The program that is the sandbox's inside: `kimage` itself where the caller is another one.
    pub program: Option<&'a Path>,
    /// Threads.
    pub jobs: usize,
    /// Who is told of a layer's files once they are unpacked, long before the layer is finished.
    pub foreseen: Option<Foreseen<'a>>,
}

/// Is told of files that packages have brought. Scripts may still change or remove them.
pub type Foreseen<'a> = &'a dyn Fn(&[(TreePath, Entry)]);

/// A loaded layer.
pub struct Layer {
    /// The artifact.
    pub folder: PathBuf,
    /// What it adds and removes; a base adds only.
    pub entries: Entries,
}

impl Recipe<'_> {
    /// The name of the layer in the store: a digest of all that determines it. `below` is the base's key.
    pub fn key(&self, below: Option<&Digest>) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field(VERSION.as_bytes());
        hasher.field(below.map(Digest::to_string).unwrap_or_default().as_bytes());
        hasher.field(&self.epoch.to_le_bytes());
        let mut digests: Vec<Digest> = self.inputs.iter().map(|input| input.digest).collect();
        digests.sort();
        hasher.field(&(digests.len() as u64).to_le_bytes());
        for digest in digests {
            hasher.field(digest.as_bytes());
        }
        for user in self.users {
            hasher.field(format!("{user:?}").as_bytes());
        }
        for group in self.groups {
            hasher.field(format!("{group:?}").as_bytes());
        }
        hasher.field(self.leave_outs.unpack_key().as_bytes());
        hasher.finish()
    }
}

impl Layer {
    /// Reads a finished layer.
    pub fn load(folder: &Path) -> Result<Self> {
        let bytes = fs::read(folder.join(INDEX))
            .with_context(|| format!("read the index of {}", folder.display()))?;
        let (entries, _) = index::decode(&bytes, &folder.join(ROOT))?;
        Ok(Self {
            folder: folder.to_owned(),
            entries,
        })
    }

    /// The folder with the layer's files.
    pub fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// The tree of this layer on top of `tree`.
    pub fn apply(&self, tree: &mut Tree) -> Result<()> {
        for (path, entry) in &self.entries {
            match entry {
                Some(entry) => {
                    // A path that became another kind of thing takes what was below it along.
                    let directory = |entry: &Entry| matches!(entry.kind, Kind::Directory);
                    if tree
                        .get(path)
                        .is_some_and(|old| directory(old) != directory(entry))
                    {
                        tree.remove(path);
                    }
                    tree.insert(path.clone(), entry.clone())?;
                }
                None => drop(tree.remove(path)),
            }
        }
        Ok(())
    }
}

/// Makes the base layer in the empty folder `folder`.
pub fn build_base(
    folder: &Path,
    recipe: &Recipe<'_>,
    workshop: &Workshop<'_>,
    progress: &Progress,
) -> Result<Timing> {
    let root = make_root(folder)?;
    let opened = open(&recipe.inputs)?;
    let packages = &opened.packages;
    let unpacked = unpack_all(&root, recipe, &opened, None, workshop, progress)?;
    let accounts = users::seed(&root, recipe.users, recipe.groups)?;
    let database = Database {
        packages,
        unpacked: &unpacked,
        below: &[],
    };
    database.write(&root)?;
    dpkg::write_triggers(&root, packages, None, &unpacked.lists)?;
    let mut sandbox = Sandbox::directory(&root).owners(&initial_owners(&unpacked, &accounts));
    if let Some(program) = workshop.program {
        sandbox = sandbox.program(program);
    }
    let script = configure::Script {
        rounds: opened.rounds(),
        beside: Some(DEPMOD),
        after: LDCONFIG,
    };
    let (owners, timing) = configure_all(sandbox, &script, folder, progress)?;
    check(&root, &accounts, packages, &unpacked)?;
    database.finish(&root)?;
    let knowledge = Knowledge {
        origins: &unpacked.origins,
        owners: &owners,
    };
    let entries = scan::scan(&root, &knowledge)?;
    fs::write(folder.join(INDEX), index::encode(&entries, recipe.epoch)?)?;
    Ok(timing)
}

/// Makes a role's layer in the empty folder `folder`, on top of `base`.
pub fn build_role(
    folder: &Path,
    base: &Layer,
    recipe: &Recipe<'_>,
    workshop: &Workshop<'_>,
    progress: &Progress,
) -> Result<Timing> {
    let root = make_root(folder)?;
    let work = folder.join("work");
    DirBuilder::new().mode(0o700).create(&work)?;
    let opened = open(&recipe.inputs)?;
    let packages = &opened.packages;
    let mut tree = Tree::new(recipe.epoch);
    base.apply(&mut tree)?;
    let old = installed(&base.root())?;
    let owned = owned_paths(&base.root(), &old)?;
    let below = Below {
        tree: &tree,
        packages: &old,
        owners: &owned,
    };
    let unpacked = unpack_all(&root, recipe, &opened, Some(below), workshop, progress)?;
    dpkg::make_folders(&root, "etc")?;
    let accounts = users::add(&root, &base.root(), recipe.users, recipe.groups, recipe.epoch)?;
    let database = Database {
        packages,
        unpacked: &unpacked,
        below: &old,
    };
    database.write(&root)?;
    dpkg::write_triggers(&root, packages, Some(&base.root()), &unpacked.lists)?;
    let mut owners = initial_owners(&unpacked, &accounts);
    for (path, entry) in tree.entries() {
        if owners.get(path).is_none() && !unpacked.origins.contains_key(path) {
            let capability = entry.xattrs.get(b"security.capability".as_slice()).cloned();
            owners.insert(
                path.clone(),
                Owner {
                    uid: entry.uid,
                    gid: entry.gid,
                    device: None,
                    capability,
                },
            );
        }
    }
    let mut sandbox = Sandbox::overlay(&[base.root()], &root, &work).owners(&owners);
    if let Some(program) = workshop.program {
        sandbox = sandbox.program(program);
    }
    let script = configure::Script {
        rounds: opened.rounds(),
        beside: None,
        after: LDCONFIG,
    };
    let (owners, timing) = configure_all(sandbox, &script, folder, progress)?;
    check(&root, &accounts, packages, &unpacked)?;
    database.finish(&root)?;
    let knowledge = Knowledge {
        origins: &unpacked.origins,
        owners: &owners,
    };
    let entries = delta_entries(&root, base, &tree, &knowledge)?;
    fs::write(folder.join(INDEX), index::encode(&entries, recipe.epoch)?)?;
    remove_folder(&work)?;
    Ok(timing)
}

/// The packages that a finished root's status file lists.
pub fn installed(root: &Path) -> Result<Vec<Package>> {
    let text = fs::read(root.join(dpkg::ADMIN).join("status")).context("read dpkg's status")?;
    Paragraph::parse_all(&text)?
        .into_iter()
        .map(Package::installed)
        .collect()
}

fn make_root(folder: &Path) -> Result<PathBuf> {
    // Set-id files lie below: nobody else may enter.
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let root = folder.join(ROOT);
    DirBuilder::new().mode(0o755).create(&root)?;
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(root)
}

/// The packages of a layer in the order in which they are configured.
pub(super) struct Opened {
    pub(super) debs: Vec<Deb>,
    pub(super) packages: Vec<Package>,
    /// How many of them are configured before the others.
    first_round: usize,
}

impl Opened {
    fn rounds(&self) -> [&[Package]; 2] {
        let (first, second) = self.packages.split_at(self.first_round);
        [first, second]
    }
}

/// Opens the .debs and puts them in the order in which they are configured.
pub(super) fn open(inputs: &[Input]) -> Result<Opened> {
    let mut opened = Vec::new();
    for input in inputs {
        let deb = Deb::open(&input.path).with_context(|| format!("package {}", input.name))?;
        let package = Package::of(&deb).with_context(|| format!("package {}", input.name))?;
        let found = (&package.name, &package.version, &package.architecture);
        if found != (&input.name, &input.version, &input.architecture) {
            bail!(
                "the lock says {} {} {}, the .deb says {found:?}",
                input.name,
                input.version,
                input.architecture
            );
        }
        opened.push(Some((deb, package)));
    }
    let packages: Vec<Package> = opened
        .iter()
        .flatten()
        .map(|(_, package)| package.clone())
        .collect();
    let (order, first_round) = configure::order(&packages);
    let ordered = order.into_iter().filter_map(|index| opened[index].take());
    let (debs, packages) = ordered.unzip();
    Ok(Opened {
        debs,
        packages,
        first_round,
    })
}

fn unpack_all(
    root: &Path,
    recipe: &Recipe<'_>,
    opened: &Opened,
    below: Option<Below<'_>>,
    workshop: &Workshop<'_>,
    progress: &Progress,
) -> Result<Unpacked> {
    let task = progress.task("unpack packages", Some(opened.debs.len() as u64));
    let skip = |path: &TreePath| recipe.leave_outs.skips_unpacking(path);
    let options = unpack::Options {
        below,
        skip: &skip,
        mtime: recipe.epoch,
        jobs: workshop.jobs,
    };
    let unpacked = unpack::unpack(root, &opened.debs, &opened.packages, &options, &task)?;
    task.done();
    if let Some(foreseen) = workshop.foreseen {
        foreseen(&files(root, &unpacked));
    }
    Ok(unpacked)
}

/// The files of packages as they have been unpacked.
fn files(root: &Path, unpacked: &Unpacked) -> Vec<(TreePath, Entry)> {
    let file = |(path, origin): (&TreePath, &unpack::Origin)| {
        let (size, digest) = origin.file?;
        let content = Content::File(path.under(root));
        Some((path.clone(), Entry::file(0o644, content, size, digest)))
    };
    unpacked.origins.iter().filter_map(file).collect()
}

fn configure_all(
    sandbox: Sandbox,
    script: &configure::Script<'_>,
    folder: &Path,
    progress: &Progress,
) -> Result<(Owners, Timing)> {
    let task = progress.task("configure packages", None);
    let scratch = folder.join("scratch");
    DirBuilder::new().mode(0o700).create(&scratch)?;
    let opened = File::open(folder)?;
    let result = std::thread::scope(|scope| {
        // The store syncs a layer before it shows it. What was unpacked goes to the disk while scripts run, so that
        // little is left for then; whatever is wrong with the disk shows then too.
        scope.spawn(|| {
            let _ = rustix::fs::syncfs(&opened);
        });
        configure::configure(sandbox, script, &scratch, &task)
    })?;
    fs::remove_dir_all(&scratch)?;
    task.done();
    Ok(result)
}

fn initial_owners(unpacked: &Unpacked, accounts: &Accounts) -> Owners {
    let mut owners = Owners::default();
    for (path, origin) in &unpacked.origins {
        let (uid, gid) = accounts.owner(origin);
        owners.insert(
            path.clone(),
            Owner {
                uid,
                gid,
                ..Owner::default()
            },
        );
    }
    owners
}

fn check(root: &Path, accounts: &Accounts, packages: &[Package], unpacked: &Unpacked) -> Result<()> {
    accounts.check(root)?;
    if !root.join(dpkg::ADMIN).join("diversions").exists() {
        return Ok(());
    }
    let mut shipped: BTreeMap<TreePath, &str> = BTreeMap::new();
    for (package, list) in packages.iter().zip(&unpacked.lists) {
        shipped.extend(list.iter().map(|path| (path.clone(), package.name.as_str())));
    }
    configure::check_diversions(root, |path| {
        let path = TreePath::parse(path).ok()?;
        let leaf = unpacked
            .origins
            .get(&merged(&path))
            .is_some_and(|origin| origin.file.is_some());
        leaf.then(|| shipped.get(&path).map(|name| (*name).to_owned()))
            .flatten()
    })
}

/// Which package owns each path of a finished root.
fn owned_paths(root: &Path, packages: &[Package]) -> Result<BTreeMap<TreePath, usize>> {
    let mut owned = BTreeMap::new();
    for (index, package) in packages.iter().enumerate() {
        let path = root
            .join(dpkg::ADMIN)
            .join("info")
            .join(format!("{}.list", package.info_name()));
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            owned.insert(merged(&TreePath::parse(line)?), index);
        }
    }
    Ok(owned)
}

fn remove_folder(folder: &Path) -> Result<()> {
    // overlayfs leaves a folder without permissions in its work directory.
    for child in fs::read_dir(folder)? {
        fs::set_permissions(child?.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

/// What the overlay's upper side `root` changes in the tree of `base`.
fn delta_entries(root: &Path, base: &Layer, tree: &Tree, knowledge: &Knowledge<'_>) -> Result<Entries> {
    let mut entries = Entries::new();
    for (path, change) in delta::delta(root, &[base.root()])? {
        let mounted =
            |(name, _): &(&str, u16)| path.parts().first().is_some_and(|first| first == name.as_bytes());
        if scan::MOUNT_POINTS.iter().any(mounted) {
            continue;
        }
        if change == Change::Removed {
            entries.insert(path, None);
            continue;
        }
        let metadata = fs::symlink_metadata(path.under(root)).with_context(|| path.to_string())?;
        let entry = scan::entry(root, &path, &metadata, knowledge).with_context(|| path.to_string())?;
        let same = tree.get(&path).is_some_and(|old| same(old, &entry));
        if !same {
            entries.insert(path, Some(entry));
        }
    }
    Ok(entries)
}

/// Copying up without a change is no change.
fn same(one: &Entry, other: &Entry) -> bool {
    let kinds = match (&one.kind, &other.kind) {
        (Kind::Directory, Kind::Directory) => true,
        (Kind::File { digest: one, .. }, Kind::File { digest: other, .. }) => one == other,
        (Kind::Symlink(one), Kind::Symlink(other)) => one == other,
        _ => false,
    };
    kinds && (one.mode, one.uid, one.gid, &one.xattrs) == (other.mode, other.uid, other.gid, &other.xattrs)
}
