//! The EFI system partition: a FAT32 filesystem, written and read in process.
//!
//! Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03. The writer takes no time from a clock and lays
//! files out in the order of their paths, so equal files give equal bytes.

mod names;
mod read;
mod tree;

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use jiff::tz::TimeZone;

pub use read::Esp;
use tree::Tree;

/// Bytes of the partition: room for two UKIs and more, and enough clusters to be FAT32 by definition.
pub const SIZE: u64 = 256 << 20;

const SECTOR: u64 = 512;
/// Two KiB: with larger clusters 256 MiB would be too few of them for FAT32.
const SECTORS_PER_CLUSTER: u64 = 4;
const CLUSTER: u64 = SECTOR * SECTORS_PER_CLUSTER;
const RESERVED_SECTORS: u64 = 32;
const FSINFO_SECTOR: u64 = 1;
const BACKUP_SECTOR: u64 = 6;
/// Fewer clusters make a FAT16 by definition, whatever the boot sector says.
const MIN_CLUSTERS: u64 = 65_525;
const ROOT_CLUSTER: u32 = 2;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const LABEL: &[u8; 11] = b"ESP        ";

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
const ENTRY: usize = 32;

/// One file of the partition.
#[derive(Debug, Clone, Copy)]
pub struct EspFile<'a> {
    /// Path with slashes, from the root: `EFI/Linux/kimage_1+3.efi`.
    pub path: &'a str,
    /// Its bytes.
    pub data: &'a [u8],
}

/// What of the filesystem is not its files.
#[derive(Debug, Clone, Copy)]
pub struct Parameters {
    /// Bytes of the partition, a multiple of 1 MiB.
    pub size: u64,
    /// Volume serial number.
    pub volume_id: u32,
    /// Modification time of every file, seconds since 1970-01-01 UTC. FAT knows 1980 to 2107, in steps of two seconds.
    pub epoch: i64,
}

/// Writes the filesystem into `out` from byte `offset` on. That range must read as zeros before: only bytes that are
/// not zero are written, so holes of a sparse file stay.
pub fn write(out: &File, offset: u64, parameters: &Parameters, files: &[EspFile<'_>]) -> Result<()> {
    let geometry = Geometry::new(parameters.size)?;
    let tree = Tree::new(files)?;
    let time = DosTime::new(parameters.epoch)?;
    let layout = tree.lay_out(time, geometry.clusters)?;
    let put = |place: u64, bytes: &[u8]| {
        out.write_all_at(bytes, offset + place)
            .context("write boot partition")
    };

    let boot = boot_sector(&geometry, parameters.volume_id);
    let info = fsinfo_sector(&geometry, layout.used());
    for start in [0, BACKUP_SECTOR] {
        put(start * SECTOR, &boot)?;
        put((start + FSINFO_SECTOR) * SECTOR, &info)?;
    }
    let table = layout.table();
    for copy in 0..2 {
        put((RESERVED_SECTORS + copy * geometry.fat_sectors) * SECTOR, &table)?;
    }
    for (cluster, data) in layout.extents() {
        put(geometry.cluster_offset(*cluster), data)?;
    }
    Ok(())
}

/// Where the parts of the filesystem stand.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    sectors: u64,
    fat_sectors: u64,
    /// Data clusters; they are numbered from 2.
    clusters: u64,
}

impl Geometry {
    fn new(size: u64) -> Result<Self> {
        ensure!(
            size.is_multiple_of(1 << 20),
            "boot partition of {size} bytes is not a multiple of 1 MiB"
        );
        let sectors = size / SECTOR;
        ensure!(
            u32::try_from(sectors).is_ok(),
            "boot partition of {size} bytes is too large for FAT32"
        );
        let mut fat_sectors = 0;
        loop {
            let clusters = sectors.saturating_sub(RESERVED_SECTORS + 2 * fat_sectors) / SECTORS_PER_CLUSTER;
            let needed = ((clusters + 2) * 4).div_ceil(SECTOR);
            if needed <= fat_sectors {
                ensure!(
                    clusters >= MIN_CLUSTERS,
                    "boot partition of {size} bytes is too small for FAT32"
                );
                return Ok(Self {
                    sectors,
                    fat_sectors,
                    clusters,
                });
            }
            fat_sectors += 1.max((needed - fat_sectors) / 2);
        }
    }

    fn cluster_offset(&self, cluster: u32) -> u64 {
        let data = (RESERVED_SECTORS + 2 * self.fat_sectors) * SECTOR;
        data + u64::from(cluster - ROOT_CLUSTER) * CLUSTER
    }
}

fn boot_sector(geometry: &Geometry, volume_id: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    // A jump over the parameter block to code that hangs: no BIOS boots from this partition.
    sector[..11].copy_from_slice(b"\xeb\x58\x90KIMAGE  ");
    sector[90..92].copy_from_slice(&[0xeb, 0xfe]);
    sector[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    sector[13] = SECTORS_PER_CLUSTER as u8;
    sector[14..16].copy_from_slice(&(RESERVED_SECTORS as u16).to_le_bytes());
    sector[16] = 2;
    sector[21] = 0xf8;
    sector[24..26].copy_from_slice(&63u16.to_le_bytes());
    sector[26..28].copy_from_slice(&255u16.to_le_bytes());
    sector[32..36].copy_from_slice(&(geometry.sectors as u32).to_le_bytes());
    sector[36..40].copy_from_slice(&(geometry.fat_sectors as u32).to_le_bytes());
    sector[44..48].copy_from_slice(&ROOT_CLUSTER.to_le_bytes());
    sector[48..50].copy_from_slice(&(FSINFO_SECTOR as u16).to_le_bytes());
    sector[50..52].copy_from_slice(&(BACKUP_SECTOR as u16).to_le_bytes());
    sector[64] = 0x80;
    sector[66] = 0x29;
    sector[67..71].copy_from_slice(&volume_id.to_le_bytes());
    sector[71..82].copy_from_slice(LABEL);
    sector[82..90].copy_from_slice(b"FAT32   ");
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn fsinfo_sector(geometry: &Geometry, used: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..4].copy_from_slice(b"RRaA");
    sector[484..488].copy_from_slice(b"rrAa");
    sector[488..492].copy_from_slice(&(geometry.clusters as u32 - used).to_le_bytes());
    sector[492..496].copy_from_slice(&(ROOT_CLUSTER + used).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Date and time as directory entries hold them.
#[derive(Debug, Clone, Copy)]
struct DosTime {
    date: u16,
    time: u16,
}

impl DosTime {
    fn new(epoch: i64) -> Result<Self> {
        let moment = jiff::Timestamp::from_second(epoch).context("time of the boot partition's files")?;
        let moment = moment.to_zoned(TimeZone::UTC);
        let year = moment.year() - 1980;
        ensure!((0..128).contains(&year), "FAT has no year {}", moment.year());
        Ok(Self {
            date: (year as u16) << 9 | (moment.month() as u16) << 5 | moment.day() as u16,
            time: (moment.hour() as u16) << 11 | (moment.minute() as u16) << 5 | (moment.second() as u16 / 2),
        })
    }
}
