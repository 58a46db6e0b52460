//! Which partition the firmware started this boot from: the EFI variable `LoaderDevicePartUUID`
//! (<https://systemd.io/BOOT_LOADER_INTERFACE/>), as the kernel shows it (Documentation/filesystems/efivarfs.rst).
//!
//! systemd-boot sets it, and without systemd-boot systemd's stub does, at each boot and in the firmware's memory only.
//! Its text is the id of the boot partition in the partition table that the firmware itself read. So it is the one
//! word about disks that doesn't come from a disk of unknown origin.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::gpt::Guid;

/// There where the firmware's variables can be asked for at all.
const FOLDER: &str = "/sys/firmware/efi/efivars";
const VARIABLE: &str = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// A GUID of 36 characters takes 4 + 2 * 37 bytes; nothing longer is read.
const MAX_VARIABLE: u64 = 256;
/// `EFI_VARIABLE_BOOTSERVICE_ACCESS | EFI_VARIABLE_RUNTIME_ACCESS`: gone at the next boot.
const OF_THIS_BOOT: u32 = 0x2 | 0x4;

/// The id of the boot partition; `None` where the firmware or the boot loader says nothing: no UEFI, a kernel that the
/// hypervisor loads itself, a boot from the network.
///
/// # Errors
///
/// There is a word, but none that may be believed.
pub(super) fn boot_partition() -> Result<Option<Guid>> {
    if !Path::new(FOLDER).is_dir() {
        return Ok(None);
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("efivarfs", FOLDER, "efivarfs", flags, c"") {
        // The firmware's variables can't be used at run time (`efi=noruntime`, real-time kernels).
        Err(Errno::OPNOTSUPP | Errno::NODEV) => return Ok(None),
        other => other.with_context(|| format!("mount efivarfs on {FOLDER}"))?,
    }
    let bytes = read(&Path::new(FOLDER).join(VARIABLE));
    // systemd mounts it again, with its own options.
    unmount(FOLDER, UnmountFlags::empty()).with_context(|| format!("unmount {FOLDER}"))?;
    let bytes = bytes.with_context(|| format!("read EFI variable {VARIABLE}"))?;
    let id = bytes.map(|bytes| parse(&bytes)).transpose();
    id.with_context(|| format!("EFI variable {VARIABLE}"))
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_VARIABLE + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Reads the variable as efivarfs shows it: four bytes of attributes, then the GUID's text in UTF-16, in either case,
/// with a NUL at its end or none.
///
/// # Errors
///
/// It is none of this boot: a variable that outlives a boot was written by somebody else, and the boot loader can't
/// have replaced it.
pub fn parse(bytes: &[u8]) -> Result<Guid> {
    ensure!(
        bytes.len() as u64 <= MAX_VARIABLE,
        "more than {MAX_VARIABLE} bytes"
    );
    let (attributes, value) = bytes.split_first_chunk::<4>().context("no attributes")?;
    let attributes = u32::from_le_bytes(*attributes);
    ensure!(
        attributes == OF_THIS_BOOT,
        "attributes {attributes:#x} are not those of this boot's word"
    );
    let (units, rest) = value.as_chunks::<2>();
    ensure!(rest.is_empty(), "half a character at the end");
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    let text = units.strip_suffix(&[0]).unwrap_or(&units);
    let text = String::from_utf16(text).context("no UTF-16")?;
    let id = Guid::parse(&text).with_context(|| format!("{text:?} is no GUID"))?;
    ensure!(!id.is_zero(), "the GUID is zero");
    Ok(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const TEXT: &str = "0A1B2C3D-4E5F-4789-8abc-def012345678";

    fn variable(attributes: u32, text: &str) -> Vec<u8> {
        let mut bytes = attributes.to_le_bytes().to_vec();
        bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        bytes
    }

    #[test]
    fn the_text_is_read_in_either_case_with_and_without_its_end() {
        let expected = TEXT.to_lowercase();
        for text in [
            TEXT.to_owned(),
            format!("{TEXT}\0"),
            expected.clone(),
            TEXT.to_uppercase(),
        ] {
            assert_eq!(
                parse(&variable(6, &text)).unwrap().to_string(),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_variable_that_outlives_a_boot_is_not_believed() {
        for attributes in [0, 2, 7, 0x27, 0x46] {
            assert!(parse(&variable(attributes, TEXT)).is_err(), "{attributes:#x}");
        }
    }

    #[test]
    fn anything_but_one_guid_is_refused() {
        let whole = variable(6, TEXT);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
        let cases = [
            "",
            "\0",
            &format!("{TEXT}\0\0"),
            &format!("\0{TEXT}"),
            &format!("{TEXT}\0{TEXT}"),
            &format!("{{{TEXT}}}"),
            &format!(" {TEXT}"),
            &TEXT.replace('-', ""),
            &TEXT.replace('0', "g"),
            &TEXT.replace('0', "\u{660}"),
            "0A1B2C3-D4E5F-4789-8abc-def012345678",
            "00000000-0000-0000-0000-000000000000",
        ];
        for text in cases {
            assert!(parse(&variable(6, text)).is_err(), "{text:?}");
        }
        let mut unpaired = whole.clone();
        unpaired[4..6].copy_from_slice(&[0x00, 0xd8]);
        assert!(parse(&unpaired).is_err());
        assert!(parse(&variable(6, &"0".repeat(1000))).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_guid_reads_back(bytes in any::<[u8; 16]>(), upper in any::<bool>(), end in any::<bool>()) {
            let id = Guid::from_text_order(bytes);
            let mut text = id.to_string();
            if upper {
                text = text.to_uppercase();
            }
            if end {
                text.push('\0');
            }
            if !id.is_zero() {
                prop_assert_eq!(parse(&variable(6, &text)).unwrap(), id);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic_or_pass_but_for_a_guid(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(id) = parse(&bytes) {
                prop_assert!(bytes.len() >= 76);
                prop_assert_eq!(Guid::parse(&id.to_string()), Some(id));
            }
        }
    }
}
