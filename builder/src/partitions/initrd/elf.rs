//! Reads one section of an ELF file: the kernel module's `.modinfo`. Format: System V gABI, chapter 4.

use anyhow::{Context, Result, bail, ensure};

/// Size of the 64-bit file header.
const HEADER: usize = 64;
/// Size of a 64-bit section header.
const SECTION: usize = 64;

/// The bytes of the section `name` of a 64-bit little-endian ELF file; `None` if there is no such section.
pub(super) fn section<'a>(file: &'a [u8], name: &str) -> Result<Option<&'a [u8]>> {
    let header = file.get(..HEADER).context("shorter than an ELF header")?;
    ensure!(
        header.starts_with(b"\x7fELF\x02\x01\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let table = offset(u64_at(header, 0x28)?)?;
    let entry_size = u16_at(header, 0x3a)?;
    let count = usize::from(u16_at(header, 0x3c)?);
    let names_index = usize::from(u16_at(header, 0x3e)?);
    ensure!(
        usize::from(entry_size) == SECTION,
        "section headers of {entry_size} bytes, {SECTION} expected"
    );
    // Above 0xff00 both numbers would be kept elsewhere; no module comes near.
    ensure!(
        count > 0 && names_index < count && count < 0xff00,
        "{count} sections, names in section {names_index}"
    );
    let headers = slice(file, table, count * SECTION).context("section headers")?;
    let names = contents(file, &headers[names_index * SECTION..][..SECTION]).context("section names")?;
    for header in headers.chunks_exact(SECTION) {
        let start = u32_at(header, 0)? as usize;
        let Some(rest) = names.get(start..) else {
            bail!("section name at {start} lies outside the names")
        };
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .context("a section name without end")?;
        if &rest[..end] == name.as_bytes() {
            return contents(file, header)
                .with_context(|| format!("section {name}"))
                .map(Some);
        }
    }
    Ok(None)
}

fn contents<'a>(file: &'a [u8], header: &[u8]) -> Result<&'a [u8]> {
    const NO_BITS: u32 = 8;
    ensure!(u32_at(header, 4)? != NO_BITS, "has no bytes in the file");
    slice(
        file,
        offset(u64_at(header, 0x18)?)?,
        offset(u64_at(header, 0x20)?)?,
    )
}

fn slice(file: &[u8], start: usize, length: usize) -> Result<&[u8]> {
    let end = start.checked_add(length).context("beyond any address")?;
    file.get(start..end)
        .with_context(|| format!("bytes {start}..{end} of a file of {}", file.len()))
}

fn offset(value: u64) -> Result<usize> {
    usize::try_from(value).context("beyond this machine's addresses")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(slice(bytes, at, 2)?.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(slice(bytes, at, 4)?.try_into()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(slice(bytes, at, 8)?.try_into()?))
}

/// The smallest ELF file with one section: for tests.
#[cfg(test)]
pub(super) fn sample(name: &str, content: &[u8]) -> Vec<u8> {
    let mut names = vec![0];
    names.extend_from_slice(b".shstrtab\0");
    let name_at = names.len() as u32;
    names.extend_from_slice(name.as_bytes());
    names.push(0);
    let names_at = HEADER;
    let content_at = names_at + names.len();
    let table_at = content_at + content.len();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(HEADER, 0);
    file[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
    file[0x3a..0x40].copy_from_slice(&[SECTION as u8, 0, 3, 0, 1, 0]);
    file.extend_from_slice(&names);
    file.extend_from_slice(content);
    let mut header = |name: u32, kind: u32, at: usize, size: usize| {
        let mut bytes = [0; SECTION];
        bytes[..4].copy_from_slice(&name.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        bytes[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&bytes);
    };
    header(0, 0, 0, 0);
    header(1, 3, names_at, names.len());
    header(name_at, 1, content_at, content.len());
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    #[test]
    fn a_section_is_found_by_name() {
        let file = sample(".modinfo", b"name=x\0");
        assert_eq!(section(&file, ".modinfo").unwrap(), Some(&b"name=x\0"[..]));
        assert_eq!(section(&file, ".text").unwrap(), None);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let file = sample(".modinfo", b"name=x\0");
        for length in 0..file.len() {
            assert!(section(&file[..length], ".modinfo").is_err(), "{length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_damage_makes_the_reader_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut file = sample(".modinfo", b"name=x\0depends=\0");
            for (index, value) in changes {
                let at = index.index(file.len());
                file[at] = value;
            }
            let _ = section(&file, ".modinfo");
        }
    }
}
