//! The initrd: stage 0's binary, the few kernel modules it may have to load and the table that says which.
//!
//! A cpio archive in one zstd frame. There is no shell, no library and no systemd in it, and nothing that depends
//! on the machine that builds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use globset::{GlobBuilder, GlobMatcher};
use kimage_roles::stage0::{MODULES_FOLDER, TABLE_PATH, Table, normalise};

use crate::failure::{ExitCode, Failure};
use crate::tree::{Kind, Tree, TreePath};

mod cpio;
mod elf;
mod module;

use module::Module;

/// zstd level. Level 15 saves 25 KB of 2 MB and takes seven times as long, in every build.
const LEVEL: i32 = 9;
/// Threads of the compressor: the bytes depend on whether there is one at all, so the number is fixed.
const THREADS: u32 = 1;

/// A finished initrd.
#[derive(Debug)]
pub struct Initrd {
    /// The compressed archive.
    pub bytes: Vec<u8>,
    /// Names of the modules in it, in loading order.
    pub modules: Vec<String>,
    /// Hardware globs that match nothing on this kernel, as the definition wrote them.
    pub unmatched: Vec<String>,
}

/// Builds the initrd from stage 0's static binary and the modules below `usr/lib/modules/<kernel>` of `tree`.
///
/// `always` names modules that every machine loads, `hardware` holds globs of modules that machines with such
/// devices load: over module names (`nvme*`; dashes and underscores are the same), or, with a `/`, over paths
/// below the kernel's folder (`kernel/drivers/scsi/*`). What the kernel has built in counts as there and is left out.
///
/// # Errors
///
/// A module of `always`, or one that another module needs, which is neither a file nor built in; a file that is no
/// module; needs that go in a circle.
pub fn build(
    init: &[u8],
    tree: &Tree,
    kernel: &str,
    always: &[String],
    hardware: &[String],
) -> Result<Initrd> {
    let shelf = Shelf::open(tree, kernel)?;
    let mut chosen = Chosen {
        shelf: &shelf,
        order: Vec::new(),
        done: BTreeSet::new(),
        path: Vec::new(),
    };
    let mut always_names = Vec::new();
    for name in always {
        let name = name.replace('-', "_");
        if shelf.files.contains_key(&name) {
            chosen
                .add(&name)
                .with_context(|| format!("kernel module {name}, which stage 0 always loads"))?;
            always_names.push(name);
        } else if !shelf.built_in.contains(&name) {
            let message = format!("kernel {kernel} has no module {name}, which `kernel.stage0-always` names");
            let hint = "take it out of image.toml, or install the package that holds the module";
            return Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
        }
    }
    let mut unmatched = Vec::new();
    for glob in hardware {
        let wanted = shelf.matching(glob)?;
        if wanted.is_empty() && !shelf.has_built_in(glob)? {
            unmatched.push(glob.clone());
        }
        for name in wanted {
            chosen
                .add(&name)
                .with_context(|| format!("kernel module {name}, which `{glob}` asks for"))?;
        }
    }
    let modules = chosen.order;
    let table = table(kernel, &modules, &always_names)?;
    let bytes = compress(&archive(init, &modules, &table))?;
    Ok(Initrd {
        bytes,
        modules: modules.into_iter().map(|module| module.name).collect(),
        unmatched,
    })
}

/// The modules that the tree's kernel has.
struct Shelf<'a> {
    tree: &'a Tree,
    folder: TreePath,
    /// By module name.
    files: BTreeMap<String, TreePath>,
    built_in: BTreeSet<String>,
    /// Paths of built-in modules below the kernel's folder.
    built_in_paths: Vec<String>,
}

impl<'a> Shelf<'a> {
    fn open(tree: &'a Tree, kernel: &str) -> Result<Self> {
        ensure!(
            !kernel.is_empty() && !kernel.contains('/'),
            "{kernel:?} is not a kernel release"
        );
        let folder = TreePath::parse(format!("usr/lib/modules/{kernel}").as_bytes())?;
        ensure!(
            tree.get(&folder).is_some(),
            "{folder} is absent: the image has no modules of kernel {kernel}"
        );
        let list = folder.join(b"modules.builtin");
        let list = String::from_utf8(read(tree, &list)?).with_context(|| format!("{list} is not UTF-8"))?;
        let built_in_paths: Vec<String> = list.lines().map(str::to_owned).collect();
        let built_in = built_in_paths
            .iter()
            .filter_map(|path| module::name_of(file_name(path)))
            .collect();
        let mut files = BTreeMap::new();
        for (path, entry) in tree.subtree(&folder) {
            let name = path
                .name()
                .and_then(|name| module::name_of(std::str::from_utf8(name).ok()?));
            if let (Some(name), Kind::File { .. }) = (name, &entry.kind)
                && let Some(other) = files.insert(name.clone(), path.clone())
            {
                bail!("{other} and {path} are both the kernel module {name}");
            }
        }
        Ok(Self {
            tree,
            folder,
            files,
            built_in,
            built_in_paths,
        })
    }

    /// Names of the modules that `glob` means, sorted.
    fn matching(&self, glob: &str) -> Result<Vec<String>> {
        let matcher = matcher(glob)?;
        let means = |name: &str, path: &TreePath| {
            if glob.contains('/') {
                matcher.is_match(self.inner_path(path))
            } else {
                matcher.is_match(name)
            }
        };
        Ok(self
            .files
            .iter()
            .filter(|(name, path)| means(name, path))
            .map(|(name, _)| name.clone())
            .collect())
    }

    fn has_built_in(&self, glob: &str) -> Result<bool> {
        let matcher = matcher(glob)?;
        if glob.contains('/') {
            return Ok(self
                .built_in_paths
                .iter()
                .any(|path| matcher.is_match(path.trim_end_matches(".ko"))));
        }
        Ok(self.built_in.iter().any(|name| matcher.is_match(name)))
    }

    /// `kernel/drivers/nvme/host/nvme`: without suffixes, which differ from base to base.
    fn inner_path(&self, path: &TreePath) -> String {
        let parts = &path.parts()[self.folder.parts().len()..];
        let inner = String::from_utf8_lossy(&parts.join(&b'/')).into_owned();
        inner
            .rsplit_once(".ko")
            .map_or(inner.clone(), |(stem, _)| stem.to_owned())
    }

    fn read(&self, name: &str) -> Result<Module> {
        let path = self
            .files
            .get(name)
            .with_context(|| format!("kernel module {name} is absent"))?;
        let file = String::from_utf8_lossy(path.name().unwrap_or_default()).into_owned();
        Module::read(&file, read(self.tree, path)?).with_context(|| format!("{path}"))
    }
}

/// The modules taken so far, each after all that it needs.
struct Chosen<'a> {
    shelf: &'a Shelf<'a>,
    order: Vec<Module>,
    done: BTreeSet<String>,
    /// The chain of needs that led here.
    path: Vec<String>,
}

impl Chosen<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.done.contains(name) {
            return Ok(());
        }
        if self.path.iter().any(|above| above == name) {
            bail!(
                "kernel modules need each other in a circle: {} -> {name}",
                self.path.join(" -> ")
            );
        }
        let mut module = self.shelf.read(name)?;
        self.path.push(name.to_owned());
        for need in &module.depends {
            if self.shelf.files.contains_key(need) {
                self.add(need)?;
            } else if !self.shelf.built_in.contains(need) {
                bail!("kernel module {name} needs {need}, which is neither a file of the image nor built in");
            }
        }
        for wish in &module.prefers {
            if self.shelf.files.contains_key(wish) {
                self.add(wish)?;
            }
        }
        self.path.pop();
        module.depends.append(&mut module.prefers);
        module.depends.retain(|need| self.done.contains(need));
        module.depends.sort();
        module.depends.dedup();
        self.done.insert(name.to_owned());
        self.order.push(module);
        Ok(())
    }
}

fn table(kernel: &str, modules: &[Module], always: &[String]) -> Result<Table> {
    let mut table = Table::new(kernel)?;
    for module in modules {
        let needs: Vec<&str> = module.depends.iter().map(String::as_str).collect();
        table.add_module(&module.name, &file_in_initrd(module), &needs)?;
    }
    for name in always {
        table.add_always(name)?;
    }
    for module in modules {
        // Devices have aliases like `pci:...`; names without a colon are asked for by file systems and ciphers.
        for alias in module.aliases.iter().filter(|alias| alias.contains(':')) {
            table
                .add_alias(&module.name, alias)
                .with_context(|| format!("kernel module {}", module.name))?;
        }
    }
    Ok(table)
}

fn archive(init: &[u8], modules: &[Module], table: &Table) -> Vec<u8> {
    let mut archive = cpio::Archive::new();
    archive.directory("dev", 0o755);
    // The kernel opens it for `/init` before anybody could mount devtmpfs (init/main.c, console_on_rootfs).
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, init);
    let folder = MODULES_FOLDER.trim_start_matches('/');
    archive.directory(folder, 0o755);
    let mut sorted: Vec<&Module> = modules.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for module in sorted {
        archive.file(
            &format!("{folder}/{}", file_in_initrd(module)),
            0o644,
            &module.bytes,
        );
    }
    for folder in ["proc", "run", "sys", "sysroot"] {
        archive.directory(folder, 0o755);
    }
    archive.file(
        TABLE_PATH.trim_start_matches('/'),
        0o644,
        table.to_string().as_bytes(),
    );
    archive.finish()
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    encoder.multithread(THREADS)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.write_all(bytes)?;
    encoder.finish().context("compress initrd")
}

fn file_in_initrd(module: &Module) -> String {
    format!("{}.ko", module.name)
}

fn matcher(glob: &str) -> Result<GlobMatcher> {
    let text = if glob.contains('/') {
        glob.to_owned()
    } else {
        normalise(glob)
    };
    let glob = GlobBuilder::new(&text).literal_separator(true).build();
    Ok(glob
        .with_context(|| format!("`kernel.stage0-hardware`: glob `{text}`"))?
        .compile_matcher())
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn read(tree: &Tree, path: &TreePath) -> Result<Vec<u8>> {
    let entry = tree.get(path).with_context(|| format!("{path} is absent"))?;
    entry.read().with_context(|| format!("{path}"))
}
