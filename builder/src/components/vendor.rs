//! What another machine needs to build components without a network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::go::{Workspace, escape};
use super::{ARTIFACT, Access, Bench, content_key, go_toolchain};
use crate::definition::Component;
use crate::definition::component::Source;
use crate::download::Network;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::store::Store;

/// Files and folders of the store, as absolute paths below its root, that let a machine without a network build
/// `components`: what is built already, the Go toolchain, and the modules that the programs need. Fetches what is
/// missing, unless `access` says offline. Downloads of `[release]` and `[registry]` are blobs that the lock names.
pub fn vendor_files(
    components: &[Component],
    lock: &Lock,
    store: &Store,
    access: &Access,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    let bench = Bench {
        lock,
        store,
        access,
        progress,
    };
    let mut files = BTreeSet::new();
    for component in components {
        if let Some(folder) = store.artifact(ARTIFACT, &content_key(component, lock)?) {
            files.insert(folder);
        }
        if matches!(component.manifest.source, Source::Go(_)) {
            add_go(component, &bench, &mut files).with_context(|| format!("component {}", component.name))?;
        }
    }
    Ok(files.into_iter().collect())
}

fn add_go(component: &Component, bench: &Bench<'_>, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let Source::Go(source) = &component.manifest.source else {
        return Ok(());
    };
    let pin = bench.toolchain("go")?;
    // The other machine may have no Go, so the toolchain goes along even where this host has it.
    match go_toolchain::fetched(pin, bench.store, bench.access, bench.progress) {
        Ok(folder) => drop(files.insert(folder)),
        Err(error) if bench.access.network == Network::Online => return Err(error),
        Err(_) => bench
            .progress
            .warn("the Go toolchain is not in the store: the other machine must have it"),
    }
    let toolchain = go_toolchain::find(pin, bench.store, bench.access, bench.progress)?;
    let workspace = Workspace::new(component, source, &toolchain, bench.store)?;
    let resolved = workspace.resolve(bench.access, bench.progress)?;
    let downloads = bench.store.cache("go-mod")?.join("cache/download");
    for (path, version) in &resolved.modules {
        files.insert(entry(&downloads, path, version, "zip"));
    }
    // `go` reads the go.mod of modules that no package comes from, too.
    let sums = component.module_folder().join("go.sum");
    let text = std::fs::read_to_string(&sums).with_context(|| format!("read {}", sums.display()))?;
    for (path, version) in text.lines().filter_map(module_of_sum) {
        for kind in ["mod", "info"] {
            let file = entry(&downloads, path, version, kind);
            if file.is_file() {
                files.insert(file);
            }
        }
    }
    Ok(())
}

/// Path and version of a line of go.sum (`path version[/go.mod] h1:...`).
fn module_of_sum(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (path, version) = (words.next()?, words.next()?);
    Some((path, version.strip_suffix("/go.mod").unwrap_or(version)))
}

/// Layout of `GOMODCACHE/cache/download`: the protocol of a module proxy. The `.ziphash` files stay behind, so that
/// the other machine hashes each zip itself.
fn entry(downloads: &Path, path: &str, version: &str, kind: &str) -> PathBuf {
    downloads
        .join(escape(path))
        .join("@v")
        .join(format!("{}.{kind}", escape(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_go_sum_names_a_module() {
        assert_eq!(module_of_sum("a.b/C v1.2.3 h1:x"), Some(("a.b/C", "v1.2.3")));
        assert_eq!(
            module_of_sum("a.b/C v1.2.3/go.mod h1:x"),
            Some(("a.b/C", "v1.2.3"))
        );
        assert_eq!(module_of_sum(""), None);
        let file = entry(Path::new("/d"), "a.b/C", "v1.0.0-RC1", "zip");
        assert_eq!(file, Path::new("/d/a.b/!c/@v/v1.0.0-!r!c1.zip"));
    }
}
