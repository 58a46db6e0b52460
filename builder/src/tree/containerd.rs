//! OCI images, unpacked into containerd's store while the image is built: nothing is imported at boot.
//!
//! The store has a read-only part under verity ([`STORE`]) and a part that containerd writes. `kimage-firstboot
//! containers` seeds the second from the first before containerd starts: the two databases and the few kilobytes of
//! manifests are copied, the snapshots are links into the read-only part. The seeded folder is named by the store's
//! digest, see `firstboot/src/containers.rs`.
//!
//! Layout and schema are those of containerd 2.x: content store, `core/metadata/buckets.go` (schema `v1`, version 4),
//! `core/snapshots/storage/bolt.go`. The blob of the layer is left out, as after a pull with
//! `discard_unpacked_layers`.

mod bolt;
mod metadata;
mod oci;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use kimage_roles::containers::{CONTENT, METADATA, SNAPSHOTTER, STAMP};

use crate::digest::{Digest, Hasher};
use crate::tree::{Entry, Kind, TreePath};

/// The read-only part of the store in the image.
pub const STORE: &str = "usr/lib/kimage/containerd";

/// What lets containerd wait for its store, and not start without it.
const DROP_IN: &str = "usr/lib/systemd/system/containerd.service.d/10-kimage-store.conf";
const DEPENDENCY: &str = "\
[Unit]
Requires=kimage-containers.service
After=kimage-containers.service
";

/// One OCI image with one layer.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full name with tag (`registry.k8s.io/coredns/coredns:v1.14.7`).
    pub reference: String,
    /// How its containers run.
    pub config: Config,
    /// Its root filesystem; missing parent folders are made with mode 0755.
    pub files: Vec<(TreePath, Entry)>,
}

/// The `config` of an OCI image (image-spec `config.md`); what is empty is left out.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    pub command: Vec<String>,
    /// `user`, `uid` or `uid:gid`.
    pub user: String,
    /// `NAME=value` each.
    pub environment: Vec<String>,
    /// Working directory.
    pub working_directory: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image with its derived JSON documents and digests.
struct Built<'a> {
    reference: &'a str,
    /// Folder number of the snapshot, from 1.
    snapshot: u64,
    layer: BTreeMap<TreePath, Entry>,
    blobs: oci::Blobs,
}

/// The tree entries of a store that holds `images`, parents before children. All times in it are `mtime` (seconds
/// since 1970).
pub fn store(images: &[Image], mtime: u32) -> Result<Vec<(TreePath, Entry)>> {
    let mut references = BTreeSet::new();
    let mut built: Vec<Built<'_>> = Vec::new();
    let mut sorted: Vec<&Image> = images.iter().collect();
    sorted.sort_by(|one, other| one.reference.cmp(&other.reference));
    for image in sorted {
        let reference = image.reference.as_str();
        oci::check_reference(reference)?;
        if !references.insert(reference) {
            bail!("OCI image {reference} is given twice");
        }
        let layer = complete(&image.files).with_context(|| format!("OCI image {reference}"))?;
        let blobs =
            oci::blobs(&image.config, &layer, mtime).with_context(|| format!("OCI image {reference}"))?;
        // Images with the same layer share its snapshot.
        let known = built
            .iter()
            .find(|other| other.blobs.layer == blobs.layer)
            .map(|other| other.snapshot);
        let next = built.iter().map(|other| other.snapshot).max().unwrap_or(0) + 1;
        built.push(Built {
            reference,
            snapshot: known.unwrap_or(next),
            layer,
            blobs,
        });
    }
    let mut entries = Entries::default();
    place(&built, mtime, &mut entries)?;
    let name = format!("{}\n", entries.digest().short());
    entries.put(
        &format!("{STORE}/{STAMP}"),
        Entry::bytes(0o444, name.into_bytes()),
    )?;
    entries.put(DROP_IN, Entry::bytes(0o644, DEPENDENCY.as_bytes()))?;
    Ok(entries.0.into_iter().collect())
}

/// `files` by path, with parents.
fn complete(files: &[(TreePath, Entry)]) -> Result<BTreeMap<TreePath, Entry>> {
    let mut layer = Entries::default();
    for (path, entry) in files {
        if layer
            .0
            .get(path)
            .is_some_and(|before| !matches!((&before.kind, &entry.kind), (Kind::Directory, Kind::Directory)))
        {
            bail!("{path} is given twice");
        }
        layer.add(path.clone(), entry.clone())?;
    }
    Ok(layer.0)
}

fn place(built: &[Built<'_>], mtime: u32, entries: &mut Entries) -> Result<()> {
    for image in built {
        for blob in [&image.blobs.config, &image.blobs.manifest] {
            let path = format!("{STORE}/{CONTENT}/blobs/sha256/{}", Digest::of(blob));
            entries.put(&path, Entry::bytes(0o444, blob.clone()))?;
        }
        let root =
            TreePath::parse(format!("{STORE}/{SNAPSHOTTER}/snapshots/{}/fs", image.snapshot).as_bytes())?;
        entries.add(root.clone(), Entry::directory(0o755))?;
        for (path, entry) in &image.layer {
            let path = path
                .parts()
                .iter()
                .fold(root.clone(), |path, part| path.join(part));
            entries.add(path, entry.clone())?;
        }
    }
    let meta = bolt::database(&metadata::metadata(built, mtime))?;
    entries.put(&format!("{STORE}/{METADATA}/meta.db"), Entry::bytes(0o600, meta))?;
    let snapshots = bolt::database(&metadata::snapshots(built, mtime))?;
    entries.put(
        &format!("{STORE}/{SNAPSHOTTER}/metadata.db"),
        Entry::bytes(0o600, snapshots),
    )
}

/// Entries under construction, each with its parents.
#[derive(Default)]
struct Entries(BTreeMap<TreePath, Entry>);

impl Entries {
    fn put(&mut self, path: &str, entry: Entry) -> Result<()> {
        self.add(TreePath::parse(path.as_bytes())?, entry)
    }

    fn add(&mut self, path: TreePath, entry: Entry) -> Result<()> {
        let mut parent = path.parent();
        while let Some(folder) = parent {
            match self.0.get(&folder).map(|entry| &entry.kind) {
                Some(Kind::Directory) => break,
                Some(_) => bail!("{path}: {folder} is not a directory"),
                None if folder.parts().is_empty() => break,
                None => self.0.insert(folder.clone(), Entry::directory(0o755)),
            };
            parent = folder.parent();
        }
        // Of two images with one snapshot the second changes nothing.
        self.0.insert(path, entry);
        Ok(())
    }

    /// A digest of everything that containerd can see.
    fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        for (path, entry) in &self.0 {
            hasher.field(&path.to_bytes()).field(&entry.mode.to_le_bytes());
            hasher
                .field(&entry.uid.to_le_bytes())
                .field(&entry.gid.to_le_bytes());
            match &entry.kind {
                Kind::Directory => hasher.field(b"d"),
                Kind::File { digest, .. } => hasher.field(b"f").field(digest.as_bytes()),
                Kind::Symlink(target) => hasher.field(b"l").field(target),
                Kind::CharacterDevice { major, minor } => hasher
                    .field(b"c")
                    .field(&major.to_le_bytes())
                    .field(&minor.to_le_bytes()),
                Kind::Fifo => hasher.field(b"p"),
            };
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text.as_bytes()).unwrap()
    }

    fn image(reference: &str, byte: u8) -> Image {
        let config = Config {
            entrypoint: vec!["/app".into()],
            ..Config::default()
        };
        Image {
            reference: reference.into(),
            config,
            files: vec![(path("bin/app"), Entry::bytes(0o755, vec![byte; 10]))],
        }
    }

    #[test]
    fn a_store_does_not_depend_on_the_order_of_its_images() {
        let (one, two) = (image("example.org/one:v1", 1), image("example.org/two:v1", 2));
        let show = |images: &[Image]| format!("{:?}", store(images, 7).unwrap());
        assert_eq!(show(&[one.clone(), two.clone()]), show(&[two, one]));
    }

    #[test]
    fn images_with_one_layer_share_a_snapshot_and_parents_come_first() {
        let entries = store(
            &[image("example.org/one:v1", 1), image("example.org/two:v1", 1)],
            7,
        )
        .unwrap();
        let snapshots: Vec<_> = entries
            .iter()
            .filter(|(path, _)| path.name() == Some(b"app"))
            .collect();
        assert_eq!(snapshots.len(), 1);
        let mut seen = BTreeSet::from([TreePath::root()]);
        for (path, _) in &entries {
            assert!(seen.contains(&path.parent().unwrap()), "{path}");
            seen.insert(path.clone());
        }
    }

    #[test]
    fn a_changed_file_changes_the_stores_name() {
        let seed = |byte| {
            let entries = store(&[image("example.org/one:v1", byte)], 7).unwrap();
            let (_, entry) = entries
                .into_iter()
                .find(|(path, _)| path.name() == Some(STAMP.as_bytes()))
                .unwrap();
            let Kind::File { digest, .. } = entry.kind else {
                panic!("not a file")
            };
            digest
        };
        assert_ne!(seed(1), seed(2));
    }

    #[test]
    fn first_boot_looks_where_the_store_is() {
        assert_eq!(format!("/{STORE}"), kimage_roles::containers::STORE);
    }

    #[test]
    fn wrong_images_are_refused() {
        for reference in [
            "",
            "no-tag.example/x",
            "a b:c",
            "x:",
            "example.org/x@sha256:00",
            "nginx:1",
        ] {
            assert!(store(&[image(reference, 1)], 7).is_err(), "{reference}");
        }
        let twice = image("example.org/one:v1", 1);
        assert!(store(&[twice.clone(), twice], 7).is_err());
        let mut clash = image("example.org/one:v1", 1);
        clash.files.push((path("bin/app/x"), Entry::bytes(0o644, vec![])));
        assert!(store(&[clash], 7).is_err());
    }
}
