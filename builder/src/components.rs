//! Programs that no package archive has: built from pinned source or fetched by digest, once per content key, kept in
//! the store.

mod artifact;
pub mod bake;
mod build_info;
mod cargo;
mod cargo_lock;
mod cargo_sources;
mod complaint;
mod crates;
mod go;
mod go_proxy;
mod go_toolchain;
mod licence;
mod module_hash;
mod overlay;
mod products;
mod record;
mod registry;
mod release;
mod rust_toolchain;
mod verdict;
mod watch;
mod workroom;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::definition::Component;
use crate::definition::component::Source;
use crate::digest::{Digest, Hasher};
use crate::download::{Network, Request};
use crate::failure::{ExitCode, Failure};
use crate::lock::{Lock, LockedOutput, LockedToolchain};
use crate::progress::Progress;
use crate::store::Store;
use crate::tree::compile_root;
use cargo_sources::Sources;
use products::{Product, Products, assemble};

pub use go_toolchain::files_hash as go_files_hash;
pub use record::{BuiltComponent, GoModule, ImageLayer, InstalledFile, OciImage};
pub use rust_toolchain::files_digest as rust_files_digest;

/// Changes when the same definition gives other bytes than before.
const RECIPE: u32 = 2;
/// The kind of the store's artifacts.
pub const ARTIFACT: &str = "component";
/// The kind of those that hold compilers.
const TOOLCHAIN: &str = "toolchain";

/// How sources may be fetched.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whether at all.
    pub network: Network,
    /// A value for `GOPROXY` that wins over the user's settings (`--go-proxy`).
    pub go_proxy: Option<String>,
    /// The folder of another store, from which downloads are taken that prove themselves by a digest. Nothing that was
    /// built there is used.
    pub beside: Option<PathBuf>,
}

impl From<Network> for Access {
    fn from(network: Network) -> Self {
        Self {
            network,
            go_proxy: None,
            beside: None,
        }
    }
}

/// Where and with what components are made: nothing of it shows in what comes out.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Where built components and all that they are made of are kept.
    pub store: &'a Store,
    /// How sources may be fetched.
    pub access: &'a Access,
    /// The lock's packages that compile components, and where to fetch them.
    pub compilers: &'a [Request],
    /// The program that is the sandbox's inside: kimage itself where the caller is another one.
    pub program: Option<&'a Path>,
    /// Who hears of it.
    pub progress: &'a Progress,
}

/// Everything that the kinds need besides their own definition.
struct Bench<'a> {
    lock: &'a Lock,
    means: &'a Means<'a>,
}

impl Means<'_> {
    /// The compiler that the store beside holds under `key`, which is believed when its files are the pinned ones.
    fn toolchain_beside(&self, key: &Digest) -> Result<Option<PathBuf>> {
        let beside = self.access.beside.as_deref().map(Store::open).transpose()?;
        Ok(beside.and_then(|store| store.artifact(TOOLCHAIN, key)))
    }
}

impl Bench<'_> {
    fn toolchain(&self, name: &str) -> Result<&LockedToolchain> {
        toolchain(self.lock, name)
    }
}

fn toolchain<'a>(lock: &'a Lock, name: &str) -> Result<&'a LockedToolchain> {
    let found = lock.toolchain.iter().find(|toolchain| toolchain.name == name);
    found.ok_or_else(|| stale(format!("the lock pins no toolchain `{name}`")).into())
}

fn stale(what: String) -> Failure {
    Failure::new(ExitCode::Lock, what).hint("run `kimage lock`")
}

/// Builds or fetches what the store lacks, one component after the other (compilers use all processors themselves).
/// What comes out is what the lock says, or it is an error; so is what the store has had before.
///
/// # Errors
/// [`ExitCode::Lock`] when a component is not the locked one, [`ExitCode::Fetch`] when sources can't be had,
/// [`ExitCode::Mismatch`] when they, or what is built of them, are not the locked ones, [`ExitCode::Failed`] with the
/// compiler's words.
pub fn build(components: &[Component], lock: &Lock, means: &Means<'_>) -> Result<Vec<BuiltComponent>> {
    // First, because building may take minutes.
    check_fresh(components, lock)?;
    let mut built = Vec::with_capacity(components.len());
    for component in components {
        let name = || format!("component {}", component.name);
        let expected = locked_output(component, lock).with_context(name)?;
        let (_, component) = make(component, lock, Some(expected), means).with_context(name)?;
        built.push(component);
    }
    Ok(built)
}

/// Builds or fetches one component of which no lock says what comes out.
///
/// # Errors
/// Those of [`build`].
pub fn unlocked(component: &Component, lock: &Lock, means: &Means<'_>) -> Result<BuiltComponent> {
    let made = make(component, lock, None, means);
    made.map(|(_, built)| built)
        .with_context(|| format!("component {}", component.name))
}

/// What comes out of a component, for the lock that is about to say it.
///
/// # Errors
/// Those of [`build`].
pub fn output(component: &Component, lock: &Lock, means: &Means<'_>) -> Result<LockedOutput> {
    // The key of what was built: somebody may have saved another source meanwhile.
    let made = make(component, lock, None, means);
    let (key, built) = made.with_context(|| format!("component {}", component.name))?;
    Ok(LockedOutput {
        key,
        output: built.output()?,
        files: built.listing(),
    })
}

/// Makes sure that `lock` says what comes out of each of `components` as they are now.
///
/// # Errors
/// [`ExitCode::Lock`], with the first that changed.
pub fn check_fresh(components: &[Component], lock: &Lock) -> Result<()> {
    for component in components {
        let check = || -> Result<()> {
            check_lock(component, lock)?;
            let locked = locked_output(component, lock)?;
            if locked.key == content_key(component, lock)? {
                return Ok(());
            }
            let what = "its sources, or what compiles it, changed since it was locked";
            Err(stale(what.to_owned()).into())
        };
        check().with_context(|| format!("component {}", component.name))?;
    }
    Ok(())
}

/// Kind and key of the store's artifacts that hold `components` as built: all that another machine needs of them.
pub fn artifacts(components: &[Component], lock: &Lock) -> Result<Vec<(String, Digest)>> {
    let artifact = |component| Ok((ARTIFACT.to_owned(), content_key(component, lock)?));
    components.iter().map(artifact).collect()
}

/// Whether the artifact of `kind` and `key` that was unpacked into `folder` is what one of `locks` says.
///
/// # Errors
/// [`ExitCode::Mismatch`] with the component and both digests, or when no lock knows it.
pub fn accept(kind: &str, key: &Digest, folder: &Path, locks: &[Lock], store: &Store) -> Result<()> {
    artifact::judge(kind, folder)?;
    let components = locks.iter().flat_map(|lock| &lock.component);
    let mut known = components.filter_map(|component| Some((&component.name, component.built.as_ref()?)));
    let Some((name, expected)) = known.find(|(_, built)| built.key == *key) else {
        let message = format!("no image.lock of the workspace knows {kind} {key}");
        let hint = "import it where the lock is that it was written from (--definitions DIR)";
        return Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
    };
    verdict::stored(folder, Some(expected), store)
        .map(drop)
        .map_err(|why| {
            let message = format!("component {name} is not the locked one: {why:#}");
            Failure::new(ExitCode::Mismatch, message)
                .hint(
                    "whoever wrote the file built it from something else, or wants you to use something else",
                )
                .into()
        })
}

/// The artifact key of a component: everything that determines its bytes.
pub fn content_key(component: &Component, lock: &Lock) -> Result<Digest> {
    match &component.manifest.source {
        Source::Cargo(cargo) => key_with(component, lock, Some(&Sources::read(component, cargo)?)),
        _ => key_with(component, lock, None),
    }
}

fn key_with(component: &Component, lock: &Lock, sources: Option<&Sources>) -> Result<Digest> {
    let mut hasher = Hasher::new();
    hasher.field(b"kimage component").field(&RECIPE.to_le_bytes());
    hasher
        .field(component.name.as_bytes())
        .field(component.source_digest()?.as_bytes());
    if let Source::Go(_) = &component.manifest.source {
        hasher.field(toolchain(lock, "go")?.hash.as_bytes());
    }
    if let Some(sources) = sources {
        cargo::add_to_key(sources, lock, &mut hasher)?;
    }
    Ok(hasher.finish())
}

fn check_lock(component: &Component, lock: &Lock) -> Result<()> {
    let locked = lock.component.iter().find(|locked| locked.name == component.name);
    let locked = locked.ok_or_else(|| stale("the lock does not hold it".to_owned()))?;
    if locked.source != component.source_digest()? {
        return Err(stale("its definition has changed since it was locked".to_owned()).into());
    }
    Ok(())
}

fn locked_output<'a>(component: &Component, lock: &'a Lock) -> Result<&'a LockedOutput> {
    let locked = lock.component.iter().find(|locked| locked.name == component.name);
    let built = locked.and_then(|locked| locked.built.as_ref());
    built.ok_or_else(|| stale("the lock does not say what comes out of it".to_owned()).into())
}

/// The component from the store, if what is there is right, or made now; and the key of what it was made of.
fn make(
    component: &Component,
    lock: &Lock,
    expected: Option<&LockedOutput>,
    means: &Means<'_>,
) -> Result<(Digest, BuiltComponent)> {
    check_lock(component, lock)?;
    // Read once: what is built is what the key is made of.
    let sources = match &component.manifest.source {
        Source::Cargo(cargo) => Some(Sources::read(component, cargo)?),
        _ => None,
    };
    let key = key_with(component, lock, sources.as_ref())?;
    let bench = Bench { lock, means };
    let build = |folder: &Path| {
        let products = products(component, sources.as_ref(), &bench, folder)?;
        let built = assemble(component, products, folder)?;
        artifact::write(&built, folder)?;
        match expected {
            Some(expected) => verdict::check(&built, expected, folder, means.store),
            None => Ok(()),
        }
    };
    let folder = means.store.artifact_or_build(ARTIFACT, &key, build)?;
    match verdict::stored(&folder, expected, means.store) {
        Ok(built) => Ok((key, built)),
        Err(error) => {
            // Like a damaged blob: what the store holds is worth nothing, and the build will say what is right.
            let name = &component.name;
            means.progress.warn(&format!(
                "the store's {name} is not what it should be ({error:#}): it is built again"
            ));
            let rebuilt = means.store.rebuild(ARTIFACT, &key, build)?;
            Ok((key, verdict::stored(rebuilt.path(), expected, means.store)?))
        }
    }
}

fn products(
    component: &Component,
    sources: Option<&Sources>,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    match &component.manifest.source {
        Source::Go(source) => build_go(component, source, bench, folder),
        Source::Release(source) => release::take(component, source, bench.means, folder),
        Source::Registry(source) => registry::pull(source, bench.means, folder),
        Source::Cargo(source) => {
            let sources = sources.context("the sources were not read")?;
            cargo::build(component, source, sources, bench, folder)
        }
    }
}

fn build_go(
    component: &Component,
    source: &crate::definition::component::Go,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    let means = bench.means;
    let toolchain = go_toolchain::find(bench.toolchain("go")?, means)?;
    // Without cgo, go needs no other program: nothing but itself is there.
    let nothing = means.store.scratch()?;
    let root = nothing.path().join("root");
    compile_root::make_empty(&root)?;
    let workspace = go::Workspace::new(component, source, &toolchain, &root, means)?;
    let packages = workspace.resolve()?;
    let task = means
        .progress
        .task(&format!("build {}", component.name), Some(packages));
    let mut products = Products::default();
    for (index, binary) in source.binary.iter().enumerate() {
        let file = index.to_string();
        workspace.build(binary, &folder.join(&file), &task)?;
        products
            .go_modules
            .extend(workspace.linked_modules(&folder.join(&file), &task)?);
        let (path, links) = (binary.path.clone(), binary.links.clone());
        products.files.push(Product {
            path,
            mode: 0o755,
            links,
            file,
        });
    }
    task.done();
    Ok(products)
}
