//! The kernel and the EFI programs: they leave the tree for the partitions stage, because they boot from the EFI
//! system partition and not from the root filesystem.

use anyhow::{Context, Result, bail};

use super::value::{Entry, Kind, Tree, TreePath};

/// systemd's EFI programs (package systemd-boot-efi).
const EFI: &str = "usr/lib/systemd/boot/efi";
const STUB: &str = "linuxx64.efi.stub";
const BOOT_LOADER: &str = "systemd-bootx64.efi";

/// What boots the image.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `6.8.0-151-generic`: the name of its folder below `/usr/lib/modules`.
    pub version: String,
    /// The compressed kernel (`vmlinuz`), a regular file.
    pub image: Entry,
    /// The stub that becomes the unified kernel image (`linuxx64.efi.stub`).
    pub stub: Entry,
    /// systemd-boot (`systemd-bootx64.efi`).
    pub boot_loader: Entry,
}

/// Whether [`take`] takes `path` out of a tree.
pub fn takes(path: &TreePath) -> bool {
    let below = |folder: &str| path.to_bytes().starts_with(format!("{folder}/").as_bytes());
    below("boot") || below(EFI)
}

/// Takes the kernel and the EFI programs out of `tree`, with everything else that boots from elsewhere.
pub fn take(tree: &mut Tree) -> Result<Kernel> {
    let modules = TreePath::parse(b"usr/lib/modules")?;
    let versions = children(tree, &modules);
    let [version] = versions.as_slice() else {
        bail!(
            "the packages bring {} kernels ({}), an image has one",
            versions.len(),
            versions.join(", ")
        );
    };
    let boot = TreePath::parse(b"boot")?;
    let image =
        file(tree, &boot.join(format!("vmlinuz-{version}").as_bytes())).context("package of the kernel")?;
    let efi = TreePath::parse(EFI.as_bytes())?;
    let missing = "is the package systemd-boot-efi installed?";
    let stub = file(tree, &efi.join(STUB.as_bytes())).context(missing)?;
    let boot_loader = file(tree, &efi.join(BOOT_LOADER.as_bytes())).context(missing)?;
    tree.remove(&efi);
    tree.remove(&boot);
    tree.insert(boot, Entry::directory(0o755))?;
    for name in ["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"] {
        tree.remove(&TreePath::parse(name.as_bytes())?);
    }
    // Links to the headers that no package of an image brings.
    for name in ["build", "source"] {
        tree.remove(&modules.join(version.as_bytes()).join(name.as_bytes()));
    }
    Ok(Kernel {
        version: version.clone(),
        image,
        stub,
        boot_loader,
    })
}

fn children(tree: &Tree, folder: &TreePath) -> Vec<String> {
    let depth = folder.parts().len() + 1;
    let inside = tree
        .subtree(folder)
        .filter(|(path, _)| path.parts().len() == depth);
    inside
        .filter_map(|(path, _)| path.name())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn file(tree: &Tree, path: &TreePath) -> Result<Entry> {
    match tree.get(path) {
        Some(
            entry @ Entry {
                kind: Kind::File { .. },
                ..
            },
        ) => Ok(entry.clone()),
        Some(_) => bail!("{path} is not a regular file"),
        None => bail!("{path} is absent"),
    }
}
