//! The content of containerd's two databases.

use super::Built;
use super::bolt::Bucket;
use crate::digest::Digest;

/// The namespace of the kubelet's images.
const NAMESPACE: &str = "k8s.io";
const SNAPSHOTTER: &str = "overlayfs";

/// `dbVersion` of `core/metadata/db.go`.
const SCHEMA_VERSION: i64 = 4;

/// `snapshots.KindCommitted`.
const COMMITTED: u8 = 3;

/// What the CRI plug-in puts on images that it manages, and on those that it must not collect.
const IMAGE_LABELS: [(&str, &str); 2] = [
    ("io.cri-containerd.image", "managed"),
    ("io.cri-containerd.pinned", "pinned"),
];

/// `meta.db`: images, blobs and snapshot names (`core/metadata/buckets.go`).
pub(super) fn metadata(images: &[Built<'_>], mtime: u32) -> Bucket {
    let (mut references, mut blobs, mut snapshots) =
        (Bucket::default(), Bucket::default(), Bucket::default());
    for image in images {
        let manifest = format!("sha256:{}", Digest::of(&image.blobs.manifest));
        let config = format!("sha256:{}", Digest::of(&image.blobs.config));
        let layer = format!("sha256:{}", image.blobs.layer);
        let repository = image
            .reference
            .rsplit_once(':')
            .map_or(image.reference, |(repository, _)| repository);
        // The names under which the CRI plug-in registers an image that it has pulled.
        for name in [image.reference, &format!("{repository}@{manifest}"), &config] {
            references.nest(name, image_record(image, &manifest, mtime));
        }
        let source = repository
            .split_once('/')
            .map(|(host, name)| (format!("containerd.io/distribution.source.{host}"), name));
        let source = source.iter().map(|(key, name)| (key.as_str(), *name));
        let manifest_labels = source
            .clone()
            .chain([("containerd.io/gc.ref.content.config", config.as_str())]);
        blobs.nest(
            &manifest,
            blob_record(&image.blobs.manifest, manifest_labels, mtime),
        );
        let snapshot_reference = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
        let config_labels = source.chain([(snapshot_reference.as_str(), layer.as_str())]);
        blobs.nest(&config, blob_record(&image.blobs.config, config_labels, mtime));
        let mut snapshot = Bucket::default();
        snapshot.put("name", snapshot_name(image));
        stamp(&mut snapshot, mtime);
        snapshot.nest_values("labels", [("containerd.io/snapshot.ref", layer.as_str())]);
        snapshots.nest(&layer, snapshot);
        snapshots.sequence = snapshots.sequence.max(image.snapshot);
    }
    let mut content = Bucket::default();
    content.nest("blob", blobs);
    let mut snapshotters = Bucket::default();
    snapshotters.nest(SNAPSHOTTER, snapshots);
    let mut namespace = Bucket::default();
    namespace.nest("images", references);
    namespace.nest("content", content);
    namespace.nest("snapshots", snapshotters);
    // Without it the namespace is there but not listed.
    namespace.nest("labels", Bucket::default());
    let mut schema = Bucket::default();
    schema.put("version", varint(SCHEMA_VERSION));
    schema.nest(NAMESPACE, namespace);
    let mut root = Bucket::default();
    root.nest("v1", schema);
    root
}

/// `metadata.db` of the overlay snapshotter (`core/snapshots/storage/bolt.go`).
pub(super) fn snapshots(images: &[Built<'_>], mtime: u32) -> Bucket {
    let mut snapshots = Bucket::default();
    for image in images {
        let layer = format!("sha256:{}", image.blobs.layer);
        let mut snapshot = Bucket::default();
        snapshot.put("id", uvarint(image.snapshot));
        snapshot.put("kind", [COMMITTED]);
        snapshot.put("inodes", varint(image.layer.len() as i64 + 1));
        snapshot.put(
            "size",
            varint(i64::try_from(image.blobs.unpacked_size).unwrap_or(i64::MAX)),
        );
        stamp(&mut snapshot, mtime);
        snapshot.nest_values("labels", [("containerd.io/snapshot.ref", layer.as_str())]);
        snapshots.nest(&snapshot_name(image), snapshot);
        snapshots.sequence = snapshots.sequence.max(image.snapshot);
    }
    let mut version = Bucket::default();
    version.nest("snapshots", snapshots);
    version.nest("parents", Bucket::default());
    let mut root = Bucket::default();
    root.nest("v1", version);
    root
}

/// The name under which `meta.db` knows a snapshot in the snapshotter (`createKey` in `core/metadata/snapshot.go`).
fn snapshot_name(image: &Built<'_>) -> String {
    format!("{NAMESPACE}/{}/sha256:{}", image.snapshot, image.blobs.layer)
}

fn image_record(image: &Built<'_>, manifest: &str, mtime: u32) -> Bucket {
    let mut target = Bucket::default();
    target.put("digest", manifest);
    target.put("mediatype", super::oci::MANIFEST_TYPE);
    target.put("size", varint(image.blobs.manifest.len() as i64));
    let mut record = Bucket::default();
    record.nest("target", target);
    record.nest_values("labels", IMAGE_LABELS);
    stamp(&mut record, mtime);
    record
}

fn blob_record<'a>(blob: &[u8], labels: impl IntoIterator<Item = (&'a str, &'a str)>, mtime: u32) -> Bucket {
    let mut record = Bucket::default();
    record.put("size", varint(blob.len() as i64));
    record.nest_values("labels", labels);
    stamp(&mut record, mtime);
    record
}

fn stamp(bucket: &mut Bucket, mtime: u32) {
    bucket.put("createdat", time(mtime));
    bucket.put("updatedat", time(mtime));
}

/// A UTC time as Go's `time.Time.MarshalBinary` writes it: version 1, seconds since year 1, nanoseconds, and -1 for
/// UTC, big-endian.
fn time(seconds: u32) -> Vec<u8> {
    const YEAR_1_TO_1970: i64 = 62_135_596_800;
    let mut bytes = vec![1];
    bytes.extend((YEAR_1_TO_1970 + i64::from(seconds)).to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

/// Go's `binary.PutUvarint`.
fn uvarint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Go's `binary.PutVarint`: zigzag.
fn varint(value: i64) -> Vec<u8> {
    uvarint(((value << 1) ^ (value >> 63)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_as_go_writes_them() {
        assert_eq!(uvarint(300), [0xac, 0x02]);
        assert_eq!(varint(4), [8]);
        assert_eq!(varint(-1), [1]);
        assert_eq!(varint(64), [0x80, 0x01]);
        // time.Unix(0, 0).UTC().MarshalBinary()
        assert_eq!(
            time(0),
            [1, 0, 0, 0, 0x0e, 0x77, 0x91, 0xf7, 0, 0, 0, 0, 0, 0xff, 0xff]
        );
    }
}
