//! Folders and files, and the clusters they get.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::{
    ATTRIBUTE_ARCHIVE, ATTRIBUTE_DIRECTORY, ATTRIBUTE_LABEL, CLUSTER, DosTime, END_OF_CHAIN, ENTRY, EspFile,
    LABEL, ROOT_CLUSTER, names,
};

enum Node<'a> {
    Directory(BTreeMap<&'a str, Node<'a>>),
    File(&'a [u8]),
}

/// The files of a partition as a tree, sorted by name.
pub(super) struct Tree<'a> {
    root: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(files: &[EspFile<'a>]) -> Result<Self> {
        let mut tree = Self {
            root: BTreeMap::new(),
        };
        for file in files {
            tree.insert(file)
                .with_context(|| format!("boot partition file {}", file.path))?;
        }
        Ok(tree)
    }

    fn insert(&mut self, file: &EspFile<'a>) -> Result<()> {
        let (folders, name) = match file.path.rsplit_once('/') {
            Some((folders, name)) => (Some(folders), name),
            None => (None, file.path),
        };
        let mut place = &mut self.root;
        for folder in folders.into_iter().flat_map(|folders| folders.split('/')) {
            names::check(folder)?;
            let Node::Directory(next) = place
                .entry(folder)
                .or_insert_with(|| Node::Directory(BTreeMap::new()))
            else {
                bail!("`{folder}` is a file and a folder");
            };
            place = next;
        }
        names::check(name)?;
        ensure!(
            place.insert(name, Node::File(file.data)).is_none(),
            "it is given twice"
        );
        Ok(())
    }

    pub(super) fn lay_out(&self, time: DosTime, clusters: u64) -> Result<Layout<'a>> {
        let mut layout = Layout {
            time,
            next: ROOT_CLUSTER,
            limit: clusters,
            table: Vec::new(),
            extents: Vec::new(),
        };
        layout.table.extend([0x0fff_fff8, END_OF_CHAIN]);
        layout.directory(&self.root, None)?;
        Ok(layout)
    }
}

/// Clusters with their content and the chains between them.
pub(super) struct Layout<'a> {
    time: DosTime,
    next: u32,
    limit: u64,
    table: Vec<u32>,
    extents: Vec<(u32, Cow<'a, [u8]>)>,
}

impl<'a> Layout<'a> {
    /// Clusters in use.
    pub(super) fn used(&self) -> u32 {
        self.next - ROOT_CLUSTER
    }

    /// The file allocation table up to the last entry in use.
    pub(super) fn table(&self) -> Vec<u8> {
        self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }

    /// First cluster and bytes of everything with content.
    pub(super) fn extents(&self) -> impl Iterator<Item = &(u32, Cow<'a, [u8]>)> {
        self.extents.iter()
    }

    /// Clusters in a row for `length` bytes; returns the first one, zero for nothing.
    fn allocate(&mut self, length: usize) -> Result<u32> {
        let count = (length as u64).div_ceil(CLUSTER);
        if count == 0 {
            return Ok(0);
        }
        ensure!(
            u64::from(self.used()) + count <= self.limit,
            "the files do not fit into the boot partition"
        );
        let first = self.next;
        self.next += count as u32;
        self.table.extend(first + 1..self.next);
        self.table.push(END_OF_CHAIN);
        Ok(first)
    }

    /// Lays out a folder; `parent` is its parent's first cluster, absent for the root. Returns its first cluster.
    fn directory(&mut self, children: &BTreeMap<&'a str, Node<'a>>, parent: Option<u32>) -> Result<u32> {
        let mut taken = BTreeSet::new();
        let mut folded = BTreeSet::new();
        let mut entries = Vec::new();
        let mut length = ENTRY * if parent.is_some() { 2 } else { 1 };
        for (name, node) in children {
            ensure!(
                folded.insert(name.to_ascii_lowercase()),
                "two names differ from `{name}` in case only"
            );
            let short = names::short(name, &mut taken)?;
            let long = names::long_entries(name, &short);
            length += long.len() + ENTRY;
            entries.push((long, short, node));
        }
        let first = self.allocate(length)?;
        let mut bytes = Vec::with_capacity(length);
        match parent {
            None => bytes.extend(self.entry(LABEL, ATTRIBUTE_LABEL, 0, 0)),
            Some(parent) => {
                bytes.extend(self.entry(b".          ", ATTRIBUTE_DIRECTORY, first, 0));
                // The root counts as cluster 0 here.
                let parent = if parent == ROOT_CLUSTER { 0 } else { parent };
                bytes.extend(self.entry(b"..         ", ATTRIBUTE_DIRECTORY, parent, 0));
            }
        }
        for (long, short, node) in entries {
            let (attribute, cluster, size) = match node {
                Node::Directory(children) => (ATTRIBUTE_DIRECTORY, self.directory(children, Some(first))?, 0),
                Node::File(data) => {
                    let size =
                        u32::try_from(data.len()).context("a file of the boot partition exceeds 4 GiB")?;
                    let cluster = self.allocate(data.len())?;
                    self.extents
                        .push((cluster.max(ROOT_CLUSTER), Cow::Borrowed(*data)));
                    (ATTRIBUTE_ARCHIVE, cluster, size)
                }
            };
            bytes.extend(long);
            bytes.extend(self.entry(&short, attribute, cluster, size));
        }
        self.extents.push((first, Cow::Owned(bytes)));
        Ok(first)
    }

    fn entry(&self, short: &[u8; 11], attribute: u8, cluster: u32, size: u32) -> [u8; ENTRY] {
        let DosTime { date, time } = self.time;
        let mut entry = [0; ENTRY];
        entry[..11].copy_from_slice(short);
        entry[11] = attribute;
        for (place, value) in [
            (14, time),
            (16, date),
            (18, date),
            (20, (cluster >> 16) as u16),
            (22, time),
            (24, date),
        ] {
            entry[place..place + 2].copy_from_slice(&value.to_le_bytes());
        }
        entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
        entry[28..].copy_from_slice(&size.to_le_bytes());
        entry
    }
}
