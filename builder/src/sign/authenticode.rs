//! Authenticode signatures of EFI programs, the kind that Secure Boot checks.
//!
//! Source: Microsoft, "Windows Authenticode Portable Executable Signature Format"; UEFI 2.10, section 32.5. There is no
//! signing time among the signed attributes: it may be left out, and without it equal inputs give equal files.

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{SHA256, digest as hash};

use super::der::{
    self, CONTENT_TYPE, CONTEXT_0, INTEGER, MESSAGE_DIGEST, OCTET_STRING, RSA_ENCRYPTION, Reader, SEQUENCE,
    SET, SHA256_RSA, SIGNED_DATA, SPC_INDIRECT_DATA, SPC_PE_IMAGE_DATA, algorithm, element, oid, sequence,
};
use super::{Purpose, Signer, certificate};
use crate::digest::Digest;
use crate::partitions::uki::pe::Pe;

/// `WIN_CERTIFICATE`: length, revision 2.0, type PKCS#7.
const CERTIFICATE_HEADER: usize = 8;
const PKCS7: [u8; 4] = [0x00, 0x02, 0x02, 0x00];

/// `file` without its signature, padded to eight bytes as signing pads it.
pub fn strip(file: &[u8]) -> Result<Vec<u8>> {
    let pe = Pe::parse(file)?;
    pe.contiguous_end()?;
    let end = pe.certificates.map_or(file.len(), |(offset, _)| offset);
    let mut bare = file[..end].to_vec();
    bare.resize(end.next_multiple_of(8), 0);
    bare[pe.certificate_entry()..][..8].fill(0);
    Ok(bare)
}

/// The Authenticode SHA-256 digest of `file`; a signature in it does not matter.
pub fn digest(file: &[u8]) -> Result<Digest> {
    let bare = strip(file)?;
    let pe = Pe::parse(&bare)?;
    let mut hasher = crate::digest::Hasher::new();
    hasher.update(&bare[..pe.checksum_field()]);
    hasher.update(&bare[pe.checksum_field() + 4..pe.certificate_entry()]);
    hasher.update(&bare[pe.certificate_entry() + 8..]);
    Ok(hasher.finish())
}

/// `file` with one signature by the Secure Boot db key of `signer`, in place of any it had.
pub fn sign(file: &[u8], signer: &dyn Signer) -> Result<Vec<u8>> {
    let mut signed = strip(file).context("sign EFI program")?;
    let table = pkcs7(&digest(&signed)?, signer)?;
    let offset = u32::try_from(signed.len()).context("EFI program is larger than 4 GiB")?;
    let length = (CERTIFICATE_HEADER + table.len()).next_multiple_of(8);
    let entry = Pe::parse(&signed)?.certificate_entry();
    let length_field = u32::try_from(length)?.to_le_bytes();
    signed[entry..][..4].copy_from_slice(&offset.to_le_bytes());
    signed[entry + 4..][..4].copy_from_slice(&length_field);
    signed.extend(length_field);
    signed.extend(PKCS7);
    signed.extend(table);
    signed.resize(offset as usize + length, 0);
    Ok(signed)
}

/// The content of `SpcIndirectDataContent`, without its outer tag and length: that is what messageDigest covers.
fn indirect_data(digest: &Digest) -> Vec<u8> {
    // SpcPeImageData { flags, file [0] { SpcLink file [2] { SpcString unicode [0] "" } } }
    let image = sequence(&[&[der::BIT_STRING, 1, 0], &[CONTEXT_0, 4, 0xa2, 2, 0x80, 0]]);
    let attribute = sequence(&[&oid(SPC_PE_IMAGE_DATA), &image]);
    let digest = sequence(&[
        &algorithm(der::SHA256),
        &element(OCTET_STRING, &[digest.as_bytes()]),
    ]);
    [attribute, digest].concat()
}

fn pkcs7(digest: &Digest, signer: &dyn Signer) -> Result<Vec<u8>> {
    let content = indirect_data(digest);
    let message_digest = hash(&SHA256, &content);
    let content_type = sequence(&[&oid(CONTENT_TYPE), &element(SET, &[&oid(SPC_INDIRECT_DATA)])]);
    let message_digest = element(OCTET_STRING, &[message_digest.as_ref()]);
    let message_digest = sequence(&[&oid(MESSAGE_DIGEST), &element(SET, &[&message_digest])]);
    // DER sorts a SET OF by encoding; the shorter attribute starts with the smaller length byte.
    let attributes = [content_type, message_digest].concat();
    let signature = signer.sign(Purpose::SecureBoot, &element(SET, &[&attributes]))?;

    let info = sequence(&[
        &oid(SPC_INDIRECT_DATA),
        &element(CONTEXT_0, &[&sequence(&[&content])]),
    ]);
    let attributes = element(CONTEXT_0, &[&attributes]);
    let data = signed_data(&info, &signer.identity().database, &attributes, &signature)?;
    Ok(sequence(&[&oid(SIGNED_DATA), &element(CONTEXT_0, &[&data])]))
}

/// PKCS#7 `SignedData` with one signer. `attributes` is the encoded `[0]` field or nothing.
pub(super) fn signed_data(
    info: &[u8],
    signer: &[u8],
    attributes: &[u8],
    signature: &[u8],
) -> Result<Vec<u8>> {
    let parsed = certificate::parse(signer)?;
    let serial = element(INTEGER, &[parsed.raw_serial()]);
    let version = element(INTEGER, &[&[1]]);
    let signer_info = sequence(&[
        &version,
        &sequence(&[parsed.issuer().as_raw(), &serial]),
        &algorithm(der::SHA256),
        attributes,
        &algorithm(RSA_ENCRYPTION),
        &element(OCTET_STRING, &[signature]),
    ]);
    Ok(sequence(&[
        &version,
        &element(SET, &[&algorithm(der::SHA256)]),
        info,
        &element(CONTEXT_0, &[signer]),
        &element(SET, &[&signer_info]),
    ]))
}

/// Checks that `file` carries exactly one signature, that it is by the key of `certificate` (DER) and that it covers
/// the file as it stands.
pub fn verify(file: &[u8], certificate: &[u8]) -> Result<()> {
    let pe = Pe::parse(file)?;
    let Some((offset, length)) = pe.certificates else {
        bail!("EFI program is not signed")
    };
    let table = &file[offset..];
    let stated = u32::from_le_bytes([table[0], table[1], table[2], table[3]]) as usize;
    ensure!(table[4..8] == PKCS7, "EFI program's signature is not PKCS#7");
    ensure!(
        (CERTIFICATE_HEADER..=length).contains(&stated) && stated.next_multiple_of(8) == length,
        "EFI program carries {length} bytes of signatures, the first claims {stated}"
    );
    ensure!(offset.is_multiple_of(8), "EFI program's signature is not aligned");
    // What the firmware leaves out of the digest must still be fixed, or bytes could hide there.
    ensure!(
        table[stated..].iter().all(|byte| *byte == 0),
        "bytes hide behind the EFI program's signature"
    );
    verify_pkcs7(&table[CERTIFICATE_HEADER..stated], &digest(file)?, certificate)
        .context("EFI program's signature")
}

fn verify_pkcs7(table: &[u8], digest: &Digest, certificate: &[u8]) -> Result<()> {
    let mut outer = Reader::new(table);
    let used = outer.any()?.len();
    // Some signers count the padding into the stated length.
    ensure!(
        table.len() - used < 8 && table[used..].iter().all(|byte| *byte == 0),
        "trailing bytes"
    );
    let mut info = Reader::new(table).enter(SEQUENCE)?;
    info.expect_oid(SIGNED_DATA, "content")?;
    let mut data = info.enter(CONTEXT_0)?.enter(SEQUENCE)?;
    ensure!(data.content(INTEGER)? == [1], "unknown version of SignedData");
    data.content(SET)?;
    let mut content_info = data.enter(SEQUENCE)?;
    content_info.expect_oid(SPC_INDIRECT_DATA, "signed content")?;
    let content = content_info.enter(CONTEXT_0)?.content(SEQUENCE)?;
    check_indirect_data(content, digest)?;
    data.optional(CONTEXT_0)?;
    data.optional(der::CONTEXT_1)?;
    let mut signers = data.enter(SET)?;
    let mut signer = signers.enter(SEQUENCE)?;
    ensure!(signers.is_empty(), "more than one signer");
    verify_signer(&mut signer, content, certificate)
}

fn check_indirect_data(content: &[u8], digest: &Digest) -> Result<()> {
    let mut reader = Reader::new(content);
    reader
        .enter(SEQUENCE)?
        .expect_oid(SPC_PE_IMAGE_DATA, "signed content")?;
    let mut info = reader.enter(SEQUENCE)?;
    reader.end()?;
    info.enter(SEQUENCE)?
        .expect_oid(der::SHA256, "digest algorithm")?;
    ensure!(
        info.content(OCTET_STRING)? == digest.as_bytes(),
        "the file differs from what was signed"
    );
    info.end()
}

fn verify_signer(signer: &mut Reader<'_>, content: &[u8], certificate: &[u8]) -> Result<()> {
    ensure!(signer.content(INTEGER)? == [1], "unknown version of SignerInfo");
    let parsed = certificate::parse(certificate)?;
    let mut name = signer.enter(SEQUENCE)?;
    ensure!(
        name.any()? == parsed.issuer().as_raw() && name.content(INTEGER)? == parsed.raw_serial(),
        "signed by another certificate"
    );
    signer
        .enter(SEQUENCE)?
        .expect_oid(der::SHA256, "digest algorithm")?;
    let attributes = signer.content(CONTEXT_0)?;
    let mut algorithm = signer.enter(SEQUENCE)?;
    let algorithm = algorithm.content(der::OBJECT_IDENTIFIER)?;
    ensure!(
        [RSA_ENCRYPTION, SHA256_RSA].contains(&algorithm),
        "the signature is not RSA"
    );
    let signature = signer.content(OCTET_STRING)?;

    let (mut content_types, mut digests) = (Vec::new(), Vec::new());
    let mut list = Reader::new(attributes);
    while !list.is_empty() {
        let mut attribute = list.enter(SEQUENCE)?;
        let kind = attribute.content(der::OBJECT_IDENTIFIER)?;
        let mut values = attribute.enter(SET)?;
        match kind {
            CONTENT_TYPE => content_types.push(values.content(der::OBJECT_IDENTIFIER)?),
            MESSAGE_DIGEST => digests.push(values.content(OCTET_STRING)?),
            _ => {}
        }
    }
    ensure!(
        content_types == [SPC_INDIRECT_DATA],
        "signed attributes name another content"
    );
    ensure!(
        digests == [hash(&SHA256, content).as_ref()],
        "signed attributes name another digest"
    );
    certificate::verify_rsa(certificate, &element(SET, &[attributes]), signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partitions::uki::pe::sample;
    use crate::sign::keys::testing;
    use proptest::prelude::*;

    fn program() -> Vec<u8> {
        sample(&[(b".text", &[1; 700]), (b".cmdline", b"quiet")])
    }

    #[test]
    fn a_signature_is_deterministic_and_verifies_and_comes_off() {
        let signer = testing::signer();
        let signed = sign(&program(), signer).unwrap();
        assert_eq!(signed, sign(&program(), signer).unwrap());
        assert_eq!(signed, sign(&signed, signer).unwrap());
        verify(&signed, &signer.identity().database).unwrap();
        assert_eq!(strip(&signed).unwrap(), program());
        assert_eq!(digest(&signed).unwrap(), digest(&program()).unwrap());
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let signer = testing::signer();
        let signed = sign(&program(), signer).unwrap();
        let pe = Pe::parse(&signed).unwrap();
        let database = &signer.identity().database;
        let table = pe.certificates.unwrap().0;
        // No meaning: the certificate that comes along (the key comes from outside), the set of digest algorithms in
        // front, SpcPeImageData, and the NULL parameters of algorithms.
        let place_of = |needle: &[u8]| {
            signed[table..]
                .windows(needle.len())
                .position(|window| window == needle)
        };
        let courtesy = table + place_of(database).unwrap();
        let image = table + place_of(SPC_PE_IMAGE_DATA).unwrap() + SPC_PE_IMAGE_DATA.len();
        let algorithms = table + place_of(der::SHA256).unwrap();
        let ignored = |place: usize| {
            pe.checksum_field() <= place && place < pe.checksum_field() + 4
                || (courtesy..courtesy + database.len()).contains(&place)
                || (image..image + 11).contains(&place)
                || (algorithms - 4..algorithms + 11).contains(&place)
                || signed[place - 1..].starts_with(&[5, 0])
                || signed[place..].starts_with(&[5, 0])
        };
        for place in (1..signed.len()).filter(|place| !ignored(*place)) {
            let mut changed = signed.clone();
            changed[place] ^= 0x10;
            assert!(
                verify(&changed, database).is_err(),
                "byte {} of the signature",
                place as isize - table as isize
            );
        }
    }

    #[test]
    fn a_foreign_key_and_no_signature_are_refused() {
        let signed = sign(&program(), testing::signer()).unwrap();
        let foreign = &testing::foreign().identity().database;
        let error = format!("{:#}", verify(&signed, foreign).unwrap_err());
        assert!(error.contains("another certificate"), "{error}");
        assert!(
            verify(&program(), foreign)
                .unwrap_err()
                .to_string()
                .contains("not signed")
        );
    }

    proptest! {
        #[test]
        fn hostile_signatures_never_panic(
            changes in prop::collection::vec((0usize..2400, any::<u8>()), 1..8),
            cut in 0usize..64,
        ) {
            let signer = testing::signer();
            let mut file = sign(&program(), signer).unwrap();
            let end = file.len();
            for (back, value) in changes {
                file[end - 1 - back % end] = value;
            }
            file.truncate(end - cut);
            let _ = verify(&file, &signer.identity().database);
        }
    }
}
