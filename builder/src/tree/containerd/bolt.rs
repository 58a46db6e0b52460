//! Writes bbolt database files (`go.etcd.io/bbolt`, `internal/common/{page,meta,bucket}.go`), the same bytes for the
//! same content.
//!
//! Every bucket is one leaf page, with overflow pages where it is long: a shape that bbolt makes only in passing, but
//! reads like any other and splits when it next changes the bucket.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

const PAGE: usize = 4096;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

const LEAF_FLAG: u16 = 0x02;
const META_FLAG: u16 = 0x04;
const FREELIST_FLAG: u16 = 0x10;
const BUCKET_ENTRY: u32 = 0x01;

const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;

/// Two meta pages and the free list come first.
const FIRST_PAGE: u64 = 3;

/// Longest key that bbolt takes (`bbolt.MaxKeySize`).
const MAX_KEY: usize = 32_768;

/// A bucket: keys with values and buckets.
#[derive(Debug, Clone, Default)]
pub(super) struct Bucket {
    /// The number that `NextSequence` gave last.
    pub(super) sequence: u64,
    items: BTreeMap<Vec<u8>, Item>,
}

#[derive(Debug, Clone)]
enum Item {
    Value(Vec<u8>),
    Bucket(Bucket),
}

impl Bucket {
    /// Sets `key` to `value`.
    pub(super) fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.items.insert(key.into(), Item::Value(value.into()));
    }

    /// Makes `bucket` the bucket at `key`.
    pub(super) fn nest(&mut self, key: &str, bucket: Self) {
        self.items.insert(key.into(), Item::Bucket(bucket));
    }

    /// Makes a bucket of values at `key`, unless there are none.
    pub(super) fn nest_values<'a>(
        &mut self,
        key: &str,
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let mut bucket = Self::default();
        for (name, value) in values {
            bucket.put(name, value);
        }
        if !bucket.items.is_empty() {
            self.nest(key, bucket);
        }
    }

    /// Whether bbolt would keep it in its parent's page (`Bucket.inlineable`).
    fn is_inline(&self) -> bool {
        let sizes = self.items.iter().map(|(key, item)| match item {
            Item::Value(value) => Some(ELEMENT + key.len() + value.len()),
            Item::Bucket(_) => None,
        });
        sizes
            .sum::<Option<usize>>()
            .is_some_and(|size| PAGE_HEADER + size <= PAGE / 4)
    }
}

/// The file that holds `root`'s content.
pub(super) fn database(root: &Bucket) -> Result<Vec<u8>> {
    let mut pages = Pages(vec![0; FIRST_PAGE as usize * PAGE]);
    let root_page = pages.write(root)?;
    let end = (pages.0.len() / PAGE) as u64;
    let freelist = page_header(2, FREELIST_FLAG, 0, 0);
    pages.0[2 * PAGE..][..PAGE_HEADER].copy_from_slice(&freelist);
    for transaction in 0..2 {
        let meta = meta_page(transaction, root_page, end);
        pages.0[transaction as usize * PAGE..][..meta.len()].copy_from_slice(&meta);
    }
    Ok(pages.0)
}

struct Pages(Vec<u8>);

impl Pages {
    /// Writes `bucket` and the buckets in it; returns the number of its page.
    fn write(&mut self, bucket: &Bucket) -> Result<u64> {
        let mut elements = Vec::with_capacity(bucket.items.len());
        for (key, item) in &bucket.items {
            if key.is_empty() || key.len() > MAX_KEY {
                bail!("a database key of {} bytes is not possible", key.len());
            }
            let (flags, value) = match item {
                Item::Value(value) => (0, value.clone()),
                Item::Bucket(inner) => (BUCKET_ENTRY, self.write_nested(inner)?),
            };
            elements.push((flags, key.as_slice(), value));
        }
        let number = (self.0.len() / PAGE) as u64;
        let mut page = leaf(&elements)?;
        let length = page.len().next_multiple_of(PAGE);
        let overflow = u32::try_from(length / PAGE - 1)?;
        page[..PAGE_HEADER].copy_from_slice(&page_header(number, LEAF_FLAG, count(&elements)?, overflow));
        page.resize(length, 0);
        self.0.append(&mut page);
        Ok(number)
    }

    /// The value that stands for a bucket in its parent: page (0 for a page that follows inline) and sequence.
    fn write_nested(&mut self, bucket: &Bucket) -> Result<Vec<u8>> {
        if !bucket.is_inline() {
            let page = self.write(bucket)?;
            return Ok([page.to_le_bytes(), bucket.sequence.to_le_bytes()].concat());
        }
        let elements: Vec<_> = bucket
            .items
            .iter()
            .filter_map(|(key, item)| match item {
                Item::Value(value) => Some((0, key.as_slice(), value.clone())),
                Item::Bucket(_) => None,
            })
            .collect();
        let header = [0, bucket.sequence].map(u64::to_le_bytes).concat();
        Ok([header, leaf(&elements)?].concat())
    }
}

fn count(elements: &[(u32, &[u8], Vec<u8>)]) -> Result<u16> {
    Ok(u16::try_from(elements.len())?)
}

/// A leaf page with number 0, not padded: header, elements, then keys and values.
fn leaf(elements: &[(u32, &[u8], Vec<u8>)]) -> Result<Vec<u8>> {
    let mut page = page_header(0, LEAF_FLAG, count(elements)?, 0).to_vec();
    let mut data = Vec::new();
    for (index, (flags, key, value)) in elements.iter().enumerate() {
        // The position counts from the element itself.
        let position = (elements.len() - index) * ELEMENT + data.len();
        for number in [
            *flags,
            u32::try_from(position)?,
            u32::try_from(key.len())?,
            u32::try_from(value.len())?,
        ] {
            page.extend(number.to_le_bytes());
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    page.append(&mut data);
    Ok(page)
}

fn page_header(number: u64, flags: u16, count: u16, overflow: u32) -> [u8; PAGE_HEADER] {
    let mut header = [0; PAGE_HEADER];
    header[..8].copy_from_slice(&number.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    header[10..12].copy_from_slice(&count.to_le_bytes());
    header[12..].copy_from_slice(&overflow.to_le_bytes());
    header
}

fn meta_page(transaction: u64, root: u64, end: u64) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    for number in [MAGIC, VERSION, PAGE as u32, 0] {
        meta.extend(number.to_le_bytes());
    }
    // Root bucket (page, sequence), free list's page, number of pages, transaction.
    for number in [root, 0, 2, end, transaction] {
        meta.extend(number.to_le_bytes());
    }
    let checksum = fnv1a(&meta);
    meta.extend(checksum.to_le_bytes());
    [page_header(transaction, META_FLAG, 0, 0).as_slice(), &meta].concat()
}

/// FNV-1a with 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // http://www.isthe.com/chongo/tech/comp/fnv/: test vectors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn small_buckets_are_inline_and_large_ones_overflow() {
        let mut small = Bucket::default();
        small.put("key", vec![1; 100]);
        assert!(small.is_inline());
        let mut root = Bucket::default();
        root.nest("small", small);
        assert_eq!(database(&root).unwrap().len(), 4 * PAGE);
        let mut large = Bucket::default();
        for index in 0..100 {
            large.put(&format!("key {index}"), vec![1; 100]);
        }
        assert!(!large.is_inline());
        root.nest("large", large);
        // 100 * (16 + up to 6 + 100) bytes are three pages; the root is a fourth.
        assert_eq!(database(&root).unwrap().len(), (3 + 3 + 1) * PAGE);
    }

    #[test]
    fn an_impossible_key_is_refused() {
        let mut bucket = Bucket::default();
        bucket.put("", b"value");
        assert!(database(&bucket).is_err());
    }
}
