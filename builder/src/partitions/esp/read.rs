//! Reading a boot partition back, for verification. The bytes may be hostile: everything is bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::{
    ATTRIBUTE_DIRECTORY, ATTRIBUTE_LABEL, ATTRIBUTE_LONG_NAME, CLUSTER, ENTRY, Geometry, RESERVED_SECTORS,
    ROOT_CLUSTER, SECTOR, boot_sector, names,
};

const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 1000;
const MAX_DIRECTORY: usize = 1 << 20;

/// A boot partition of the shape that [`super::write`] makes.
#[derive(Debug)]
pub struct Esp<'a> {
    file: &'a File,
    offset: u64,
    geometry: Geometry,
    volume_id: u32,
    table: Vec<u32>,
    files: BTreeMap<String, (u32, u32)>,
    folders: usize,
}

impl<'a> Esp<'a> {
    /// Reads the filesystem of `size` bytes that starts at byte `offset` of `file`.
    pub fn read(file: &'a File, offset: u64, size: u64) -> Result<Self> {
        ensure!(size <= 4 << 30, "boot partition of {size} bytes");
        let geometry = Geometry::new(size)?;
        let read = |place: u64, length: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, offset + place)
                .context("read boot partition")?;
            Ok(bytes)
        };
        let boot = read(0, SECTOR)?;
        let volume_id = u32::from_le_bytes([boot[67], boot[68], boot[69], boot[70]]);
        ensure!(
            boot == boot_sector(&geometry, volume_id),
            "boot partition's first sector is not kimage's"
        );
        let fat = geometry.fat_sectors * SECTOR;
        let table = read(RESERVED_SECTORS * SECTOR, fat)?;
        ensure!(
            table == read(RESERVED_SECTORS * SECTOR + fat, fat)?,
            "boot partition's two tables differ"
        );
        let entries = table
            .chunks_exact(4)
            .map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]));
        let table = entries
            .map(|entry| entry & 0x0fff_ffff)
            .take(geometry.clusters as usize + 2)
            .collect();
        let mut esp = Self {
            file,
            offset,
            geometry,
            volume_id,
            table,
            files: BTreeMap::new(),
            folders: 0,
        };
        esp.walk(ROOT_CLUSTER, "", 0)?;
        Ok(esp)
    }

    /// Paths and sizes in bytes of all files, sorted by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, u32)> {
        self.files.iter().map(|(path, (_, size))| (path.as_str(), *size))
    }

    /// The volume serial number.
    pub fn volume_id(&self) -> u32 {
        self.volume_id
    }

    /// The bytes of the file at `path`.
    pub fn file(&self, path: &str) -> Result<Vec<u8>> {
        let (cluster, size) = self
            .files
            .get(path)
            .with_context(|| format!("no {path} on the boot partition"))?;
        self.chain(*cluster, *size as usize)
            .with_context(|| format!("read {path} of the boot partition"))
    }

    /// Reads up to `limit` bytes along the chain from `cluster` on; the chain must be as long as they need.
    fn chain(&self, cluster: u32, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut next = cluster;
        while bytes.len() < limit {
            ensure!(
                next >= ROOT_CLUSTER && u64::from(next) < self.geometry.clusters + 2,
                "chain from cluster {cluster} ends early"
            );
            let length = (limit - bytes.len()).min(CLUSTER as usize);
            let start = bytes.len();
            bytes.resize(start + length, 0);
            let place = self.offset + self.geometry.cluster_offset(next);
            self.file.read_exact_at(&mut bytes[start..], place)?;
            next = self.table.get(next as usize).copied().unwrap_or(0);
        }
        Ok(bytes)
    }

    fn directory(&self, cluster: u32) -> Result<Vec<u8>> {
        let (mut clusters, mut next) = (0, cluster);
        while next >= ROOT_CLUSTER && u64::from(next) < self.geometry.clusters + 2 {
            clusters += 1;
            ensure!(
                clusters * CLUSTER as usize <= MAX_DIRECTORY,
                "folder at cluster {cluster} is too long"
            );
            next = self.table.get(next as usize).copied().unwrap_or(0);
        }
        self.chain(cluster, clusters * CLUSTER as usize)
    }

    fn walk(&mut self, cluster: u32, prefix: &str, depth: usize) -> Result<()> {
        ensure!(depth <= MAX_DEPTH, "boot partition's folders are nested too deep");
        self.folders += 1;
        ensure!(
            self.folders <= MAX_FILES,
            "boot partition has more than {MAX_FILES} folders"
        );
        let mut long = names::LongName::default();
        for entry in self.directory(cluster)?.chunks_exact(ENTRY) {
            let attribute = entry[11];
            if entry[0] == 0 {
                break;
            }
            if attribute == ATTRIBUTE_LONG_NAME {
                long.push(entry);
                continue;
            }
            if entry[0] == 0xe5 || attribute & ATTRIBUTE_LABEL != 0 || entry[0] == b'.' {
                continue;
            }
            let short: [u8; 11] = entry[..11].try_into()?;
            let path = format!("{prefix}{}", long.take(&short));
            let high = u32::from(u16::from_le_bytes([entry[20], entry[21]]));
            let first = high << 16 | u32::from(u16::from_le_bytes([entry[26], entry[27]]));
            if attribute & ATTRIBUTE_DIRECTORY != 0 {
                self.walk(first, &format!("{path}/"), depth + 1)?;
                continue;
            }
            ensure!(
                self.files.len() < MAX_FILES,
                "boot partition has more than {MAX_FILES} files"
            );
            let size = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
            ensure!(
                u64::from(size) <= self.geometry.sectors * SECTOR,
                "{path} is larger than its partition"
            );
            ensure!(
                self.files.insert(path.clone(), (first, size)).is_none(),
                "{path} is there twice"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EspFile, Parameters, SIZE, write};
    use super::*;
    use proptest::prelude::*;

    const PARAMETERS: Parameters = Parameters {
        size: SIZE,
        volume_id: 0x1234_abcd,
        epoch: 1_700_000_000,
    };

    fn sample() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let files = [
            EspFile {
                path: "EFI/Linux/kimage_1+3.efi",
                data: &[7; 5000],
            },
            EspFile {
                path: "EFI/BOOT/BOOTX64.EFI",
                data: b"boot",
            },
            EspFile {
                path: "empty",
                data: b"",
            },
        ];
        write(&file, 0, &PARAMETERS, &files).unwrap();
        file
    }

    #[test]
    fn files_come_back() {
        let file = sample();
        let esp = Esp::read(&file, 0, SIZE).unwrap();
        let names: Vec<_> = esp.files().collect();
        assert_eq!(
            names,
            [
                ("EFI/BOOT/BOOTX64.EFI", 4),
                ("EFI/Linux/kimage_1+3.efi", 5000),
                ("empty", 0)
            ]
        );
        assert_eq!(esp.file("EFI/Linux/kimage_1+3.efi").unwrap(), [7; 5000]);
        assert_eq!(esp.file("empty").unwrap(), b"");
        assert_eq!(esp.volume_id(), PARAMETERS.volume_id);
        assert!(esp.file("none").is_err());
    }

    #[test]
    fn bad_trees_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let refuse = |paths: &[&str]| {
            let files: Vec<_> = paths.iter().map(|path| EspFile { path, data: b"x" }).collect();
            assert!(write(&file, 0, &PARAMETERS, &files).is_err(), "{paths:?}");
        };
        refuse(&["a", "a"]);
        refuse(&["a", "A"]);
        refuse(&["a", "a/b"]);
        refuse(&["/a"]);
        refuse(&["a//b"]);
        let small = Parameters {
            size: 64 << 20,
            ..PARAMETERS
        };
        assert!(write(&file, 0, &small, &[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn hostile_filesystems_never_panic_or_hang(changes in prop::collection::vec((0u64..4, 0u64..2048, any::<u8>()), 1..40)) {
            let file = sample();
            let geometry = Geometry::new(SIZE).unwrap();
            let fat = geometry.fat_sectors * SECTOR;
            for (area, place, value) in changes {
                match area {
                    0 => for copy in 0..2 {
                        file.write_all_at(&[value], RESERVED_SECTORS * SECTOR + copy * fat + place % 64).unwrap();
                    },
                    _ => file.write_all_at(&[value], geometry.cluster_offset(1 + area as u32) + place).unwrap(),
                }
            }
            if let Ok(esp) = Esp::read(&file, 0, SIZE) {
                for (path, _) in esp.files() {
                    let _ = esp.file(path);
                }
            }
        }
    }
}
