//! Programs that no package archive has: built from pinned source or fetched by digest, once per content key, kept in
//! the store.

mod cargo;
mod complaint;
mod go;
mod go_proxy;
mod go_toolchain;
mod licence;
mod module_hash;
mod overlay;
mod record;
mod registry;
mod release;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::definition::Component;
use crate::definition::component::{GuestPath, Image, Source};
use crate::digest::{Digest, Hasher};
use crate::download::Network;
use crate::failure::{ExitCode, Failure};
use crate::lock::{Lock, LockedToolchain};
use crate::progress::Progress;
use crate::store::Store;
use cargo::Compiler;

pub use record::check_artifact;

/// Changes when the same definition gives other bytes than before.
const RECIPE: u32 = 1;
/// The kind of the store's artifacts.
const ARTIFACT: &str = "component";
/// The file in an artifact that says what the others are.
const RECORD: &str = "component.json";

/// How sources may be fetched.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whether at all.
    pub network: Network,
    /// A value for `GOPROXY` that wins over the user's settings (`--go-proxy`).
    pub go_proxy: Option<String>,
}

impl From<Network> for Access {
    fn from(network: Network) -> Self {
        Self {
            network,
            go_proxy: None,
        }
    }
}

/// A component, ready for the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltComponent {
    /// Folder below `images/components`.
    pub name: String,
    /// What users call its version (`v1.36.3`).
    pub version: String,
    /// SPDX expression of the component's own code.
    pub licence: String,
    /// Files of the VM's root filesystem, owned by root.
    pub files: Vec<InstalledFile>,
    /// Symbolic links of the VM's root filesystem: absolute path and target as written.
    pub links: Vec<(String, String)>,
    /// Container images that the VM carries.
    pub images: Vec<OciImage>,
    /// Go modules that are linked into its files, sorted by path.
    pub go_modules: Vec<GoModule>,
    /// What compiled it, where that may be another compiler than the pinned one (`rustc 1.95.0 (59807616e...)`).
    #[serde(default)]
    pub compiler: Option<String>,
}

/// A file and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledFile {
    /// Absolute path in the image.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// The bytes, in the store.
    pub source: PathBuf,
    /// Their number.
    pub size: u64,
    /// Their digest.
    pub digest: Digest,
}

/// A container image: configuration and content of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciImage {
    /// The name that pods ask for (`registry.k8s.io/coredns/coredns:v1.14.7`).
    pub reference: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    pub args: Vec<String>,
    /// `uid` or `uid:gid`; root where absent.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; `/` where absent.
    pub working_directory: Option<String>,
    /// Content of an image made here, owned by root.
    pub files: Vec<InstalledFile>,
    /// Content of an image pulled from a registry: layer tars (plain, gzip or zstd), the lowest first, verified.
    pub layers: Vec<PathBuf>,
}

/// A Go module inside a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GoModule {
    /// Module path.
    pub path: String,
    /// Version.
    pub version: String,
    /// `h1:` hash of its published content; empty where an overlay changed it.
    pub sum: String,
    /// An overlay replaced some of its packages.
    pub changed: bool,
    /// SPDX identifier, where its licence file is a well-known one.
    pub licence: Option<String>,
}

/// What a kind of source made in the artifact's folder.
#[derive(Default)]
struct Products {
    files: Vec<Product>,
    images: Vec<OciImage>,
    go_modules: Vec<GoModule>,
    compiler: Option<String>,
}

struct Product {
    path: GuestPath,
    mode: u16,
    links: Vec<GuestPath>,
    /// Name of the file in the artifact's folder.
    file: String,
}

/// Everything that the kinds need besides their own definition.
struct Bench<'a> {
    lock: &'a Lock,
    store: &'a Store,
    access: &'a Access,
    progress: &'a Progress,
}

impl Bench<'_> {
    fn toolchain(&self, name: &str) -> Result<&LockedToolchain> {
        toolchain(self.lock, name)
    }
}

fn toolchain<'a>(lock: &'a Lock, name: &str) -> Result<&'a LockedToolchain> {
    let found = lock.toolchain.iter().find(|toolchain| toolchain.name == name);
    found.ok_or_else(|| {
        Failure::new(ExitCode::Lock, format!("the lock pins no toolchain `{name}`"))
            .hint("run `kimage lock`")
            .into()
    })
}

/// Builds or fetches what the store lacks, one component after the other (compilers use all processors themselves).
///
/// # Errors
/// [`ExitCode::Lock`] when a component is not the locked one, [`ExitCode::Fetch`] when sources can't be had,
/// [`ExitCode::Mismatch`] when they are not the pinned ones, [`ExitCode::Failed`] with the compiler's words.
pub fn build(
    components: &[Component],
    lock: &Lock,
    store: &Store,
    access: &Access,
    progress: &Progress,
) -> Result<Vec<BuiltComponent>> {
    let bench = Bench {
        lock,
        store,
        access,
        progress,
    };
    let mut built = Vec::with_capacity(components.len());
    for component in components {
        built.push(build_one(component, &bench).with_context(|| format!("component {}", component.name))?);
    }
    Ok(built)
}

/// Kind and key of the store's artifacts that hold `components` as built: all that another machine needs of them.
pub fn artifacts(components: &[Component], lock: &Lock, store: &Store) -> Result<Vec<(String, Digest)>> {
    let artifact = |component| Ok((ARTIFACT.to_owned(), content_key(component, lock, store)?));
    components.iter().map(artifact).collect()
}

/// The artifact key of a component: everything that determines its bytes. Rust may be newer than the pinned one where
/// `store` does not have what the pinned one made: then the key names the host's.
pub fn content_key(component: &Component, lock: &Lock, store: &Store) -> Result<Digest> {
    let Source::Cargo(_) = &component.manifest.source else {
        return key_with(component, lock, None);
    };
    let pin = toolchain(lock, "rust")?;
    let pinned = key_with(component, lock, Some(&Compiler::pinned(pin)))?;
    if store.artifact(ARTIFACT, &pinned).is_some() {
        return Ok(pinned);
    }
    match Compiler::of_host(pin) {
        Ok(compiler) => key_with(component, lock, Some(&compiler)),
        // Whoever builds will say why that can't be.
        Err(_) => Ok(pinned),
    }
}

fn key_with(component: &Component, lock: &Lock, compiler: Option<&Compiler>) -> Result<Digest> {
    let mut hasher = Hasher::new();
    hasher.field(b"kimage component").field(&RECIPE.to_le_bytes());
    hasher
        .field(component.name.as_bytes())
        .field(component.source_digest()?.as_bytes());
    match (&component.manifest.source, compiler) {
        (Source::Go(_), _) => {
            for pin in lock.toolchain.iter().filter(|pin| pin.name == "go") {
                hasher.field(go_toolchain::identity(pin).as_bytes());
            }
        }
        (Source::Cargo(source), Some(compiler)) => {
            cargo::add_to_key(component, source, compiler, &mut hasher)?;
        }
        _ => {}
    }
    Ok(hasher.finish())
}

fn build_one(component: &Component, bench: &Bench<'_>) -> Result<BuiltComponent> {
    check_lock(component, bench.lock)?;
    let key = content_key(component, bench.lock, bench.store)?;
    let folder = bench.store.artifact_or_build(ARTIFACT, &key, |folder| {
        let products = match &component.manifest.source {
            Source::Go(source) => build_go(component, source, bench, folder)?,
            Source::Release(source) => release::take(component, source, bench, folder)?,
            Source::Registry(source) => registry::pull(source, bench, folder)?,
            Source::Cargo(source) => cargo::build(component, source, bench, folder)?,
        };
        record::write(&assemble(component, products, folder)?, folder)
    })?;
    let built = record::read(&folder)?;
    if let Some(compiler) = &built.compiler {
        let pinned = Compiler::pinned(bench.toolchain("rust")?).to_string();
        if *compiler != pinned {
            let name = &component.name;
            bench.progress.warn(&format!(
                "{compiler} built {name}, {pinned} is pinned: the bytes of {name}, and so of this image, are NOT the pinned ones"
            ));
        }
    }
    Ok(built)
}

fn check_lock(component: &Component, lock: &Lock) -> Result<()> {
    let stale = |what: &str| Failure::new(ExitCode::Lock, what).hint("run `kimage lock`");
    let locked = lock.component.iter().find(|locked| locked.name == component.name);
    let locked = locked.ok_or_else(|| stale("the lock does not hold it"))?;
    if locked.source != component.source_digest()? {
        return Err(stale("its definition has changed since it was locked").into());
    }
    Ok(())
}

fn build_go(
    component: &Component,
    source: &crate::definition::component::Go,
    bench: &Bench<'_>,
    folder: &Path,
) -> Result<Products> {
    let toolchain = go_toolchain::find(bench.toolchain("go")?, bench.store, bench.access, bench.progress)?;
    let workspace = go::Workspace::new(component, source, &toolchain, bench.store)?;
    let packages = workspace.resolve(bench.access, bench.progress)?;
    let task = bench
        .progress
        .task(&format!("build {}", component.name), Some(packages));
    let mut products = Products::default();
    for (index, binary) in source.binary.iter().enumerate() {
        let file = index.to_string();
        workspace.build(binary, &folder.join(&file), &task)?;
        products
            .go_modules
            .extend(workspace.linked_modules(&folder.join(&file))?);
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

/// Products and definition as one value whose `source` paths are relative to `folder`.
fn assemble(component: &Component, products: Products, folder: &Path) -> Result<BuiltComponent> {
    let manifest = &component.manifest;
    let mut files = Vec::new();
    let mut links = Vec::new();
    for product in &products.files {
        let path = folder.join(&product.file);
        let (digest, size) = Digest::of_file(&path).with_context(|| format!("read {}", path.display()))?;
        let source = PathBuf::from(&product.file);
        files.push(InstalledFile {
            path: product.path.as_str().into(),
            mode: product.mode,
            source,
            size,
            digest,
        });
        links.extend(
            product
                .links
                .iter()
                .map(|link| (link.as_str().to_owned(), link.link_to(&product.path))),
        );
    }
    let mut images = products.images;
    images.extend(
        manifest
            .images
            .iter()
            .map(|image| make_image(image, component, &files)),
    );
    let hidden = |file: &InstalledFile| {
        let only = manifest.images.iter().filter(|image| image.only);
        only.flat_map(|image| image.files.values())
            .any(|path| path.as_str() == file.path)
    };
    files.retain(|file| !hidden(file));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    links.sort();
    let mut go_modules = products.go_modules;
    go_modules.sort();
    go_modules.dedup();
    Ok(BuiltComponent {
        name: component.name.clone(),
        version: manifest.version.clone(),
        licence: manifest.license.clone(),
        files,
        links,
        images,
        go_modules,
        compiler: products.compiler,
    })
}

fn make_image(image: &Image, component: &Component, files: &[InstalledFile]) -> OciImage {
    let content = image.files.iter().filter_map(|(path, name)| {
        let file = files.iter().find(|file| file.path == name.as_str())?;
        Some(InstalledFile {
            path: path.as_str().into(),
            ..file.clone()
        })
    });
    OciImage {
        reference: component.manifest.expand(&image.reference),
        entrypoint: image.entrypoint.clone(),
        args: image.args.clone(),
        user: image.user.as_ref().map(|user| user.as_str().to_owned()),
        env: image
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_directory: None,
        files: content.collect(),
        layers: Vec::new(),
    }
}
