//! Real programs from the image's components, for claims that need no machine.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use kimage_builder::components::{self, Access, BuiltComponent, Means};
use kimage_builder::definition::{self, Component};
use kimage_builder::download::Network;
use kimage_builder::inputs;
use kimage_builder::lock::{self, LockedComponent};
use kimage_builder::progress::Progress;
use kimage_builder::store::Store;

use crate::images::{kimage, workspace};

/// A component as the image build makes it, from the store where it is there already. The image's lock need not hold
/// it: its sources are pinned by its own go.sum.
pub fn component(name: &str) -> BuiltComponent {
    let store = Store::open(&Store::default_root().unwrap()).unwrap();
    let folder = workspace().join("images/components");
    let component = Component::load(&folder, name).unwrap();
    let image = definition::load_image(workspace(), "ubuntu-24.04").unwrap();
    let mut lock = lock::load(&image.image).unwrap().unwrap();
    lock.component.retain(|locked| locked.name != name);
    lock.component.push(LockedComponent {
        name: name.to_owned(),
        version: component.manifest.version.clone(),
        source: component.source_digest().unwrap(),
        download: Vec::new(),
        built: None,
    });
    let compilers = inputs::compilers(&image.image, &lock, &[], Network::Online).unwrap();
    let means = Means {
        store: &store,
        access: &Access::from(Network::Online),
        compilers: &compilers,
        program: Some(kimage().unwrap()),
        progress: &Progress::silent(),
    };
    components::unlocked(&component, &lock, &means).unwrap()
}
