//! Texts of the workspace, of releases and of vendor files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use kimage_builder::definition::{self, Component, Image, Toolchains};
use kimage_builder::digest::Digest;
use kimage_builder::download::vendor;
use kimage_builder::lock as locks;
use kimage_builder::progress::Progress;
use kimage_builder::release::Manifest;
use kimage_builder::sign::keys;
use kimage_builder::store::Store;
use kimage_builder::tree::{Entry, TreePath, index};

use super::memory::{MemoryFile, mend_tar_checksums};

/// The images of this repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of a definition that the first byte of an input chooses from.
const FILES: [&str; 4] = [
    "images/ubuntu-24.04/image.toml",
    "roles/worker/role.toml",
    "images/components/etcd/component.toml",
    "images/components/toolchain.toml",
];

struct Workspace {
    folder: tempfile::TempDir,
    image: Image,
}

/// A copy of this repository's definitions. One input at a time is written into it.
fn workspace() -> &'static Mutex<Workspace> {
    static WORKSPACE: OnceLock<Mutex<Workspace>> = OnceLock::new();
    WORKSPACE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        copy(&repository().join("images"), &folder.path().join("images"));
        copy(&repository().join("roles"), &folder.path().join("roles"));
        let image = definition::load_image(folder.path(), "ubuntu-24.04")
            .unwrap()
            .image;
        Mutex::new(Workspace { folder, image })
    })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// One file of a definition.
pub(crate) fn definition(data: &[u8]) -> bool {
    let Some((first, text)) = data.split_first() else {
        return false;
    };
    let workspace = workspace().lock().unwrap_or_else(PoisonError::into_inner);
    let (root, name) = (workspace.folder.path(), FILES[usize::from(*first) % FILES.len()]);
    let good = fs::read(root.join(name)).unwrap();
    fs::write(root.join(name), text).unwrap();
    let components = root.join("images/components");
    let known: Result<(), anyhow::Error> = match usize::from(*first) % FILES.len() {
        2 => Component::load(&components, "etcd").map(drop),
        3 => Toolchains::load(&components).map(drop),
        _ => definition::load_image(root, "ubuntu-24.04").map(drop),
    };
    fs::write(root.join(name), good).unwrap();
    // A refusal says where.
    known
        .inspect_err(|error| assert!(!format!("{error:#}").is_empty()))
        .is_ok()
}

/// The files of this repository.
pub(crate) fn definition_seeds() -> Vec<Vec<u8>> {
    let seed = |(number, name)| {
        let mut bytes = vec![number];
        bytes.extend(fs::read(repository().join(name)).unwrap());
        bytes
    };
    (0..).zip(FILES).map(seed).collect()
}

/// A lock: what is read can be written and reads the same.
pub(crate) fn lock(data: &[u8]) -> bool {
    let workspace = workspace().lock().unwrap_or_else(PoisonError::into_inner);
    fs::write(workspace.image.folder.join(locks::FILE_NAME), data).unwrap();
    let Ok(Some(lock)) = locks::load(&workspace.image) else {
        return false;
    };
    locks::write(&workspace.image, &lock).unwrap();
    assert_eq!(locks::load(&workspace.image).unwrap(), Some(lock));
    true
}

/// The beginning of this repository's lock.
pub(crate) fn lock_seeds() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(repository().join("images/ubuntu-24.04/image.lock")).unwrap();
    let parts: Vec<&str> = text.split("\n\n").collect();
    let mut kinds = Vec::new();
    let short = parts.iter().filter(|part| {
        let kind = part.lines().next().unwrap_or_default();
        kinds.push(kind.to_owned());
        kinds.iter().filter(|other| *other == kind).count() <= 2
    });
    vec![short.copied().collect::<Vec<_>>().join("\n\n").into_bytes()]
}

/// A release's manifest: what is read can be written and reads the same.
pub(crate) fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::from_json(data) else {
        return false;
    };
    let bytes = manifest.to_json().unwrap();
    assert_eq!(Manifest::from_json(&bytes).unwrap(), manifest);
    true
}

/// One with an entry in each list.
pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    vec![super::sample_manifest::sample().to_json().unwrap()]
}

/// Keys and certificates as PEM: a key that is read is written the same.
pub(crate) fn pem(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let (key, certificate) = (keys::release_public_key(text), keys::certificate_der(text));
    if let Ok(key) = key {
        assert_eq!(
            keys::release_public_key(&keys::release_public_pem(&key)).unwrap(),
            key
        );
    }
    if let Ok(der) = &certificate {
        assert_eq!(keys::certificate_der(&keys::certificate_pem(der)).unwrap(), *der);
    }
    key.is_ok() || certificate.is_ok()
}

/// A key and a certificate.
pub(crate) fn pem_seeds() -> Vec<Vec<u8>> {
    let certificate = super::boot::efi_update_seeds().swap_remove(0);
    vec![
        keys::release_public_pem(&[7; 32]).into_bytes(),
        keys::certificate_pem(&certificate).into_bytes(),
    ]
}

/// The index of a stored layer, with its right digest: what is read is written the same.
pub(crate) fn tree_index(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    bytes.extend(Digest::of(data).as_bytes());
    let Ok((entries, mtime)) = index::decode(&bytes, Path::new("/x")) else {
        return false;
    };
    // Paths and attributes can be written in several ways; what is read means the same once it is written.
    let written = index::encode(&entries, mtime).unwrap();
    let (again, _) = index::decode(&written, Path::new("/x")).unwrap();
    assert!(index::encode(&again, mtime).unwrap() == written && again.len() == entries.len());
    true
}

/// One of each kind, without the digest.
pub(crate) fn tree_index_seeds() -> Vec<Vec<u8>> {
    let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
    let mut file = Entry::bytes(0o4755, *b"content");
    file.xattrs.insert(b"user.x".to_vec(), vec![1; 20]);
    let entries = index::Entries::from([
        (TreePath::root(), Some(Entry::directory(0o755))),
        (path("a"), Some(file)),
        (path("b"), Some(Entry::symlink("a"))),
        (path("c"), None),
    ]);
    let mut bytes = index::encode(&entries, 9).unwrap();
    bytes.truncate(bytes.len() - 32);
    vec![bytes]
}

/// A vendor file, with right checksums of its tar headers, taken into a store: nothing is written outside.
pub(crate) fn vendor_file(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    let mut bytes = data.to_vec();
    mend_tar_checksums(&mut bytes);
    let imported = vendor::import(
        &MemoryFile::new(&bytes).path(),
        &store,
        &|_, _, _| Ok(()),
        &Progress::silent(),
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    imported.is_ok()
}

/// A blob and a folder.
pub(crate) fn vendor_file_seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    store.put(b"blob").unwrap();
    let request = kimage_builder::download::Request {
        name: "blob".to_owned(),
        urls: vec!["http://nowhere.invalid/x".into()],
        digest: Digest::of(b"blob"),
        size: 4,
    };
    let artifact = ("go-modules".to_owned(), Digest::of(b"go.sum"));
    let fill = |folder: &Path| {
        fs::create_dir(folder.join("a"))?;
        fs::write(folder.join("a/x"), "content")?;
        Ok(())
    };
    store.artifact_or_build(&artifact.0, &artifact.1, fill).unwrap();
    let out = folder.path().join("vendor.tar");
    vendor::write(&[request], &[artifact], &store, &out, &Progress::silent()).unwrap();
    vec![fs::read(out).unwrap()]
}
