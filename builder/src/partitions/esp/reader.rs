//! Reads a FAT32 filesystem back, for verification: bounded, with every chain checked.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, ensure};

/// Deepest folder.
const MAX_DEPTH: usize = 16;
/// Most entries of all folders together.
const MAX_ENTRIES: usize = 65_536;
/// Largest file in bytes that a reader takes into memory.
const MAX_FILE: u64 = 512 << 20;

/// The files of an ESP: path (`/EFI/BOOT/BOOTX64.EFI`) -> content.
pub struct Reader {
    files: BTreeMap<String, Vec<u8>>,
}

impl Reader {
    /// Reads all files of the filesystem that begins at `start` and has `size` bytes.
    pub fn open(disk: &mut (impl Read + Seek), start: u64, size: u64) -> Result<Self> {
        let mut volume = Volume::open(disk, start, size)?;
        let mut files = BTreeMap::new();
        let root = volume.root;
        let mut entries = 0;
        volume.folder(root, "", 0, &mut entries, &mut files)?;
        Ok(Self { files })
    }

    /// Paths and contents, sorted by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
    }

    /// The content of one file.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }
}

struct Volume<'a, D> {
    disk: &'a mut D,
    start: u64,
    table: Vec<u32>,
    data: u64,
    cluster: u64,
    root: u32,
}

impl<'a, D: Read + Seek> Volume<'a, D> {
    fn open(disk: &'a mut D, start: u64, size: u64) -> Result<Self> {
        let mut boot = [0; 512];
        disk.seek(SeekFrom::Start(start))?;
        disk.read_exact(&mut boot).context("read the boot sector")?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let u32_at = |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        ensure!(boot[510..] == [0x55, 0xaa] && u16_at(11) == 512, "no FAT32 boot sector");
        let cluster = u64::from(boot[13]) * 512;
        let (reserved, tables, table_sectors) = (u16_at(14), u64::from(boot[16]), u64::from(u32_at(36)));
        ensure!(boot[13].is_power_of_two() && tables == 2 && u64::from(u32_at(32)) * 512 <= size, "bad FAT32 geometry");
        let data = (reserved + tables * table_sectors) * 512;
        ensure!(table_sectors > 0 && data < size, "the FAT is larger than the partition");
        let mut bytes = vec![0; usize::try_from(table_sectors * 512)?];
        disk.seek(SeekFrom::Start(start + reserved * 512))?;
        disk.read_exact(&mut bytes).context("read the FAT")?;
        let table = bytes.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry) & 0x0fff_ffff).collect();
        Ok(Self { disk, start, table, data, cluster, root: u32_at(44) })
    }

    /// The bytes of a chain, at most `limit`.
    fn chain(&mut self, first: u32, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        while cluster < 0x0fff_fff8 {
            ensure!(bytes.len() as u64 <= limit, "a chain of clusters is longer than its file");
            let next = *self.table.get(cluster as usize).context("a cluster is outside the filesystem")?;
            ensure!(cluster >= 2 && next != 0, "a chain of clusters runs into free space");
            let mut piece = vec![0; usize::try_from(self.cluster)?];
            self.disk.seek(SeekFrom::Start(self.start + self.data + u64::from(cluster - 2) * self.cluster))?;
            self.disk.read_exact(&mut piece).context("read a cluster")?;
            bytes.extend_from_slice(&piece);
            cluster = next;
        }
        Ok(bytes)
    }

    fn folder(
        &mut self,
        cluster: u32,
        path: &str,
        depth: usize,
        entries: &mut usize,
        files: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<()> {
        ensure!(depth <= MAX_DEPTH, "folders deeper than {MAX_DEPTH}");
        let bytes = self.chain(cluster, 32 * MAX_ENTRIES as u64)?;
        let mut long: Vec<u16> = Vec::new();
        for entry in bytes.as_chunks::<32>().0 {
            match (entry[0], entry[11]) {
                (0, _) => break,
                (0xe5, _) => continue,
                (_, 0x0f) => {
                    long = [long_units(entry), std::mem::take(&mut long)].concat();
                    ensure!(long.len() <= 260, "a long name without end");
                    continue;
                }
                _ => {}
            }
            *entries += 1;
            ensure!(*entries <= MAX_ENTRIES, "more than {MAX_ENTRIES} files");
            let name = if long.is_empty() { short_name(entry) } else { String::from_utf16_lossy(&long) };
            long.clear();
            if name == "." || name == ".." || entry[11] & 0x08 != 0 {
                continue;
            }
            let path = format!("{path}/{name}");
            let cluster = u32::from(u16::from_le_bytes([entry[20], entry[21]])) << 16
                | u32::from(u16::from_le_bytes([entry[26], entry[27]]));
            if entry[11] & 0x10 != 0 {
                self.folder(cluster, &path, depth + 1, entries, files)?;
                continue;
            }
            let size = u64::from(u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]));
            ensure!(size <= MAX_FILE, "{path} has {size} bytes, more than {MAX_FILE}");
            let mut content = if size == 0 { Vec::new() } else { self.chain(cluster, size)? };
            ensure!(content.len() as u64 >= size, "{path} is cut off");
            content.truncate(usize::try_from(size)?);
            files.insert(path, content);
        }
        Ok(())
    }
}

fn long_units(entry: &[u8; 32]) -> Vec<u16> {
    let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
    places.map(|at| u16::from_le_bytes([entry[at], entry[at + 1]])).take_while(|unit| *unit != 0 && *unit != 0xffff).collect()
}

fn short_name(entry: &[u8; 32]) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (stem, extension) = (part(&entry[..8]), part(&entry[8..11]));
    if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::{Options, write};
    use super::*;

    fn sample() -> Vec<u8> {
        let size = 160 << 20;
        let mut out = Cursor::new(vec![0; size]);
        let big = vec![7; 5000];
        let files: &[(&str, &[u8])] = &[
            ("/EFI/BOOT/BOOTX64.EFI", &big),
            ("/EFI/Linux/kimage_20261120-0123abcd+3.efi", b"uki"),
            ("/loader/loader.conf", b""),
        ];
        write(&mut out, &Options { size: size as u64, volume_id: 1, epoch: 1_795_161_600 }, files).unwrap();
        out.into_inner()
    }

    #[test]
    fn what_is_written_reads_back() {
        let bytes = sample();
        let reader = Reader::open(&mut Cursor::new(&bytes), 0, bytes.len() as u64).unwrap();
        assert_eq!(reader.get("/EFI/BOOT/BOOTX64.EFI"), Some(&[7; 5000][..]));
        assert_eq!(reader.get("/EFI/Linux/kimage_20261120-0123abcd+3.efi"), Some(&b"uki"[..]));
        assert_eq!(reader.files().count(), 3);
    }

    #[test]
    fn damaged_filesystems_are_errors_and_never_panics() {
        let good = sample();
        let end = 4 << 20;
        for at in (0..512).chain(32 * 512..33 * 512).chain((2 << 20)..(2 << 20) + 512) {
            let mut bad = good[..end].to_vec();
            bad[at] ^= 0xff;
            bad.resize(good.len(), 0);
            drop(Reader::open(&mut Cursor::new(&bad), 0, bad.len() as u64));
        }
        assert!(Reader::open(&mut Cursor::new(&good[..1000]), 0, 1000).is_err());
    }
}
