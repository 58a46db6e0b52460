//! containerd's store as the image carries it, read-only: the builder lays it down, first boot seeds `/var` from it.

/// Where it lies in the image.
pub const STORE: &str = "/usr/lib/kimage/containerd";

/// File in it with the name of this store: hex digits of a digest over all of it, and a line's end.
pub const STAMP: &str = "digest";

/// Longest name that a reader accepts.
pub const MAX_NAME: usize = 64;

/// Folders of containerd's plug-ins below its root.
pub const CONTENT: &str = "io.containerd.content.v1.content";
/// See [`CONTENT`].
pub const METADATA: &str = "io.containerd.metadata.v1.bolt";
/// See [`CONTENT`].
pub const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.overlayfs";

/// Folder of [`SNAPSHOTTER`] whose entries are not copied: links lead to those of the image.
pub const SNAPSHOTS: &str = "snapshots";
