//! The list of what a vendor file holds.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};

/// The index's name in the tar.
pub(super) const NAME: &str = "kimage-vendor.json";

/// Version of the format.
pub(super) const SCHEMA: u32 = 1;

/// A Go module cache of Kubernetes has some 30 000 files at 200 bytes of index each.
pub(super) const MAX_BYTES: u64 = 256 << 20;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) schema: u32,
    pub(super) blobs: Vec<Blob>,
    pub(super) artifacts: Vec<Artifact>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Blob {
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Artifact {
    pub(super) kind: String,
    pub(super) key: Digest,
    /// Parents before children.
    pub(super) items: Vec<Item>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    /// Below the artifact's folder.
    pub(super) path: String,
    #[serde(flatten)]
    pub(super) kind: Kind,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub(super) enum Kind {
    Directory,
    Link {
        target: String,
    },
    File {
        digest: Digest,
        size: u64,
        executable: bool,
    },
}

impl Index {
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Reads an index of unknown origin: what it names stays inside its artifact's folder.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let index: Self = serde_json::from_slice(json).context("read the index")?;
        if index.schema != SCHEMA {
            bail!(
                "the index has schema {}, this kimage reads {SCHEMA}",
                index.schema
            );
        }
        for artifact in &index.artifacts {
            artifact
                .check()
                .with_context(|| format!("artifact {} {}", artifact.kind, artifact.key))?;
        }
        Ok(index)
    }

    /// Bytes of all files.
    pub(super) fn content_bytes(&self) -> u64 {
        let blobs = self.blobs.iter().map(|blob| blob.size);
        let files = self
            .artifacts
            .iter()
            .flat_map(|artifact| &artifact.items)
            .map(|item| match item.kind {
                Kind::File { size, .. } => size,
                Kind::Directory | Kind::Link { .. } => 0,
            });
        blobs.chain(files).fold(0, u64::saturating_add)
    }
}

impl Blob {
    pub(super) fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

impl Artifact {
    pub(super) fn path(&self, item: &Item) -> String {
        format!("artifacts/{}/{}/{}", self.kind, self.key, item.path)
    }

    /// Each parent is a folder listed before, and there are no links: a file that is one could be any of the host's.
    fn check(&self) -> Result<()> {
        let mut folders = BTreeSet::from([""]);
        let mut seen = BTreeSet::new();
        for Item { path, kind } in &self.items {
            let parts_fine = path
                .split('/')
                .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            if !parts_fine || !folders.contains(parent) || !seen.insert(path.as_str()) {
                bail!("the index holds the bad path `{}`", path.escape_debug());
            }
            match kind {
                Kind::Directory => drop(folders.insert(path)),
                Kind::Link { .. } => bail!(link(path)),
                Kind::File { .. } => {}
            }
        }
        Ok(())
    }
}

/// The refusal of a link: nothing that kimage writes into such a file has one.
pub(super) fn link(path: &str) -> Failure {
    let message = format!("`{}` is a link, which no artifact has", path.escape_debug());
    Failure::new(ExitCode::Mismatch, message).hint("get the file from somebody you trust")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(items: &str) -> String {
        let key = Digest::of(b"key");
        format!(r#"{{"schema":1,"blobs":[],"artifacts":[{{"kind":"go","key":"{key}","items":[{items}]}}]}}"#)
    }

    #[test]
    fn paths_that_could_leave_the_folder_are_refused() {
        let fine = r#"{"path":"a","type":"directory"},{"path":"a/b","type":"directory"}"#;
        Index::parse(index(fine).as_bytes()).unwrap();
        for bad in [
            r#"{"path":"../a","type":"directory"}"#,
            r#"{"path":"/a","type":"directory"}"#,
            r#"{"path":"","type":"directory"}"#,
            r#"{"path":"a/b","type":"directory"}"#,
            r#"{"path":"a","type":"directory"},{"path":"a","type":"link","target":"/etc"}"#,
            r#"{"path":"a","type":"link","target":"/etc"},{"path":"a/b","type":"directory"}"#,
            r#"{"path":"a","type":"link","target":""}"#,
            r#"{"path":"a","type":"link","target":"b"}"#,
            r#"{"path":"a","type":"device"}"#,
        ] {
            assert!(Index::parse(index(bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(Index::parse(index("").replace("\"schema\":1", "\"schema\":2").as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::parse(&bytes);
        }
    }
}
