//! Extended attributes: `struct squashfs_xattr_id`, `squashfs_xattr_entry` and `squashfs_xattr_val`.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use anyhow::{Context, Result, ensure};

use super::Reader;
use super::source::Cursor;
use crate::partitions::squashfs::format::{
    Fields, NONE_U64, Reference, XATTR_PREFIXES, XATTR_VALUE_ELSEWHERE,
};
use crate::partitions::squashfs::xattrs::VALUE_MAX;

/// Most attributes of one inode: the VFS lists no more than 64 KiB of names.
const COUNT_MAX: u32 = 4096;
/// Most bytes of all values of one inode.
const TOTAL_MAX: usize = 1 << 20;

impl<R: Read + Seek> Reader<R> {
    /// Set `number` of the table.
    pub(super) fn xattrs(&self, number: u32) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let table = self.superblock.xattr_table;
        ensure!(table != NONE_U64, "the image has no extended attributes");
        let mut header = [0; 16];
        self.source.read_at(table, &mut header)?;
        let mut header = Fields::new(&header);
        let (values, sets) = (header.u64()?, header.u32()?);
        ensure!(number < sets, "set {number} of {sets}");
        let index = table.checked_add(16).context("table is out of range")?;
        let record = self.table_record(index, number, 16)?;
        let mut record = Fields::new(&record);
        let (place, count) = (Reference::from_u64(record.u64()?)?, record.u32()?);
        ensure!(count <= COUNT_MAX, "{count} attributes");
        let mut cursor = self.source.cursor(values, place)?;
        let mut set = BTreeMap::new();
        let mut total = 0;
        for _ in 0..count {
            let (name, value) = self.pair(&mut cursor, values)?;
            total += value.len();
            ensure!(total <= TOTAL_MAX, "attributes of more than {TOTAL_MAX} bytes");
            set.insert(name, value);
        }
        Ok(set)
    }

    fn pair(&self, cursor: &mut Cursor<'_, R>, values: u64) -> Result<(Vec<u8>, Vec<u8>)> {
        let entry = cursor.take(4)?;
        let mut entry = Fields::new(&entry);
        let (kind, length) = (entry.u16()?, usize::from(entry.u16()?));
        let prefix = XATTR_PREFIXES.get(usize::from(kind & !XATTR_VALUE_ELSEWHERE));
        let prefix = prefix.with_context(|| format!("attribute of the unknown kind {kind}"))?;
        ensure!(prefix.len() + length <= 255, "attribute name of {length} bytes");
        let name = [prefix, &cursor.take(length)?[..]].concat();
        let value = value(cursor)?;
        if kind & XATTR_VALUE_ELSEWHERE == 0 {
            return Ok((name, value));
        }
        let place = Reference::from_u64(Fields::new(&value).u64()?)?;
        Ok((name, self::value(&mut self.source.cursor(values, place)?)?))
    }
}

fn value<R: Read + Seek>(cursor: &mut Cursor<'_, R>) -> Result<Vec<u8>> {
    let length = Fields::new(&cursor.take(4)?).u32()? as usize;
    ensure!(length <= VALUE_MAX, "attribute value of {length} bytes");
    cursor.take(length)
}
