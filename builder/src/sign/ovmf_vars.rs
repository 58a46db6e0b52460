//! The variable store of OVMF, the firmware of QEMU and of several clouds, with our keys in it and Secure Boot on.
//!
//! Source: EDK2 `MdeModulePkg/Include/Guid/VariableFormat.h`, `SystemNvDataGuid.h`, `OvmfPkg/VarStore.fdf.inc`, for
//! the layout of 4 MiB builds. Without variables the store equals the file `OVMF_VARS_4M.fd` byte for byte.

use anyhow::{Context, Result, bail, ensure};

use super::Identity;
use super::efi_signature_list::{
    ATTRIBUTES, TIMESTAMP, Variable, certificate_list, empty_forbidden_list, owner,
};
use crate::partitions::guid::Guid;

/// Bytes of the whole store, `OVMF_VARS_4M.fd`.
pub const SIZE: usize = 0x84000;
/// Bytes of the variables' region; then come the event log, the fault-tolerant write work area and its spare.
const VARIABLES_END: usize = 0x40000;
const WORK_AREA: usize = 0x41000;
const VOLUME_HEADER: usize = 0x48;
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;

const NV_DATA: Guid = Guid::new(0xfff12b8d_7696_4c8b_a985_2747075b4f50);
const AUTHENTICATED_STORE: Guid = Guid::new(0xaaf32c78_947b_439a_a180_2e144ec37792);
const SECURE_BOOT_ENABLE: Guid = Guid::new(0xf0a30bc7_af08_4556_99c4_001009c93a44);
const CUSTOM_MODE: Guid = Guid::new(0xc076ec0c_7028_4399_a072_71ee5c448b9f);

/// `VAR_ADDED`: header and data are valid.
const VALID: u8 = 0x3f;
/// Non-volatile, boot services only.
const BOOT_SERVICES: u32 = 3;

/// The store that enforces Secure Boot with the keys of `identity` and no others.
pub fn enrolled(identity: &Identity) -> Result<Vec<u8>> {
    let owner = owner(&identity.platform_key);
    let keys = [
        (
            Variable::KeyExchangeKey,
            certificate_list(owner, &identity.key_exchange_key),
        ),
        (
            Variable::PlatformKey,
            certificate_list(owner, &identity.platform_key),
        ),
        (Variable::Database, certificate_list(owner, &identity.database)),
        (Variable::Forbidden, empty_forbidden_list(owner)),
    ];
    let mut variables = variable("CustomMode", CUSTOM_MODE, BOOT_SERVICES, [0; 16], &[0]);
    variables.extend(variable(
        "SecureBootEnable",
        SECURE_BOOT_ENABLE,
        BOOT_SERVICES,
        [0; 16],
        &[1],
    ));
    for (key, data) in keys {
        variables.extend(variable(key.name(), key.vendor(), ATTRIBUTES, TIMESTAMP, &data));
    }
    store(&variables)
}

/// A store with the given encoded variables.
fn store(variables: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![0xff; SIZE];
    bytes[..VOLUME_HEADER].copy_from_slice(&volume_header());
    let start = VOLUME_HEADER + STORE_HEADER;
    bytes[VOLUME_HEADER..start].copy_from_slice(&store_header());
    let Some(place) = bytes[start..VARIABLES_END].get_mut(..variables.len()) else {
        bail!(
            "variables of {} bytes do not fit into the firmware's store",
            variables.len()
        );
    };
    place.copy_from_slice(variables);
    // EFI_FAULT_TOLERANT_WORKING_BLOCK_HEADER: GUID, CRC, state (valid) and the size of the write queue behind it.
    let work = [
        &Guid::new(0x9e58292b_7c68_497d_a0ce_6500fd9f1b95).to_disk()[..],
        &[0x2c, 0xaf, 0x2c, 0x64, 0xfe, 0xff, 0xff, 0xff],
        &0xfe0u64.to_le_bytes(),
    ]
    .concat();
    bytes[WORK_AREA..][..work.len()].copy_from_slice(&work);
    Ok(bytes)
}

/// `EFI_FIRMWARE_VOLUME_HEADER` with one block map entry.
fn volume_header() -> [u8; VOLUME_HEADER] {
    const BLOCK: u32 = 0x1000;
    let mut header = [0; VOLUME_HEADER];
    header[16..32].copy_from_slice(&NV_DATA.to_disk());
    header[32..40].copy_from_slice(&(SIZE as u64).to_le_bytes());
    header[40..44].copy_from_slice(b"_FVH");
    header[44..48].copy_from_slice(&0x4_feffu32.to_le_bytes());
    header[48..50].copy_from_slice(&(VOLUME_HEADER as u16).to_le_bytes());
    header[55] = 2;
    header[56..60].copy_from_slice(&(SIZE as u32 / BLOCK).to_le_bytes());
    header[60..64].copy_from_slice(&BLOCK.to_le_bytes());
    let sum = header.chunks(2).fold(0u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
    });
    header[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    header
}

/// `VARIABLE_STORE_HEADER`: formatted, healthy.
fn store_header() -> [u8; STORE_HEADER] {
    let mut header = [0; STORE_HEADER];
    header[..16].copy_from_slice(&AUTHENTICATED_STORE.to_disk());
    header[16..20].copy_from_slice(&((VARIABLES_END - VOLUME_HEADER) as u32).to_le_bytes());
    header[20..22].copy_from_slice(&[0x5a, 0xfe]);
    header
}

/// `AUTHENTICATED_VARIABLE_HEADER`, name and data, padded to four bytes.
fn variable(name: &str, vendor: Guid, attributes: u32, time: [u8; 16], data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut bytes = vec![0xaa, 0x55, VALID, 0];
    bytes.extend(attributes.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(time);
    for field in [0, name.len() as u32, data.len() as u32] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(vendor.to_disk());
    debug_assert_eq!(bytes.len(), VARIABLE_HEADER);
    bytes.extend(name);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0xff);
    bytes
}

/// The certificates (DER) that a store of [`enrolled`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledKeys {
    /// Platform key.
    pub platform_key: Vec<u8>,
    /// Key exchange key.
    pub key_exchange_key: Vec<u8>,
    /// Signature database.
    pub database: Vec<u8>,
}

/// Reads the certificates back. The store must be, byte for byte, what [`enrolled`] makes of them: Secure Boot on,
/// one certificate for each purpose and nothing else.
pub fn read(bytes: &[u8]) -> Result<EnrolledKeys> {
    ensure!(
        bytes.len() == SIZE,
        "variable store has {} bytes instead of {SIZE}",
        bytes.len()
    );
    let certificate = |variable: Variable| -> Result<Vec<u8>> {
        let found = find(&bytes[VOLUME_HEADER + STORE_HEADER..VARIABLES_END], variable);
        found.with_context(|| format!("variable store holds no certificate as {}", variable.name()))
    };
    let keys = EnrolledKeys {
        platform_key: certificate(Variable::PlatformKey)?,
        key_exchange_key: certificate(Variable::KeyExchangeKey)?,
        database: certificate(Variable::Database)?,
    };
    let identity = Identity {
        platform_key: keys.platform_key.clone(),
        key_exchange_key: keys.key_exchange_key.clone(),
        database: keys.database.clone(),
        release: [0; 32],
        enrolment: None,
        development: false,
    };
    verify(bytes, &identity)?;
    Ok(keys)
}

/// The certificate of the signature list in `wanted`: what follows its two headers and the owner.
fn find(variables: &[u8], wanted: Variable) -> Option<Vec<u8>> {
    const LIST_HEADERS: usize = 28 + 16;
    let mut rest = variables;
    while rest.starts_with(&[0xaa, 0x55]) {
        let field = |at: usize| -> Option<usize> {
            let bytes = rest.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let (name_length, data_length) = (field(36)?, field(40)?);
        let data_start = VARIABLE_HEADER.checked_add(name_length)?;
        let end = data_start.checked_add(data_length)?;
        let name: Vec<u8> = wanted
            .name()
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        if rest.get(VARIABLE_HEADER..data_start)? == name {
            return Some(rest.get(data_start..end)?.get(LIST_HEADERS..)?.to_vec());
        }
        rest = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// Checks that `store` is, byte for byte, the one for `identity`.
pub fn verify(store: &[u8], identity: &Identity) -> Result<()> {
    ensure!(
        store == enrolled(identity)?,
        "variable store holds other keys or settings than the key set's"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Signer;

    #[test]
    fn an_empty_store_is_ovmfs_own() {
        let path = "/usr/share/OVMF/OVMF_VARS_4M.fd";
        let own = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}; apt install ovmf"));
        assert_eq!(own.len(), SIZE);
        assert!(store(&[]).unwrap() == own);
    }

    #[test]
    fn too_many_variables_are_an_error() {
        assert!(store(&[0; VARIABLES_END]).is_err());
    }

    #[test]
    fn a_store_of_other_keys_is_noticed() {
        let (own, foreign) = (
            crate::sign::keys::testing::signer(),
            crate::sign::keys::testing::foreign(),
        );
        let store = enrolled(own.identity()).unwrap();
        assert_eq!(store.len(), SIZE);
        verify(&store, own.identity()).unwrap();
        let keys = read(&store).unwrap();
        assert_eq!(keys.platform_key, own.identity().platform_key);
        assert_eq!(keys.database, own.identity().database);
        assert!(verify(&store, foreign.identity()).is_err());
    }

    #[test]
    fn a_damaged_store_is_an_error_and_never_a_panic() {
        let signer = crate::sign::keys::testing::signer();
        let store = enrolled(signer.identity()).unwrap();
        for place in (0..200)
            .chain((200..6000).step_by(61))
            .chain([WORK_AREA, SIZE - 1])
        {
            let mut damaged = store.clone();
            damaged[place] ^= 0x41;
            assert!(verify(&damaged, signer.identity()).is_err(), "byte {place}");
        }
        assert!(read(&store[1..]).is_err());
    }
}
