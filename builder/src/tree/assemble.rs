//! The stage itself: layers, files of the definition and of components, units, in this order.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::console;
use super::dpkg::Package;
use super::kernel::{self, Kernel};
use super::layer::{self, Input, Layer, Recipe, Workshop};
use super::leave_out::LeaveOuts;
use super::normalise::{self, place};
use super::units::{self, Wanted};
use super::value::{Entry, Kind, Tree, TreePath};
use crate::definition::Definition;
use crate::definition::image::LeaveOut;
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::lock::{Lock, LockedPackage};
use crate::progress::Progress;
use crate::store::{Held, Store};

/// Largest file of `rootfs/` or `files/`, in bytes: they are configuration, not programs.
const LARGEST_FILE: u64 = 64 << 20;
const ARTIFACT: &str = "tree";
const MODULES_LOAD: &str = "usr/lib/modules-load.d/kimage.conf";
const SYSCTLS: &str = "usr/lib/sysctl.d/90-kimage.conf";

/// The result of the stage.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// The root filesystem.
    pub tree: Tree,
    /// What boots it.
    pub kernel: Kernel,
    /// What is installed, sorted by name.
    pub packages: Vec<InstalledPackage>,
    /// The layers with the tree's files, which stay while this lives.
    pub layers: Vec<Arc<Held>>,
}

/// One installed package, as a bill of materials names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledPackage {
    /// Binary package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Source package.
    pub source: String,
    /// Version of the source package.
    pub source_version: String,
    /// Who maintains it, as its control file says.
    pub maintainer: Option<String>,
    /// Upstream's page.
    pub homepage: Option<String>,
    /// Its `copyright` file in the tree, unless the definition leaves it out.
    pub licence: Option<TreePath>,
}

/// What the components stage adds.
#[derive(Debug, Clone, Default)]
pub struct Baked {
    /// Files and links, owned as they say. What is below `/var` goes to the template of `/var`.
    pub files: Vec<(TreePath, Entry)>,
    /// What first boot may know about them, for `role.json`.
    pub components: Vec<kimage_roles::role::Component>,
}

/// How to assemble: nothing of it shows in the result.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Reuse cached layers.
    pub cache: bool,
    /// Where and how layers are made. It hears of those files only that the image will hold.
    pub workshop: Workshop<'a>,
}

/// Assembles the root filesystem of `definition` from the packages that `lock` names and `store` holds, and the
/// components that are `baked` in.
///
/// # Errors
/// [`ExitCode::Usage`] when the definition names a unit, user or path that does not fit the packages;
/// [`ExitCode::Fetch`] when the store lacks a package; [`ExitCode::Sandbox`] when this host can't run the sandbox.
pub fn assemble(
    definition: &Definition,
    lock: &Lock,
    store: &Store,
    baked: Baked,
    progress: &Progress,
    options: &Options<'_>,
) -> Result<Assembled> {
    let leave_outs = LeaveOuts::new(all_leave_outs(definition), &definition.image.manifest.kernel)?;
    let foreseen = |files: &[(TreePath, Entry)]| {
        if let Some(foreseen) = options.workshop.foreseen {
            let stays = |path: &TreePath| !leave_outs.leaves_out(path) && !kernel::takes(path);
            let files = files.iter().filter(|(path, _)| stays(path)).cloned();
            foreseen(&files.collect::<Vec<_>>());
        }
    };
    let workshop = Workshop {
        foreseen: Some(&foreseen),
        ..options.workshop
    };
    let options = Options { workshop, ..*options };
    let layers = layers(definition, lock, store, progress, &options)?;
    let mut tree = Tree::new(lock.epoch);
    for (layer, _) in &layers {
        layer.apply(&mut tree)?;
    }
    let (top, _) = layers.last().context("no layer")?;
    let packages = layer::installed(&top.root())?;
    let kernel = kernel::take(&mut tree)?;
    let licences: Vec<Option<TreePath>> = packages.iter().map(|package| licence(package, &tree)).collect();
    leave_outs.apply(&mut tree);
    normalise::normalise(&mut tree)?;
    for folder in definition_folders(definition) {
        add_folder(&mut tree, &folder)?;
    }
    for (path, entry) in baked.files {
        place(&mut tree, &path, entry).context("file of a component")?;
    }
    add_generated(&mut tree, definition, &kernel.version, baked.components)?;
    apply_units(&mut tree, definition)?;
    let licences = licences
        .into_iter()
        .map(|path| path.filter(|path| tree.get(path).is_some()));
    let packages = packages
        .iter()
        .zip(licences)
        .map(|(package, licence)| described(package, licence))
        .collect();
    Ok(Assembled {
        tree,
        kernel,
        packages,
        layers: layers.into_iter().map(|(_, held)| Arc::new(held)).collect(),
    })
}

/// The folders whose files a definition adds as they are, in the order in which a later one wins.
pub fn definition_folders(definition: &Definition) -> Vec<PathBuf> {
    let mut folders = vec![
        definition.image.folder.join("rootfs"),
        definition.role.folder.join("files"),
    ];
    folders.extend(
        definition
            .components
            .iter()
            .map(|component| component.folder.join("rootfs")),
    );
    folders
}

/// The base layer and, where the role adds packages or users, the role's: from the store or made now.
fn layers(
    definition: &Definition,
    lock: &Lock,
    store: &Store,
    progress: &Progress,
    options: &Options<'_>,
) -> Result<Vec<(Layer, Held)>> {
    let image = &definition.image.manifest;
    let role = &definition.role;
    // A role's own globs only count in the finished tree: the base is the same for all roles.
    let base_leave_outs = LeaveOuts::new(&image.packages.leave_out, &image.kernel)?;
    let base_recipe = Recipe {
        inputs: inputs(lock, store, |package| package.base)?,
        leave_outs: &base_leave_outs,
        users: &image.users,
        groups: &image.groups,
        epoch: lock.epoch,
    };
    let base_key = base_recipe.key(None);
    let base = cached(store, &base_key, options, |folder| {
        layer::build_base(folder, &base_recipe, &options.workshop, progress).context("base layer")
    })?;
    let role_recipe = Recipe {
        inputs: inputs(lock, store, |package| {
            !package.base && package.roles.contains(&role.name)
        })?,
        leave_outs: &base_leave_outs,
        users: &role.manifest.users,
        groups: &role.manifest.groups,
        epoch: lock.epoch,
    };
    if role_recipe.inputs.is_empty() && role_recipe.users.is_empty() && role_recipe.groups.is_empty() {
        return Ok(vec![base]);
    }
    let role_key = role_recipe.key(Some(&base_key));
    let layer = cached(store, &role_key, options, |folder| {
        let result = layer::build_role(folder, &base.0, &role_recipe, &options.workshop, progress);
        result.with_context(|| format!("layer of role {}", role.name))
    })?;
    Ok(vec![base, layer])
}

/// A layer, and the hold on its files: another kimage of this store may run with `--no-cache` at the same moment.
fn cached(
    store: &Store,
    key: &Digest,
    options: &Options<'_>,
    build: impl Fn(&Path) -> Result<super::configure::Timing>,
) -> Result<(Layer, Held)> {
    let make = |folder: &Path| build(folder).map(drop);
    if options.cache {
        let held = store.hold_or_build(ARTIFACT, key, make)?;
        // A damaged cache is no reason to fail: it is made again.
        if let Ok(layer) = Layer::load(held.path()) {
            return Ok((layer, held));
        }
    }
    let held = store.rebuild(ARTIFACT, key, make)?;
    Ok((Layer::load(held.path())?, held))
}

fn inputs(lock: &Lock, store: &Store, wanted: impl Fn(&LockedPackage) -> bool) -> Result<Vec<Input>> {
    let packages = lock.package.iter().filter(|package| wanted(package));
    let input = |package: &LockedPackage| {
        let path = store.blob(&package.sha256)?.ok_or_else(|| {
            let message = format!("the store lacks {} {}", package.name, package.version);
            Failure::new(ExitCode::Fetch, message).hint("run `kimage build` without --offline")
        })?;
        Ok(Input {
            name: package.name.clone(),
            version: package.version.clone(),
            architecture: package.architecture.clone(),
            digest: package.sha256,
            path,
        })
    };
    packages.map(input).collect()
}

fn all_leave_outs(definition: &Definition) -> Vec<&LeaveOut> {
    let role = &definition.role.manifest;
    let on = role.on.get(&definition.image.name).map(|on| &on.packages);
    let packages = [
        Some(&definition.image.manifest.packages),
        Some(&role.packages),
        on,
    ];
    packages
        .into_iter()
        .flatten()
        .flat_map(|packages| &packages.leave_out)
        .collect()
}

/// Adds the files below `folder` of the definition, as root's: 0755 where anybody may execute them, 0644 otherwise.
fn add_folder(tree: &mut Tree, folder: &Path) -> Result<()> {
    if !folder
        .try_exists()
        .with_context(|| format!("look for {}", folder.display()))?
    {
        return Ok(());
    }
    let mut pending = vec![TreePath::root()];
    while let Some(parent) = pending.pop() {
        let here = parent.under(folder);
        let mut names: Vec<_> = fs::read_dir(&here)
            .with_context(|| format!("list {}", here.display()))?
            .map(|child| child.map(|child| child.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            let path = parent.join(&name.into_vec());
            let place_on_host = path.under(folder);
            let entry =
                host_entry(&place_on_host).with_context(|| format!("read {}", place_on_host.display()))?;
            if matches!(entry.kind, Kind::Directory) {
                pending.push(path.clone());
            }
            place(tree, &path, entry).with_context(|| format!("{}", place_on_host.display()))?;
        }
    }
    Ok(())
}

fn host_entry(path: &Path) -> Result<Entry> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        return Ok(Entry::directory(0o755));
    }
    if metadata.is_symlink() {
        return Ok(Entry::symlink(fs::read_link(path)?.into_os_string().into_vec()));
    }
    if !metadata.is_file() || metadata.len() > LARGEST_FILE {
        bail!("not a regular file of at most {LARGEST_FILE} bytes");
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(Entry::bytes(
        if executable { 0o755 } else { 0o644 },
        fs::read(path)?,
    ))
}

/// The files that kimage writes from the definition.
fn add_generated(
    tree: &mut Tree,
    definition: &Definition,
    kernel: &str,
    mut components: Vec<kimage_roles::role::Component>,
) -> Result<()> {
    let role = &definition.role;
    let mut put = |path: &str, bytes: Vec<u8>| {
        place(
            tree,
            &TreePath::parse(path.as_bytes())?,
            Entry::bytes(0o644, bytes),
        )
    };
    let modules: String = role
        .manifest
        .modules
        .iter()
        .map(|module| format!("{module}\n"))
        .collect();
    put(MODULES_LOAD, modules.into_bytes())?;
    let sysctls: String = role
        .manifest
        .sysctls
        .iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    put(SYSCTLS, sysctls.into_bytes())?;
    components.sort_by(|one, other| one.name.cmp(&other.name));
    let contract = kimage_roles::role::Role {
        schema: kimage_roles::role::SCHEMA,
        role: role.name.clone(),
        image: definition.image.name.clone(),
        kernel: kernel.to_owned(),
        root_size_mib: role.manifest.root_size_mib,
        components,
    };
    put(kimage_roles::role::ROLE_PATH, contract.to_json()?)
}

fn apply_units(tree: &mut Tree, definition: &Definition) -> Result<()> {
    let (image, role) = (&definition.image, &definition.role);
    let image_file = format!("images/{}/image.toml", image.name);
    let role_file = format!("roles/{}/role.toml", role.name);
    let logins =
        console::apply(tree, image.manifest.debug.serial_login).with_context(|| image_file.clone())?;
    let lists = [
        Wanted {
            file: &image_file,
            enable: &logins.enable,
            mask: &logins.mask,
        },
        Wanted {
            file: &image_file,
            enable: &image.manifest.units.enable,
            mask: &image.manifest.units.mask,
        },
        Wanted {
            file: &role_file,
            enable: &role.manifest.units.enable,
            mask: &role.manifest.units.mask,
        },
    ];
    units::apply(tree, &lists)
}

fn described(package: &Package, licence: Option<TreePath>) -> InstalledPackage {
    let (source, source_version) = package.source();
    InstalledPackage {
        name: package.name.clone(),
        version: package.version.clone(),
        architecture: package.architecture.clone(),
        source,
        source_version,
        maintainer: package.field("Maintainer").map(str::to_owned),
        homepage: package.field("Homepage").map(str::to_owned),
        licence,
    }
}

/// `/usr/share/doc/<package>/copyright` of an unreduced tree; folder and file may be links to another package's.
fn licence(package: &Package, tree: &Tree) -> Option<TreePath> {
    let doc = TreePath::parse(b"usr/share/doc").ok()?;
    let mut folder = doc.join(package.name.as_bytes());
    if let Kind::Symlink(target) = &tree.get(&folder)?.kind {
        folder = doc.join(target.rsplit(|byte| *byte == b'/').next()?);
    }
    let mut path = folder.join(b"copyright");
    if let Kind::Symlink(target) = &tree.get(&path)?.kind {
        let relative = target.strip_prefix(b"../".as_slice())?;
        path = TreePath::parse(&[b"usr/share/doc/".as_slice(), relative].concat()).ok()?;
    }
    Some(path)
}

/// A digest of everything that a tree says: equal trees have equal digests.
pub fn fingerprint(tree: &Tree) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field(&tree.mtime().to_le_bytes());
    for (path, entry) in tree.entries() {
        hasher.field(&path.to_bytes());
        let kind = match &entry.kind {
            Kind::File { size, digest, .. } => format!("file {size} {digest}"),
            Kind::Symlink(target) => format!("link {target:?}"),
            other => format!("{other:?}"),
        };
        hasher.field(
            format!(
                "{:o} {} {} {:?} {kind}",
                entry.mode, entry.uid, entry.gid, entry.xattrs
            )
            .as_bytes(),
        );
    }
    hasher.finish()
}
