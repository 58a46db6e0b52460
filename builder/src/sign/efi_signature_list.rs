//! What firmware wants to hear about keys: signature lists and authenticated variable updates.
//!
//! Source: UEFI 2.10, sections 8.2.2 (`EFI_VARIABLE_AUTHENTICATION_2`) and 32.4.1 (`EFI_SIGNATURE_LIST`).

use anyhow::{Result, anyhow, ensure};

use super::authenticode::signed_data;
use super::der::{self, sequence};
use crate::digest::Digest;
use crate::partitions::guid::Guid;

/// `EFI_CERT_X509_GUID`.
const X509: Guid = Guid::new(0xa5c059a1_94e4_4aa7_87b5_ab155c2bf072);
/// `EFI_CERT_SHA256_GUID`.
const SHA256: Guid = Guid::new(0xc1c41626_504c_4092_aca9_41f936934328);
/// `EFI_CERT_TYPE_PKCS7_GUID`.
const PKCS7: Guid = Guid::new(0x4aafd29d_68df_49ee_8aa9_347d375665a7);
/// `EFI_GLOBAL_VARIABLE`: PK and KEK.
const GLOBAL: Guid = Guid::new(0x8be4df61_93ca_11d2_aa0d_00e098032b8c);
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`: db and dbx.
const IMAGE_SECURITY: Guid = Guid::new(0xd719b2cb_3d3a_4596_a3bc_dad00e67656f);

/// Non-volatile, readable by boot services and at run time, written only with a newer time stamp.
pub const ATTRIBUTES: u32 = 0x27;

/// The time of every variable that kimage makes: 2020-01-01 00:00 UTC as `EFI_TIME`. Fixed, so that equal keys give
/// equal files; old, so that every real update is newer.
pub const TIMESTAMP: [u8; 16] = [0xe4, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The variables that decide what Secure Boot accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variable {
    /// Platform key: may change KEK.
    PlatformKey,
    /// Key exchange key: may change db and dbx.
    KeyExchangeKey,
    /// Certificates whose keys sign programs.
    Database,
    /// Certificates and digests that are refused.
    Forbidden,
}

impl Variable {
    /// The variable's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::PlatformKey => "PK",
            Self::KeyExchangeKey => "KEK",
            Self::Database => "db",
            Self::Forbidden => "dbx",
        }
    }

    /// The variable's namespace.
    pub fn vendor(self) -> Guid {
        match self {
            Self::PlatformKey | Self::KeyExchangeKey => GLOBAL,
            Self::Database | Self::Forbidden => IMAGE_SECURITY,
        }
    }
}

/// The owner GUID of a key set's entries: a mark without meaning to firmware, derived from the platform key
/// certificate (DER).
pub fn owner(platform_key: &[u8]) -> Guid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Digest::of(platform_key).as_bytes()[..16]);
    Guid::derived(bytes)
}

/// A signature list with one certificate (DER).
pub fn certificate_list(owner: Guid, certificate: &[u8]) -> Vec<u8> {
    list(X509, owner, certificate)
}

/// A signature list with the digest of nothing: what a dbx holds that forbids nothing. Some firmware takes an
/// absent dbx for a damaged one.
pub fn empty_forbidden_list(owner: Guid) -> Vec<u8> {
    list(SHA256, owner, Digest::of(b"").as_bytes())
}

fn list(kind: Guid, owner: Guid, data: &[u8]) -> Vec<u8> {
    let signature_size = 16 + data.len() as u32;
    let mut bytes = kind.to_disk().to_vec();
    for field in [28 + signature_size, 0, signature_size] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(owner.to_disk());
    bytes.extend(data);
    bytes
}

/// An authenticated update (`.auth` file) that sets `variable` to `data`, signed by the key of `certificate` (DER).
/// `sign` makes an RSA PKCS#1 v1.5 SHA-256 signature over the message it is given.
pub fn authenticated_update(
    variable: Variable,
    data: &[u8],
    certificate: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let signature = sign(&signed_message(variable, data))?;
    let info = sequence(&[&der::oid(der::DATA)]);
    let data_block = signed_data(&info, certificate, &[], &signature)?;
    let mut update = TIMESTAMP.to_vec();
    // WIN_CERTIFICATE_UEFI_GUID: length, revision 2.0, type EFI_GUID, then which kind.
    update.extend((24 + data_block.len() as u32).to_le_bytes());
    update.extend([0x00, 0x02, 0xf1, 0x0e]);
    update.extend(PKCS7.to_disk());
    update.extend(data_block);
    update.extend(data);
    Ok(update)
}

fn signed_message(variable: Variable, data: &[u8]) -> Vec<u8> {
    let mut message: Vec<u8> = variable
        .name()
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    message.extend(variable.vendor().to_disk());
    message.extend(ATTRIBUTES.to_le_bytes());
    message.extend(TIMESTAMP);
    message.extend(data);
    message
}

/// Checks that `update` (an `.auth` file made by kimage) sets `variable` to `data` and is signed by the key of
/// `certificate`.
pub fn verify_update(variable: Variable, data: &[u8], certificate: &[u8], update: &[u8]) -> Result<()> {
    let mut signature = None;
    let expected = authenticated_update(variable, data, certificate, |_| {
        let length = update.len().min(256);
        let end = update.len().saturating_sub(data.len());
        let found = update.get(end.saturating_sub(length)..end).unwrap_or_default();
        signature = Some(found.to_vec());
        Ok(found.to_vec())
    })?;
    ensure!(
        expected == update,
        "{} update does not set what the key set says",
        variable.name()
    );
    let signature = signature.ok_or_else(|| anyhow!("no signature"))?;
    super::certificate::verify_rsa(certificate, &signed_message(variable, data), &signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Signer;

    #[test]
    fn a_list_has_the_published_layout() {
        let owner = Guid::new(0xa0baa8a3_041d_48a8_bc87_c36d121b5e3d);
        // What virt-fw-vars writes into dbx.
        let expected = "2616c4c14c509240aca941f9369343284c0000000000000030000000a3a8baa01d04a848bc87c36d121b5e3d\
                        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(crate::digest::hex(&empty_forbidden_list(owner)), expected);
    }

    #[test]
    fn an_update_is_bound_to_its_variable_content_and_key() {
        let identity = crate::sign::keys::testing::signer().identity().clone();
        let owner = owner(&identity.platform_key);
        let list = certificate_list(owner, &identity.database);
        let update = &identity.enrolment.as_ref().unwrap().database;
        let verify = |variable, data: &[u8], key: &[u8]| verify_update(variable, data, key, update);
        verify(Variable::Database, &list, &identity.key_exchange_key).unwrap();
        assert!(verify(Variable::Forbidden, &list, &identity.key_exchange_key).is_err());
        assert!(verify(Variable::Database, &list, &identity.platform_key).is_err());
        let other = certificate_list(owner, &identity.platform_key);
        assert!(verify(Variable::Database, &other, &identity.key_exchange_key).is_err());
        assert!(
            verify_update(
                Variable::Database,
                &list,
                &identity.key_exchange_key,
                &update[..40]
            )
            .is_err()
        );
    }
}
