//! The EFI system partition: a FAT32 filesystem with fixed ids and times, so that equal content gives equal bytes.
//!
//! Formats: Microsoft's "FAT: General Overview of On-Disk Format" 1.03 (FAT32, VFAT long names), UEFI 2.10 chapter 13.3.

mod directory;
mod reader;

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail, ensure};

pub use reader::Reader;

use directory::{Directory, Slot};

/// Bytes per sector.
const SECTOR: u64 = 512;
/// Sectors per cluster: small enough that 256 MiB have more than 65,525 clusters, below which a driver takes the
/// filesystem for FAT16.
const CLUSTER_SECTORS: u64 = 4;
const CLUSTER: u64 = SECTOR * CLUSTER_SECTORS;
/// Sectors before the first FAT: boot sector, FSInfo, and their copies at 6 and 7.
const RESERVED: u64 = 32;
/// Fewest clusters of a FAT32 filesystem.
const MIN_CLUSTERS: u64 = 65_525;
/// Last cluster of a chain.
const END: u32 = 0x0fff_ffff;
/// Cluster of the root directory.
const ROOT: u32 = 2;

/// A file of the ESP: absolute path with `/` and its content.
pub type File<'a> = (&'a str, &'a [u8]);

/// What identifies the filesystem.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of the partition, a multiple of 512.
    pub size: u64,
    /// FAT serial number.
    pub volume_id: u32,
    /// Time of all files, seconds since 1970; FAT keeps even seconds from 1980 on.
    pub epoch: u32,
}

/// Writes the filesystem from the current position of `out` on. Only what is not zero is written: `out` must be a
/// new file or hold zeros there.
pub fn write(out: &mut (impl Write + Seek), options: &Options, files: &[File<'_>]) -> Result<()> {
    let start = out.stream_position()?;
    let geometry = Geometry::new(options.size)?;
    let layout = Layout::new(&geometry, options, files)?;
    let mut at = |offset: u64, bytes: &[u8]| -> Result<()> {
        out.seek(SeekFrom::Start(start + offset))?;
        out.write_all(bytes).context("write the EFI system partition")
    };
    let boot = boot_sector(&geometry, options);
    let info = info_sector(&geometry, layout.next_free);
    for copy in [0, 6] {
        at(copy * SECTOR, &boot)?;
        at((copy + 1) * SECTOR, &info)?;
        // The third boot sector holds a signature only.
        let mut third = [0; SECTOR as usize];
        third[510..].copy_from_slice(&[0x55, 0xaa]);
        at((copy + 2) * SECTOR, &third)?;
    }
    let table: Vec<u8> = layout.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    for copy in 0..2 {
        at((RESERVED + copy * geometry.table_sectors) * SECTOR, &table)?;
    }
    for (cluster, bytes) in &layout.content {
        at(geometry.offset(*cluster), bytes)?;
    }
    Ok(())
}

/// Where things lie.
struct Geometry {
    sectors: u64,
    table_sectors: u64,
    clusters: u64,
}

impl Geometry {
    fn new(size: u64) -> Result<Self> {
        ensure!(size % SECTOR == 0, "the EFI system partition has {size} bytes, which are no whole sectors");
        let sectors = size / SECTOR;
        ensure!(u32::try_from(sectors).is_ok(), "the EFI system partition is larger than 2 TiB");
        // Each cluster takes 4 bytes in each of two tables: solve for the table, rounded up.
        let per_sector = SECTOR / 4;
        let data = sectors.saturating_sub(RESERVED);
        let table_sectors = (data + 2 * CLUSTER_SECTORS).div_ceil(per_sector * CLUSTER_SECTORS + 2);
        let clusters = data.saturating_sub(2 * table_sectors) / CLUSTER_SECTORS;
        let least = MIN_CLUSTERS * CLUSTER >> 20;
        ensure!(clusters >= MIN_CLUSTERS, "the EFI system partition is too small for FAT32: at least {} MiB", least + 2);
        Ok(Self { sectors, table_sectors, clusters })
    }

    /// Byte offset of a cluster; the first has number 2.
    fn offset(&self, cluster: u32) -> u64 {
        (RESERVED + 2 * self.table_sectors + u64::from(cluster - ROOT) * CLUSTER_SECTORS) * SECTOR
    }
}

/// Which clusters hold what.
struct Layout<'a> {
    table: Vec<u32>,
    content: Vec<(u32, std::borrow::Cow<'a, [u8]>)>,
    next_free: u32,
}

impl<'a> Layout<'a> {
    fn new(geometry: &Geometry, options: &Options, files: &[File<'a>]) -> Result<Self> {
        let mut layout = Self { table: vec![0x0fff_fff8, END], content: Vec::new(), next_free: ROOT };
        let tree = Folder::of(files)?;
        layout.folder(&tree, options, None)?;
        let used = u64::from(layout.next_free - ROOT);
        ensure!(
            used <= geometry.clusters,
            "the EFI system partition is too small: {} KiB needed, {} KiB there",
            used * CLUSTER / 1024,
            geometry.clusters * CLUSTER / 1024
        );
        Ok(layout)
    }

    /// Takes clusters for a folder, then for what is in it, and returns its first one. The root comes first and so
    /// gets cluster 2.
    fn folder(&mut self, folder: &Folder<'a>, options: &Options, parent: Option<u32>) -> Result<u32> {
        let mut directory = Directory::new(options.epoch);
        let slots = directory.slots(folder.names(), parent.is_some());
        let first = self.chain((slots as u64 * 32).div_ceil(CLUSTER).max(1));
        if let Some(parent) = parent {
            // The specification wants 0 for the root's number in `..`.
            directory.dots(first, if parent == ROOT { 0 } else { parent });
        }
        for (name, node) in &folder.nodes {
            let slot = match node {
                Node::Folder(inner) => Slot::Folder { cluster: self.folder(inner, options, Some(first))? },
                Node::File([]) => Slot::File { cluster: 0, size: 0 },
                Node::File(bytes) => {
                    let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large for FAT"))?;
                    let cluster = self.chain((bytes.len() as u64).div_ceil(CLUSTER));
                    self.content.push((cluster, std::borrow::Cow::Borrowed(bytes)));
                    Slot::File { cluster, size }
                }
            };
            directory.add(name, &slot)?;
        }
        self.content.push((first, std::borrow::Cow::Owned(directory.into_bytes())));
        Ok(first)
    }

    /// A chain of `count` neighbouring clusters.
    fn chain(&mut self, count: u64) -> u32 {
        let first = self.next_free;
        for _ in 1..count {
            self.next_free += 1;
            self.table.push(self.next_free);
        }
        self.next_free += 1;
        self.table.push(END);
        first
    }
}

enum Node<'a> {
    Folder(Folder<'a>),
    File(&'a [u8]),
}

#[derive(Default)]
struct Folder<'a> {
    nodes: BTreeMap<String, Node<'a>>,
}

impl<'a> Folder<'a> {
    fn of(files: &[File<'a>]) -> Result<Self> {
        let mut root = Self::default();
        for (path, bytes) in files {
            let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
            let Some(name) = parts.pop() else { bail!("`{path}` names no file") };
            let mut folder = &mut root;
            for part in parts {
                let node = folder.nodes.entry(part.to_owned()).or_insert_with(|| Node::Folder(Self::default()));
                folder = match node {
                    Node::Folder(inner) => inner,
                    Node::File(_) => bail!("`{path}`: `{part}` is a file"),
                };
            }
            ensure!(folder.nodes.insert(name.to_owned(), Node::File(bytes)).is_none(), "`{path}` is there twice");
        }
        Ok(root)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }
}

fn boot_sector(geometry: &Geometry, options: &Options) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    let mut put = |offset: usize, bytes: &[u8]| sector[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, b"KIMAGE  ");
    put(11, &(SECTOR as u16).to_le_bytes());
    put(13, &[CLUSTER_SECTORS as u8]);
    put(14, &(RESERVED as u16).to_le_bytes());
    put(16, &[2]);
    put(21, &[0xf8]);
    put(24, &63u16.to_le_bytes());
    put(26, &255u16.to_le_bytes());
    put(32, &(geometry.sectors as u32).to_le_bytes());
    put(36, &(geometry.table_sectors as u32).to_le_bytes());
    put(44, &ROOT.to_le_bytes());
    put(48, &1u16.to_le_bytes());
    put(50, &6u16.to_le_bytes());
    put(64, &[0x80, 0, 0x29]);
    put(67, &options.volume_id.to_le_bytes());
    put(71, b"ESP        ");
    put(82, b"FAT32   ");
    put(510, &[0x55, 0xaa]);
    sector
}

fn info_sector(geometry: &Geometry, next_free: u32) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    let free = geometry.clusters as u32 - (next_free - ROOT);
    sector[..4].copy_from_slice(b"RRaA");
    sector[484..488].copy_from_slice(b"rrAa");
    sector[488..492].copy_from_slice(&free.to_le_bytes());
    sector[492..496].copy_from_slice(&next_free.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
