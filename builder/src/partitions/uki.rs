//! Unified kernel images: systemd's EFI stub with kernel, initrd and command line as further PE sections.
//!
//! Source: UAPI Group, Unified Kernel Image specification; systemd `ukify.py` and `src/boot/efi/stub.c`.

pub mod pe;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use pe::{NX_COMPAT, Pe, SectionHeader};

/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const DATA: u32 = 0x4000_0040;
/// `IMAGE_SCN_CNT_CODE | IMAGE_SCN_MEM_READ`: kernels with the EFI handover protocol run in place.
const CODE: u32 = 0x4000_0020;
/// Larger UKIs overflow the 4 GiB of a PE image together with their padding.
const MAX_PAYLOAD: usize = 1 << 31;

/// What a payload section holds. The order of the variants is the order in the file, which is ukify's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// `/usr/lib/os-release` of the system.
    OsRelease,
    /// The kernel command line, no NUL, no line feed at the end.
    CommandLine,
    /// A boot splash, BMP.
    Splash,
    /// The kernel release, as `uname -r` prints it.
    KernelRelease,
    /// PEM public key of the signatures over expected PCR values.
    PcrPublicKey,
    /// The kernel, itself a PE file.
    Linux,
    /// The initrd, cpio.
    Initrd,
    /// Microcode, cpio; known to systemd-stub from version 256.
    Microcode,
    /// SBAT table; replaces the one in the stub.
    Sbat,
}

impl SectionKind {
    /// The PE section's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::OsRelease => ".osrel",
            Self::CommandLine => ".cmdline",
            Self::Splash => ".splash",
            Self::KernelRelease => ".uname",
            Self::PcrPublicKey => ".pcrpkey",
            Self::Linux => ".linux",
            Self::Initrd => ".initrd",
            Self::Microcode => ".ucode",
            Self::Sbat => ".sbat",
        }
    }
}

/// One payload.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// What it is.
    pub kind: SectionKind,
    /// Its bytes, exactly as the stub shall hand them on.
    pub data: &'a [u8],
}

/// The unsigned UKI made of `stub` and `sections` (in any order, each kind at most once).
pub fn assemble(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>> {
    let mut pe = Pe::parse(stub).context("EFI stub")?;
    let mut sections = sections.to_vec();
    sections.sort_by_key(|section| section.kind);
    check(&pe, &sections)?;

    // A symbol table behind the last section is no part of any section: left in, it would be a hole between sections.
    let mut file = stub[..pe.contiguous_end().context("EFI stub")?].to_vec();
    let mut dll_characteristics = pe.dll_characteristics(stub)?;
    for section in sections {
        if section.kind == SectionKind::Linux {
            let kernel = Pe::parse(section.data).context("kernel: not an EFI program")?;
            dll_characteristics &= !NX_COMPAT | kernel.dll_characteristics(section.data)?;
        }
        if section.kind == SectionKind::Sbat && replace(&mut pe, &mut file, &section)? {
            continue;
        }
        append(&mut pe, &mut file, &section)?;
    }
    pe.write_headers(&mut file, dll_characteristics)?;
    Ok(file)
}

fn check(stub: &Pe, sections: &[Section<'_>]) -> Result<()> {
    for pair in sections.windows(2) {
        ensure!(
            pair[0].kind != pair[1].kind,
            "UKI section {} is given twice",
            pair[0].kind.name()
        );
    }
    if let Some(empty) = sections.iter().find(|section| section.data.is_empty()) {
        bail!("UKI section {} is empty", empty.kind.name());
    }
    let total = sections
        .iter()
        .try_fold(0usize, |sum, section| sum.checked_add(section.data.len()));
    ensure!(
        total.is_some_and(|total| total <= MAX_PAYLOAD),
        "UKI payload is larger than 2 GiB"
    );
    let room = stub.header_room();
    ensure!(
        sections.len() <= room,
        "EFI stub has room for {room} more sections, {} are needed",
        sections.len()
    );
    Ok(())
}

fn append(pe: &mut Pe, file: &mut Vec<u8>, section: &Section<'_>) -> Result<()> {
    let mut name = [0; 8];
    name[..section.kind.name().len()].copy_from_slice(section.kind.name().as_bytes());
    let end = pe.sections.last().map_or(0, SectionHeader::virtual_end);
    let address = end.next_multiple_of(pe.section_alignment as u64);
    file.resize(file.len().next_multiple_of(pe.file_alignment), 0);
    let raw_offset = u32::try_from(file.len()).context("UKI is larger than 4 GiB")?;
    file.extend_from_slice(section.data);
    file.resize(file.len().next_multiple_of(pe.file_alignment), 0);
    pe.sections.push(SectionHeader {
        name,
        virtual_size: u32::try_from(section.data.len())?,
        virtual_address: u32::try_from(address).context("UKI is larger than 4 GiB in memory")?,
        raw_size: u32::try_from(file.len())? - raw_offset,
        raw_offset,
        characteristics: if section.kind == SectionKind::Linux {
            CODE
        } else {
            DATA
        },
    });
    Ok(())
}

/// Puts the section's bytes where the stub has a section of that name; false when it has none.
fn replace(pe: &mut Pe, file: &mut [u8], section: &Section<'_>) -> Result<bool> {
    let name = section.kind.name();
    let Some(index) = pe
        .sections
        .iter()
        .position(|header| header.name() == name.as_bytes())
    else {
        return Ok(false);
    };
    let next = pe
        .sections
        .get(index + 1)
        .map_or(u64::MAX, |next| u64::from(next.virtual_address));
    let header = &mut pe.sections[index];
    let place = &mut file[header.raw_offset as usize..][..header.raw_size as usize];
    let fits = section.data.len() <= place.len()
        && u64::from(header.virtual_address) + section.data.len() as u64 <= next;
    ensure!(
        fits,
        "{name} of {} bytes does not fit into the stub's {} bytes",
        section.data.len(),
        place.len()
    );
    place.fill(0);
    place[..section.data.len()].copy_from_slice(section.data);
    header.virtual_size = u32::try_from(section.data.len())?;
    Ok(true)
}

/// A UKI (or any EFI program) read back.
#[derive(Debug)]
pub struct Uki<'a> {
    file: &'a [u8],
    pe: Pe,
}

impl<'a> Uki<'a> {
    /// Reads the headers of `file`. Refuses what the stub and another reader could understand differently: a name
    /// that comes twice, a section larger in memory than in the file.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        let pe = Pe::parse(file)?;
        let mut names = BTreeSet::new();
        for section in &pe.sections {
            let name = section.name();
            ensure!(
                names.insert(name),
                "PE section {} comes twice",
                name.escape_ascii()
            );
            ensure!(
                section.virtual_size <= section.raw_size,
                "PE section {} is {} bytes in memory, {} in the file",
                name.escape_ascii(),
                section.virtual_size,
                section.raw_size
            );
        }
        Ok(Self { file, pe })
    }

    /// The bytes of the section with that PE name (`.linux`).
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        self.sections()
            .find(|(found, _)| *found == name.as_bytes())
            .map(|(_, data)| data)
    }

    /// Names and bytes of all sections, those of the stub too, in the file's order.
    pub fn sections(&self) -> impl Iterator<Item = (&[u8], &'a [u8])> {
        self.pe
            .sections
            .iter()
            .map(|header| (header.name(), self.pe.data(self.file, header)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KERNEL: &[(&[u8], &[u8])] = &[(b".text", b"kernel")];

    fn stub() -> Vec<u8> {
        pe::sample(&[
            (b".text", &[0x90; 700]),
            (b".sbat", b"sbat,1,SBAT\n"),
            (b".reloc", &[0; 12]),
        ])
    }

    fn payload(kernel: &[u8]) -> [Section<'_>; 3] {
        [
            Section {
                kind: SectionKind::Initrd,
                data: b"initrd",
            },
            Section {
                kind: SectionKind::Linux,
                data: kernel,
            },
            Section {
                kind: SectionKind::CommandLine,
                data: b"quiet",
            },
        ]
    }

    #[test]
    fn what_goes_in_comes_out_in_ukifys_order() {
        let kernel = pe::sample(KERNEL);
        let file = assemble(&stub(), &payload(&kernel)).unwrap();
        let uki = Uki::parse(&file).unwrap();
        let names: Vec<_> = uki
            .sections()
            .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
            .collect();
        assert_eq!(
            names,
            [".text", ".sbat", ".reloc", ".cmdline", ".linux", ".initrd"]
        );
        assert_eq!(uki.section(".cmdline"), Some(&b"quiet"[..]));
        assert_eq!(uki.section(".linux"), Some(&kernel[..]));
        assert_eq!(uki.pe.contiguous_end().unwrap(), file.len());
    }

    #[test]
    fn a_symbol_table_behind_the_sections_is_dropped() {
        let mut with_symbols = stub();
        with_symbols[0x44 + 8..0x44 + 16].fill(0x7f);
        with_symbols.extend_from_slice(b"symbols that would become a hole");
        let kernel = pe::sample(KERNEL);
        assert_eq!(
            assemble(&with_symbols, &payload(&kernel)).unwrap(),
            assemble(&stub(), &payload(&kernel)).unwrap()
        );
    }

    #[test]
    fn a_kernel_without_nx_takes_the_mark_off_the_uki() {
        let mut kernel = pe::sample(KERNEL);
        let nx = |file: &[u8]| Pe::parse(file).unwrap().dll_characteristics(file).unwrap() & NX_COMPAT != 0;
        assert!(nx(&assemble(&stub(), &payload(&kernel)).unwrap()));
        kernel[0x40 + 24 + 71] = 0;
        assert!(!nx(&assemble(&stub(), &payload(&kernel)).unwrap()));
    }

    #[test]
    fn sbat_replaces_the_stubs_and_must_fit() {
        let sbat = |data| {
            assemble(
                &stub(),
                &[Section {
                    kind: SectionKind::Sbat,
                    data,
                }],
            )
        };
        let file = sbat(b"sbat,1,own\n").unwrap();
        let uki = Uki::parse(&file).unwrap();
        assert_eq!(uki.section(".sbat"), Some(&b"sbat,1,own\n"[..]));
        assert_eq!(uki.sections().count(), 3);
        assert!(sbat(&[b'x'; 513]).is_err());
    }

    #[test]
    fn twice_empty_or_too_many_is_refused() {
        let one = Section {
            kind: SectionKind::CommandLine,
            data: b"a",
        };
        assert!(assemble(&stub(), &[one, one]).is_err());
        assert!(assemble(&stub(), &[Section { data: b"", ..one }]).is_err());
        let full: Vec<(&[u8], &[u8])> = vec![(b".x", b"y"); 43];
        let error = assemble(&pe::sample(&full), &[one])
            .map(|file| file.len())
            .unwrap_err();
        assert!(error.to_string().contains("room"), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_ukis_never_panic(changes in prop::collection::vec((0usize..0x400, any::<u8>()), 1..16)) {
            let mut file = assemble(&stub(), &payload(&pe::sample(KERNEL))).unwrap();
            for (place, value) in changes {
                file[place] = value;
            }
            if let Ok(uki) = Uki::parse(&file) {
                prop_assert!(uki.sections().all(|(_, data)| data.len() <= file.len()));
            }
            let _ = assemble(&file, &[Section { kind: SectionKind::OsRelease, data: b"ID=x" }]);
        }
    }
}
