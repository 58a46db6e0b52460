//! Built components as entries of the tree: their files and links, and the container images in containerd's store.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{BuiltComponent, InstalledFile, OciImage};
use crate::definition::Component;
use crate::tree::containerd::{self, Config, Image};
use crate::tree::{Baked, Content, Entry, TreePath};

/// What the components of a definition, built, put into the tree. `epoch` is the time that the container store
/// carries, seconds since 1970.
pub fn bake(definitions: &[Component], built: &[BuiltComponent], epoch: u32) -> Result<Baked> {
    let mut baked = Baked::default();
    let mut images = Vec::new();
    for component in built {
        for file in &component.files {
            baked
                .files
                .push((TreePath::parse(file.path.as_bytes())?, entry(file)));
        }
        for (path, target) in &component.links {
            baked.files.push((
                TreePath::parse(path.as_bytes())?,
                Entry::symlink(target.as_bytes()),
            ));
        }
        for image in &component.images {
            images.push(container_image(image).with_context(|| format!("image {}", image.reference))?);
        }
        let definition = definitions
            .iter()
            .find(|definition| definition.name == component.name);
        baked.components.push(kimage_roles::role::Component {
            name: component.name.clone(),
            version: component.version.clone(),
            version_commands: definition
                .map(|found| found.manifest.version_commands.clone())
                .unwrap_or_default(),
        });
    }
    if !images.is_empty() {
        baked
            .files
            .extend(containerd::store(&images, epoch).context("containerd's store")?);
    }
    Ok(baked)
}

fn entry(file: &InstalledFile) -> Entry {
    let content = Content::File(file.source.clone());
    Entry::file(file.mode, content, file.size, file.digest)
}

fn container_image(image: &OciImage) -> Result<Image> {
    // Layers of pulled images would have to be unpacked with their whiteouts; no component of a role asks for one.
    ensure!(
        image.layers.is_empty(),
        "an image pulled from a registry can't be baked in: make it from files"
    );
    let files: Result<Vec<_>> = image
        .files
        .iter()
        .map(|file| Ok((TreePath::parse(file.path.as_bytes())?, entry(file))))
        .collect();
    Ok(Image {
        reference: image.reference.clone(),
        config: Config {
            entrypoint: image.entrypoint.clone(),
            command: image.args.clone(),
            user: image.user.clone().unwrap_or_default(),
            environment: image.env.clone(),
            working_directory: image.working_directory.clone().unwrap_or_default(),
            labels: BTreeMap::new(),
        },
        files: files?,
    })
}
