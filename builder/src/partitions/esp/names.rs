//! File names: every name that is not plain upper-case 8.3 gets a short alias and its long name in VFAT entries.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{ATTRIBUTE_LONG_NAME, ENTRY};

/// UTF-16 units in one long-name entry, and their places in it.
const UNITS: usize = 13;
const PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
const LAST: u8 = 0x40;

/// Refuses names that VFAT or firmware would not take or would read differently.
pub(super) fn check(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " !#$%&'()+,-.;=@[]^_`{}~".contains(c);
    ensure!(
        (1..=200).contains(&name.len()) && name.chars().all(allowed) && !name.ends_with(['.', ' ']),
        "`{name}` is no name for a file on the boot partition"
    );
    Ok(())
}

/// The 8.3 name of `name`, different from all in `taken`, to which it is added.
pub(super) fn short(name: &str, taken: &mut BTreeSet<[u8; 11]>) -> Result<[u8; 11]> {
    let (stem, extension) = name
        .rsplit_once('.')
        .filter(|(stem, _)| !stem.is_empty())
        .unwrap_or((name, ""));
    if is_plain(stem, 1, 8) && is_plain(extension, 0, 3) {
        let plain = pad(stem, extension);
        ensure!(
            taken.insert(plain),
            "two files on the boot partition are called {name}"
        );
        return Ok(plain);
    }
    let keep = |text: &str, length: usize| {
        let kept = text.chars().filter(|c| !" .".contains(*c));
        let kept = kept.map(|c| {
            if is_plain_char(c.to_ascii_uppercase()) {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        });
        kept.take(length).collect::<String>()
    };
    let extension = keep(extension, 3);
    for number in 1..1000 {
        let tail = format!("~{number}");
        let candidate = pad(&(keep(stem, 8 - tail.len()) + &tail), &extension);
        if taken.insert(candidate) {
            return Ok(candidate);
        }
    }
    anyhow::bail!("too many files like {name} in one folder of the boot partition")
}

fn is_plain_char(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || "!#$%&'()-@^_`{}~".contains(c)
}

fn is_plain(part: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&part.len()) && part.chars().all(is_plain_char)
}

fn pad(stem: &str, extension: &str) -> [u8; 11] {
    let mut short = [b' '; 11];
    short[..stem.len()].copy_from_slice(stem.as_bytes());
    short[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    short
}

/// A short name as text.
pub(super) fn short_text(short: &[u8; 11]) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (stem, extension) = (part(&short[..8]), part(&short[8..]));
    if extension.is_empty() {
        stem
    } else {
        format!("{stem}.{extension}")
    }
}

/// The long-name entries that stand before the entry `short`; none if the short name says it all.
pub(super) fn long_entries(name: &str, short: &[u8; 11]) -> Vec<u8> {
    if short_text(short) == name {
        return Vec::new();
    }
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(UNITS) {
        units.push(0);
        units.resize(units.len().next_multiple_of(UNITS), 0xffff);
    }
    let count = units.len() / UNITS;
    let mut bytes = Vec::with_capacity(count * ENTRY);
    for (index, part) in units.chunks(UNITS).enumerate().rev() {
        let mut entry = [0; ENTRY];
        entry[0] = (index as u8 + 1) | if index + 1 == count { LAST } else { 0 };
        entry[11] = ATTRIBUTE_LONG_NAME;
        entry[13] = checksum(short);
        for (place, unit) in PLACES.iter().zip(part) {
            entry[*place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(entry);
    }
    bytes
}

fn checksum(short: &[u8; 11]) -> u8 {
    short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// Puts long names together from entries as they come.
#[derive(Default)]
pub(super) struct LongName {
    /// Parts still to come, of them the next one's number.
    missing: u8,
    checksum: u8,
    units: Vec<u16>,
}

impl LongName {
    /// Takes one long-name entry.
    pub(super) fn push(&mut self, entry: &[u8]) {
        let (Some(order), Some(sum)) = (entry.first(), entry.get(13)) else {
            return;
        };
        let number = order & 0x3f;
        if order & LAST != 0 && (1..=20).contains(&number) {
            *self = Self {
                missing: number,
                checksum: *sum,
                units: vec![0; usize::from(number) * UNITS],
            };
        }
        if number == 0 || number != self.missing || *sum != self.checksum {
            *self = Self::default();
            return;
        }
        self.missing -= 1;
        for (index, place) in PLACES.iter().enumerate() {
            let unit = u16::from_le_bytes([entry[*place], entry[place + 1]]);
            self.units[usize::from(self.missing) * UNITS + index] = unit;
        }
    }

    /// The name of the entry `short` that ends the sequence.
    pub(super) fn take(&mut self, short: &[u8; 11]) -> String {
        let name = std::mem::take(self);
        let end = name
            .units
            .iter()
            .position(|unit| *unit == 0)
            .unwrap_or(name.units.len());
        if name.missing != 0 || end == 0 || name.checksum != checksum(short) {
            return short_text(short);
        }
        String::from_utf16_lossy(&name.units[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_unique_and_long_names_come_back() {
        let mut taken = BTreeSet::new();
        for (name, expected) in [
            ("BOOTX64.EFI", "BOOTX64.EFI"),
            ("kimage_1.2+3.efi", "KIMAGE~1.EFI"),
            ("kimage_1.3+3.efi", "KIMAGE~2.EFI"),
            ("entries.srel", "ENTRIE~1.SRE"),
            ("db.auth", "DB~1.AUT"),
            ("exactly13char", "EXACTL~1"),
        ] {
            check(name).unwrap();
            let alias = short(name, &mut taken).unwrap();
            assert_eq!(short_text(&alias), expected);
            let mut long = LongName::default();
            long_entries(name, &alias)
                .chunks(ENTRY)
                .for_each(|entry| long.push(entry));
            assert_eq!(long.take(&alias), name);
        }
        assert!(short("BOOTX64.EFI", &mut taken).is_err());
        for bad in ["", "a/b", "nul\0", "é", "a*", "end.", "end "] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
