//! The parts of a PE32+ file that matter here: where its headers and sections stand.
//!
//! Source: Microsoft's PE format specification; offsets are relative to the file, the COFF header or the optional
//! header as its tables give them. Input may be hostile: every offset is checked once, in [`Pe::parse`].

use anyhow::{Context, Result, bail, ensure};

/// Bytes of one entry of the section table.
pub(super) const SECTION_HEADER: usize = 40;
/// More sections than any EFI program has.
const MAX_SECTIONS: usize = 96;
/// `IMAGE_DLLCHARACTERISTICS_NX_COMPAT`: the program never needs memory both writable and executable.
pub(super) const NX_COMPAT: u16 = 0x100;
/// `e_lfanew` of real files is a few hundred bytes.
const MAX_HEADER_OFFSET: usize = 64 * 1024;

/// One entry of the section table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionHeader {
    /// ASCII, padded with NUL.
    pub name: [u8; 8],
    /// Bytes in memory; systemd-stub takes it as the payload's length.
    pub virtual_size: u32,
    /// Offset in memory.
    pub virtual_address: u32,
    /// Bytes in the file, a multiple of the file alignment.
    pub raw_size: u32,
    /// Offset in the file.
    pub raw_offset: u32,
    /// `IMAGE_SCN_*`.
    pub characteristics: u32,
}

impl SectionHeader {
    /// The name without its padding.
    pub fn name(&self) -> &[u8] {
        let end = self
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.name.len());
        &self.name[..end]
    }

    /// The offset just behind the section's bytes in the file; for a section without bytes, zero.
    pub(super) fn raw_end(&self) -> usize {
        if self.raw_size == 0 {
            0
        } else {
            self.raw_offset as usize + self.raw_size as usize
        }
    }

    pub(super) fn encode(&self) -> [u8; SECTION_HEADER] {
        let mut bytes = [0; SECTION_HEADER];
        bytes[..8].copy_from_slice(&self.name);
        let fields = [
            self.virtual_size,
            self.virtual_address,
            self.raw_size,
            self.raw_offset,
        ];
        for (place, value) in bytes[8..24].chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes[36..].copy_from_slice(&self.characteristics.to_le_bytes());
        bytes
    }
}

/// The headers of a PE32+ file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pe {
    coff: usize,
    optional: usize,
    section_table: usize,
    /// Bytes before the first section: DOS stub, headers and section table.
    pub headers_size: usize,
    /// Alignment of sections in memory, bytes.
    pub section_alignment: usize,
    /// Alignment of sections in the file, bytes.
    pub file_alignment: usize,
    /// In the order of the table, which is the order in memory.
    pub sections: Vec<SectionHeader>,
    /// Offset and length in bytes of the Authenticode table, if there is one.
    pub certificates: Option<(usize, usize)>,
}

impl Pe {
    /// Reads and checks the headers of `file`: all sections lie inside the file and follow each other in memory.
    pub fn parse(file: &[u8]) -> Result<Self> {
        ensure!(file.starts_with(b"MZ"), "not a PE file: no MZ signature");
        let signature = u32_at(file, 0x3c)? as usize;
        ensure!(
            signature <= MAX_HEADER_OFFSET,
            "PE header at unlikely offset {signature}"
        );
        ensure!(
            bytes_at(file, signature, 4)? == b"PE\0\0",
            "not a PE file: no PE signature"
        );
        let coff = signature + 4;
        let count = usize::from(u16_at(file, coff + 2)?);
        ensure!(
            (1..=MAX_SECTIONS).contains(&count),
            "PE file with {count} sections"
        );
        let optional = coff + 20;
        ensure!(u16_at(file, optional)? == 0x20b, "not a 64-bit PE file");
        let optional_size = usize::from(u16_at(file, coff + 16)?);
        let directories = u32_at(file, optional + 108)? as usize;
        ensure!(
            (5..=16).contains(&directories) && optional_size >= 112 + 8 * directories,
            "PE optional header of {optional_size} bytes cannot hold {directories} data directories"
        );
        let mut pe = Self {
            coff,
            optional,
            section_table: optional + optional_size,
            headers_size: u32_at(file, optional + 60)? as usize,
            section_alignment: u32_at(file, optional + 32)? as usize,
            file_alignment: u32_at(file, optional + 36)? as usize,
            sections: Vec::with_capacity(count),
            certificates: None,
        };
        for alignment in [pe.section_alignment, pe.file_alignment] {
            ensure!(
                alignment.is_power_of_two() && alignment <= 0x1_0000,
                "PE alignment {alignment:#x}"
            );
        }
        let table_end = pe.section_table + count * SECTION_HEADER;
        ensure!(
            table_end <= pe.headers_size && pe.headers_size <= file.len(),
            "PE headers are cut short"
        );
        for index in 0..count {
            let section = pe
                .read_section(file, index)
                .with_context(|| format!("PE section {index}"))?;
            pe.sections.push(section);
        }
        pe.certificates = pe.read_certificates(file)?;
        Ok(pe)
    }

    fn read_section(&self, file: &[u8], index: usize) -> Result<SectionHeader> {
        let bytes = bytes_at(file, self.section_table + index * SECTION_HEADER, SECTION_HEADER)?;
        let mut name = [0; 8];
        name.copy_from_slice(&bytes[..8]);
        let section = SectionHeader {
            name,
            virtual_size: u32_at(bytes, 8)?,
            virtual_address: u32_at(bytes, 12)?,
            raw_size: u32_at(bytes, 16)?,
            raw_offset: u32_at(bytes, 20)?,
            characteristics: u32_at(bytes, 36)?,
        };
        ensure!(
            section.raw_end() <= file.len(),
            "its bytes end behind the file's end"
        );
        ensure!(
            section.raw_size == 0 || section.raw_offset as usize >= self.headers_size,
            "its bytes overlap the headers"
        );
        let before = self.sections.last().map_or(0, SectionHeader::virtual_end);
        ensure!(
            u64::from(section.virtual_address) >= before,
            "it overlaps its neighbour in memory"
        );
        Ok(section)
    }

    fn read_certificates(&self, file: &[u8]) -> Result<Option<(usize, usize)>> {
        let entry = self.certificate_entry();
        let (offset, length) = (u32_at(file, entry)? as usize, u32_at(file, entry + 4)? as usize);
        if offset == 0 && length == 0 {
            return Ok(None);
        }
        let end = self
            .sections
            .iter()
            .map(SectionHeader::raw_end)
            .max()
            .unwrap_or(0)
            .max(self.headers_size);
        ensure!(
            offset >= end && length >= 8 && offset.checked_add(length) == Some(file.len()),
            "the certificate table ({length} bytes at {offset}) does not close the file ({} bytes)",
            file.len()
        );
        Ok(Some((offset, length)))
    }

    /// The bytes of `section` that are both in the file and in memory. `file` is the one that was parsed.
    pub fn data<'a>(&self, file: &'a [u8], section: &SectionHeader) -> &'a [u8] {
        let length = section.virtual_size.min(section.raw_size) as usize;
        let start = if length == 0 {
            0
        } else {
            section.raw_offset as usize
        };
        file.get(start..start + length).unwrap_or_default()
    }

    /// The offset behind the last section's bytes, if headers and sections follow each other without a hole.
    /// With a hole, tools that hash the whole file and firmware that hashes section by section disagree about the
    /// Authenticode digest.
    pub fn contiguous_end(&self) -> Result<usize> {
        let mut sections: Vec<&SectionHeader> = self.sections.iter().filter(|s| s.raw_size > 0).collect();
        sections.sort_by_key(|section| section.raw_offset);
        let mut end = self.headers_size;
        for section in sections {
            if section.raw_offset as usize != end {
                bail!(
                    "hole or overlap before PE section {} (at {:#x}, expected {end:#x})",
                    section.name().escape_ascii(),
                    section.raw_offset
                );
            }
            end = section.raw_end();
        }
        Ok(end)
    }

    /// Section headers that fit behind the present ones.
    pub(super) fn header_room(&self) -> usize {
        (self.headers_size - self.section_table) / SECTION_HEADER - self.sections.len()
    }

    /// `DllCharacteristics`.
    pub(super) fn dll_characteristics(&self, file: &[u8]) -> Result<u16> {
        u16_at(file, self.optional + 70)
    }

    /// Offset of the `CheckSum` field (4 bytes), which Authenticode leaves out.
    pub fn checksum_field(&self) -> usize {
        self.optional + 64
    }

    /// Offset of the certificate table's entry (8 bytes) in the data directory, which Authenticode leaves out.
    pub fn certificate_entry(&self) -> usize {
        self.optional + 112 + 4 * 8
    }

    /// Writes `self.sections` and what follows from them into the headers of `file`. Checksum, symbol table and
    /// signature are cleared: they no longer hold.
    pub(super) fn write_headers(&self, file: &mut [u8], dll_characteristics: u16) -> Result<()> {
        let count = u16::try_from(self.sections.len()).context("too many PE sections")?;
        let end = self.sections.last().map_or(0, SectionHeader::virtual_end);
        let image_size = end.next_multiple_of(self.section_alignment as u64);
        let image_size = u32::try_from(image_size).context("PE image is larger than 4 GiB in memory")?;
        file[self.coff + 2..][..2].copy_from_slice(&count.to_le_bytes());
        file[self.coff + 8..][..8].fill(0);
        file[self.optional + 56..][..4].copy_from_slice(&image_size.to_le_bytes());
        file[self.checksum_field()..][..4].fill(0);
        file[self.optional + 70..][..2].copy_from_slice(&dll_characteristics.to_le_bytes());
        file[self.certificate_entry()..][..8].fill(0);
        for (index, section) in self.sections.iter().enumerate() {
            let place = self.section_table + index * SECTION_HEADER;
            file[place..][..SECTION_HEADER].copy_from_slice(&section.encode());
        }
        Ok(())
    }
}

impl SectionHeader {
    /// The offset just behind the section in memory.
    pub(super) fn virtual_end(&self) -> u64 {
        u64::from(self.virtual_address) + u64::from(self.virtual_size)
    }
}

fn bytes_at(file: &[u8], offset: usize, length: usize) -> Result<&[u8]> {
    let range = offset.checked_add(length).and_then(|end| file.get(offset..end));
    range.with_context(|| format!("PE file of {} bytes is cut short at {offset}", file.len()))
}

fn u16_at(file: &[u8], offset: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes_at(file, offset, 2)?.try_into()?))
}

fn u32_at(file: &[u8], offset: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes_at(file, offset, 4)?.try_into()?))
}

/// A small PE32+ file with the given sections, made from nothing.
#[cfg(test)]
pub(crate) fn sample(sections: &[(&[u8], &[u8])]) -> Vec<u8> {
    let (headers, optional) = (0x800, 0x40 + 24);
    let mut file = vec![0; headers];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    file[0x44..0x46].copy_from_slice(&0x8664u16.to_le_bytes());
    file[0x46] = sections.len() as u8;
    file[0x40 + 20] = 240;
    file[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    for (offset, value) in [(32, 0x1000u32), (36, 0x200), (60, headers as u32), (108, 16)] {
        file[optional + offset..][..4].copy_from_slice(&value.to_le_bytes());
    }
    file[optional + 70..][..2].copy_from_slice(&0x160u16.to_le_bytes());
    let mut address = 0x1000;
    for (index, (name, data)) in sections.iter().enumerate() {
        let mut header = SectionHeader {
            name: [0; 8],
            virtual_size: data.len() as u32,
            virtual_address: address,
            raw_size: data.len().next_multiple_of(0x200) as u32,
            raw_offset: file.len() as u32,
            characteristics: 0x4000_0040,
        };
        header.name[..name.len()].copy_from_slice(name);
        file[optional + 240 + index * SECTION_HEADER..][..SECTION_HEADER].copy_from_slice(&header.encode());
        file.extend_from_slice(data);
        file.resize(file.len().next_multiple_of(0x200), 0);
        address = (address + header.virtual_size).next_multiple_of(0x1000);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let file = sample(&[(b".text", b"code"), (b".sbat", b"sbat,1\n")]);
        assert_eq!(Pe::parse(&file).unwrap().sections.len(), 2);
        for length in 0..file.len() {
            assert!(Pe::parse(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_hole_between_sections_is_seen() {
        let mut file = sample(&[(b".text", &[1; 600]), (b".data", &[2; 10])]);
        let pe = Pe::parse(&file).unwrap();
        assert_eq!(pe.contiguous_end().unwrap(), file.len());
        file[pe.section_table + 16..][..4].copy_from_slice(&0x200u32.to_le_bytes());
        assert!(Pe::parse(&file).unwrap().contiguous_end().is_err());
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(changes in prop::collection::vec((0usize..0x200, any::<u8>()), 1..12)) {
            let mut file = sample(&[(b".text", &[1; 600]), (b".data", &[2; 10])]);
            for (place, value) in changes {
                file[place] = value;
            }
            if let Ok(pe) = Pe::parse(&file) {
                for section in &pe.sections {
                    pe.data(&file, section);
                }
                let _ = pe.contiguous_end();
            }
        }
    }
}
