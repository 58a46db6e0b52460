//! Who owns each cluster of the file. A cluster that two own, or that the file's refcounts don't know of, reads well
//! today and changes under a machine tomorrow: QEMU writes where the refcounts say that nothing is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::header::Header;
use crate::disk::sparse;

/// Owners of each cluster, counted from the tables.
pub(super) struct Owners<'a> {
    file: &'a File,
    header: Header,
    /// Length of the file.
    length: u64,
    counts: Vec<u16>,
    /// One more than those are shared between deflated clusters.
    shared: Vec<bool>,
}

impl<'a> Owners<'a> {
    /// Of a file of `length` bytes. Its first cluster belongs to the header.
    pub(super) fn new(file: &'a File, header: Header, length: u64) -> Result<Self> {
        let clusters = usize::try_from(length.div_ceil(header.cluster())).context("the file is too long")?;
        let mut owners = Self {
            file,
            header,
            length,
            counts: vec![0; clusters],
            shared: vec![false; clusters],
        };
        owners.take(0, 1, "the header")?;
        Ok(owners)
    }

    /// Gives the `length` bytes at `offset`, which begin a cluster, to `who` alone.
    pub(super) fn take(&mut self, offset: u64, length: u64, who: &str) -> Result<()> {
        ensure!(
            offset.is_multiple_of(self.header.cluster()),
            "{who} lies at byte {offset}, where no cluster begins"
        );
        for cluster in self.clusters(offset, length, who)? {
            ensure!(
                self.counts[cluster] == 0,
                "{who} lies at byte {offset}, which belongs to another"
            );
            self.counts[cluster] = 1;
        }
        Ok(())
    }

    /// Gives the `length` bytes at `offset` to a deflated cluster; others may begin or end in the same clusters.
    pub(super) fn share(&mut self, offset: u64, length: u64, who: &str) -> Result<()> {
        for cluster in self.clusters(offset, length, who)? {
            let count = &mut self.counts[cluster];
            ensure!(
                *count == 0 || self.shared[cluster],
                "{who} lies at byte {offset}, which belongs to another"
            );
            *count = count
                .checked_add(1)
                .with_context(|| format!("too many deflated clusters lie at byte {offset}"))?;
            self.shared[cluster] = true;
        }
        Ok(())
    }

    fn clusters(&self, offset: u64, length: u64, who: &str) -> Result<std::ops::Range<usize>> {
        let end = offset
            .checked_add(length)
            .filter(|_| offset < self.length)
            .with_context(|| format!("{who} lies at byte {offset}, behind the file's end"))?;
        let cluster = self.header.cluster();
        // What the last cluster lacks are zeros.
        let last = end.div_ceil(cluster).min(self.counts.len() as u64);
        Ok((offset / cluster) as usize..last as usize)
    }

    /// The file's own refcounts are these counts, and where nobody owns anything nothing is.
    pub(super) fn check(mut self) -> Result<()> {
        let blocks = self.blocks()?;
        let per_block = self.header.block_refcounts();
        let mut block = vec![0; self.header.cluster() as usize];
        for (number, place) in (0u64..).zip(blocks) {
            let first = number * per_block;
            if place == 0 {
                self.nothing_from(first, per_block)?;
                continue;
            }
            self.file
                .read_exact_at(&mut block, place)
                .with_context(|| format!("read the refcount block at byte {place}"))?;
            for (cluster, stated) in (first..).zip(block.chunks_exact(2)) {
                let stated = u16::from_be_bytes([stated[0], stated[1]]);
                let found = usize::try_from(cluster)
                    .ok()
                    .and_then(|index| self.counts.get(index))
                    .copied();
                ensure!(
                    stated == found.unwrap_or(0),
                    "cluster {cluster} of the file has {} owners, its refcount is {stated}",
                    found.unwrap_or(0)
                );
            }
        }
        self.unowned()
    }

    /// Nobody owns the `count` clusters from `first` on, as a block says that isn't there. A table may name far more of
    /// those than the file has clusters, so nothing is done for each cluster that isn't there either.
    fn nothing_from(&self, first: u64, count: u64) -> Result<()> {
        let there = self.counts.len() as u64;
        let mut range = first.min(there) as usize..first.saturating_add(count).min(there) as usize;
        let owned = range.find(|cluster| self.counts[*cluster] != 0);
        match owned {
            None => Ok(()),
            Some(cluster) => bail!(
                "cluster {cluster} of the file has {} owners, its refcount is 0",
                self.counts[cluster]
            ),
        }
    }

    /// Places of the refcount blocks, as many as the file's clusters and the table ask for; 0 where there is none.
    fn blocks(&mut self) -> Result<Vec<u64>> {
        let (offset, clusters) = self.header.refcounts;
        let length = u64::from(clusters) * self.header.cluster();
        self.take(offset, length, "the table of refcounts")?;
        ensure!(
            offset + length <= self.length,
            "the table of refcounts ends behind the file's end"
        );
        let table = read_table(self.file, offset, length / 8).context("read the table of refcounts")?;
        for place in table.iter().filter(|place| **place != 0) {
            self.take(*place, self.header.cluster(), "a refcount block")?;
        }
        let needed = (self.counts.len() as u64).div_ceil(self.header.block_refcounts());
        ensure!(
            table.len() as u64 >= needed,
            "the table of refcounts ends before the file"
        );
        Ok(table)
    }

    fn unowned(&self) -> Result<()> {
        let cluster = self.header.cluster();
        for (number, _) in (0u64..).zip(&self.counts).filter(|(_, count)| **count == 0) {
            let start = number * cluster;
            let nothing = sparse::is_zero(self.file, start, cluster.min(self.length - start))
                .context("read the file")?;
            ensure!(nothing, "bytes at {start} of the file belong to nobody");
        }
        Ok(())
    }
}

/// `entries` numbers of 64 bits at `offset`. The caller has made sure that they are within the file.
pub(super) fn read_table(file: &File, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(entries * 8)?];
    file.read_exact_at(&mut bytes, offset)?;
    let number = |entry: &[u8]| {
        entry
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    Ok(bytes.chunks_exact(8).map(number).collect())
}
