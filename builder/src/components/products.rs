//! What a kind of source made, and the definition, as one component.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::record::{BuiltComponent, GoModule, InstalledFile, OciImage};
use crate::definition::Component;
use crate::definition::component::{GuestPath, Image};
use crate::digest::Digest;

/// What a kind of source made in the artifact's folder.
#[derive(Default)]
pub(super) struct Products {
    pub(super) files: Vec<Product>,
    pub(super) images: Vec<OciImage>,
    pub(super) go_modules: Vec<GoModule>,
    pub(super) compiler: Option<String>,
}

pub(super) struct Product {
    pub(super) path: GuestPath,
    pub(super) mode: u16,
    pub(super) links: Vec<GuestPath>,
    /// Name of the file in the artifact's folder.
    pub(super) file: String,
}

/// Products and definition as one value whose `source` paths are relative to `folder`.
pub(super) fn assemble(component: &Component, products: Products, folder: &Path) -> Result<BuiltComponent> {
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
