//! The table of extended attributes: sets of attributes, each stored once however many inodes have it.

use std::collections::BTreeMap;
use std::io::{Seek, Write};

use anyhow::{Context, Result, bail, ensure};

use super::format::{NONE_U32, NONE_U64, XATTR_PREFIXES};
use super::metadata::{MetadataWriter, write_table_blocks};

/// Attributes of one inode by full name.
type Set = BTreeMap<Vec<u8>, Vec<u8>>;

/// Longest value (`XATTR_SIZE_MAX`, `include/uapi/linux/limits.h`).
pub(super) const VALUE_MAX: usize = 65_536;

/// Collects sets while inodes are written.
pub(super) struct XattrTable {
    known: BTreeMap<Set, u32>,
    values: MetadataWriter,
    /// `struct squashfs_xattr_id` of each set.
    records: Vec<u8>,
    level: i32,
}

impl XattrTable {
    /// An empty table, compressed at zstd `level`.
    pub(super) fn new(level: i32) -> Result<Self> {
        let values = MetadataWriter::new(level)?;
        Ok(Self {
            known: BTreeMap::new(),
            values,
            records: Vec::new(),
            level,
        })
    }

    /// The number by which an inode names `set`; no attributes have the number [`NONE_U32`].
    pub(super) fn number(&mut self, set: &Set) -> Result<u32> {
        if set.is_empty() {
            return Ok(NONE_U32);
        }
        if let Some(number) = self.known.get(set) {
            return Ok(*number);
        }
        let place = self.values.position()?;
        let mut size = 0;
        for (name, value) in set {
            self.write_pair(name, value)?;
            size += name.len() + 1 + value.len();
        }
        self.records.extend(place.to_u64().to_le_bytes());
        self.records.extend(u32::try_from(set.len())?.to_le_bytes());
        self.records.extend(u32::try_from(size)?.to_le_bytes());
        let number = u32::try_from(self.known.len())?;
        self.known.insert(set.clone(), number);
        Ok(number)
    }

    /// `struct squashfs_xattr_entry` and `struct squashfs_xattr_val`.
    fn write_pair(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let shown = name.escape_ascii();
        let mut prefixes = XATTR_PREFIXES.iter().enumerate();
        let found = prefixes.find_map(|(number, prefix)| Some((number, name.strip_prefix(*prefix)?)));
        let Some((prefix, rest)) = found else {
            bail!("squashfs has no place for the extended attribute `{shown}` (only user, trusted, security)")
        };
        ensure!(
            !rest.is_empty() && name.len() <= 255 && !name.contains(&0),
            "extended attribute `{shown}` has a bad name"
        );
        ensure!(
            value.len() <= VALUE_MAX,
            "extended attribute `{shown}` has {} bytes",
            value.len()
        );
        self.values.write(&(prefix as u16).to_le_bytes())?;
        self.values.write(&(rest.len() as u16).to_le_bytes())?;
        self.values.write(rest)?;
        self.values.write(&(value.len() as u32).to_le_bytes())?;
        self.values.write(value)
    }

    /// Writes the table at the end of `out`; returns where its index begins, [`NONE_U64`] when there is nothing. The
    /// kernel wants it to be the last thing in the filesystem.
    pub(super) fn write(self, out: &mut (impl Write + Seek)) -> Result<u64> {
        if self.known.is_empty() {
            return Ok(NONE_U64);
        }
        let values_start = out.stream_position()?;
        let (values, _) = self.values.finish()?;
        out.write_all(&values).context("write extended attributes")?;
        let index = write_table_blocks(out, &self.records, self.level)?;
        let position = out.stream_position()?;
        out.write_all(&values_start.to_le_bytes())?;
        out.write_all(&u32::try_from(self.known.len())?.to_le_bytes())?;
        out.write_all(&[0; 4])?;
        out.write_all(&index)?;
        Ok(position)
    }
}
