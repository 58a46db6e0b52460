//! Directory entries of 32 bytes: short names, and long ones in front of them where a name is no 8.3 name.

use anyhow::{Result, bail};

const READ_ONLY_DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const LONG_NAME: u8 = 0x0f;
/// UTF-16 units in one entry of a long name.
const UNITS: usize = 13;
/// Longest long name in UTF-16 units.
const MAX_NAME: usize = 255;

/// What an entry points to.
pub(super) enum Slot {
    /// A folder's first cluster.
    Folder { cluster: u32 },
    /// A file's first cluster, 0 when it is empty, and its bytes.
    File { cluster: u32, size: u32 },
}

/// The bytes of one folder.
pub(super) struct Directory {
    bytes: Vec<u8>,
    date: u16,
    time: u16,
    aliases: Vec<[u8; 11]>,
}

impl Directory {
    pub(super) fn new(epoch: u32) -> Self {
        let (date, time) = stamp(epoch);
        Self { bytes: Vec::new(), date, time, aliases: Vec::new() }
    }

    /// How many entries a folder with these names takes.
    pub(super) fn slots<'n>(&self, names: impl Iterator<Item = &'n str>, dots: bool) -> usize {
        let one = |name: &str| 1 + if is_short(name) { 0 } else { name.encode_utf16().count().div_ceil(UNITS) };
        names.map(one).sum::<usize>() + if dots { 2 } else { 0 }
    }

    /// `.` and `..`.
    pub(super) fn dots(&mut self, own: u32, parent: u32) {
        self.entry(b".          ", &Slot::Folder { cluster: own });
        self.entry(b"..         ", &Slot::Folder { cluster: parent });
    }

    pub(super) fn add(&mut self, name: &str, slot: &Slot) -> Result<()> {
        let units: Vec<u16> = name.encode_utf16().collect();
        let forbidden = |c: char| c.is_control() || "\\/:*?\"<>|".contains(c);
        if units.is_empty() || units.len() > MAX_NAME || name.chars().any(forbidden) || name.ends_with(['.', ' ']) {
            bail!("`{name}` is no name for a file on FAT");
        }
        let alias = self.alias(name);
        if !is_short(name) {
            self.long_name(&units, checksum(&alias));
        }
        self.entry(&alias, slot);
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn entry(&mut self, name: &[u8; 11], slot: &Slot) {
        let (attribute, cluster, size) = match *slot {
            Slot::Folder { cluster } => (READ_ONLY_DIRECTORY, cluster, 0),
            Slot::File { cluster, size } => (ARCHIVE, cluster, size),
        };
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[11] = attribute;
        for at in [14, 22] {
            entry[at..at + 2].copy_from_slice(&self.time.to_le_bytes());
            entry[at + 2..at + 4].copy_from_slice(&self.date.to_le_bytes());
        }
        entry[18..20].copy_from_slice(&self.date.to_le_bytes());
        entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
        entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
        entry[28..].copy_from_slice(&size.to_le_bytes());
        self.bytes.extend_from_slice(&entry);
    }

    /// The last piece of the name comes first.
    fn long_name(&mut self, units: &[u16], checksum: u8) {
        for (index, piece) in units.chunks(UNITS).enumerate().rev() {
            let mut padded = [0xffff; UNITS];
            padded[..piece.len()].copy_from_slice(piece);
            if piece.len() < UNITS {
                padded[piece.len()] = 0;
            }
            let last = (index + 1) * UNITS >= units.len();
            let mut entry = [0; 32];
            entry[0] = (index + 1) as u8 | if last { 0x40 } else { 0 };
            entry[11] = LONG_NAME;
            entry[13] = checksum;
            let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
            for (unit, place) in padded.iter().zip(places) {
                entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
            }
            self.bytes.extend_from_slice(&entry);
        }
    }

    /// The 8.3 name: the name itself, or its start with `~1`, `~2`...
    fn alias(&mut self, name: &str) -> [u8; 11] {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let clean = |text: &str, length: usize| -> Vec<u8> {
            let kept = text.bytes().filter(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-');
            kept.map(|byte| byte.to_ascii_uppercase()).take(length).collect()
        };
        let build = |stem: &[u8]| {
            let mut alias = [b' '; 11];
            alias[..stem.len()].copy_from_slice(stem);
            let extension = clean(extension, 3);
            alias[8..8 + extension.len()].copy_from_slice(&extension);
            alias
        };
        let mut alias = build(&clean(stem, 8));
        let mut number = 0u32;
        while number == 0 && !is_short(name) || self.aliases.contains(&alias) {
            number += 1;
            let tail = format!("~{number}");
            alias = build(&[clean(stem, 8 - tail.len()), tail.into_bytes()].concat());
        }
        self.aliases.push(alias);
        alias
    }
}

/// Whether the name is an upper-case 8.3 name and needs no long one.
fn is_short(name: &str) -> bool {
    let plain = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-')
    };
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    !stem.is_empty() && stem.len() <= 8 && extension.len() <= 3 && plain(stem) && plain(extension) && !name.ends_with('.')
}

fn checksum(alias: &[u8; 11]) -> u8 {
    alias.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// Date and time as FAT keeps them, UTC.
fn stamp(epoch: u32) -> (u16, u16) {
    let earliest = 315_532_800; // 1980-01-01, where FAT's calendar begins
    let seconds = i64::from(epoch.max(earliest));
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    let date = (time.year() - 1980) as u16 * 512 + time.month() as u16 * 32 + time.day() as u16;
    let clock = time.hour() as u16 * 2048 + time.minute() as u16 * 32 + time.second() as u16 / 2;
    (date, clock)
}
