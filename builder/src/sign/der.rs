//! The few DER elements (ITU-T X.690) that signatures are made of, written and read.

use anyhow::{Result, bail, ensure};

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]`, constructed.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// `[1]`, constructed.
pub(super) const CONTEXT_1: u8 = 0xa1;

/// 1.2.840.113549.1.7.2, SignedData
pub(super) const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.7.1, data
pub(super) const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.9.3, contentType
pub(super) const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
/// 1.2.840.113549.1.9.4, messageDigest
pub(super) const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// 1.2.840.113549.1.1.1, rsaEncryption
pub(super) const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.113549.1.1.11, sha256WithRSAEncryption
pub(super) const SHA256_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
/// 2.16.840.1.101.3.4.2.1, SHA-256
pub(super) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// 1.3.6.1.4.1.311.2.1.4, SpcIndirectDataContent
pub(super) const SPC_INDIRECT_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
/// 1.3.6.1.4.1.311.2.1.15, SpcPeImageData
pub(super) const SPC_PE_IMAGE_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f];
/// 1.3.101.112, Ed25519
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// One element whose content is the concatenation of `parts`.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if length < 128 {
        bytes.push(length as u8);
    } else {
        let digits: Vec<u8> = length
            .to_be_bytes()
            .into_iter()
            .skip_while(|digit| *digit == 0)
            .collect();
        bytes.push(0x80 | digits.len() as u8);
        bytes.extend(digits);
    }
    bytes.extend(parts.iter().copied().flatten());
    bytes
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, parts)
}

pub(super) fn oid(content: &[u8]) -> Vec<u8> {
    element(OBJECT_IDENTIFIER, &[content])
}

/// `AlgorithmIdentifier` with NULL parameters.
pub(super) fn algorithm(content: &[u8]) -> Vec<u8> {
    sequence(&[&oid(content), &[5, 0]])
}

/// Reads elements one after the other. Lengths are definite and within the input, so every loop ends.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Tag, content and whole encoding of the next element.
    fn next(&mut self) -> Result<(u8, &'a [u8], &'a [u8])> {
        let [tag, first, tail @ ..] = self.rest else {
            bail!("DER ends early")
        };
        let digits = if *first < 0x80 {
            0
        } else {
            usize::from(first & 0x7f)
        };
        ensure!(
            digits <= 4 && *first != 0x80 && digits <= tail.len(),
            "DER length is indefinite or too long"
        );
        let length = match digits {
            0 => usize::from(*first),
            _ => tail[..digits]
                .iter()
                .fold(0, |value, digit| value << 8 | usize::from(*digit)),
        };
        let tail = &tail[digits..];
        ensure!(
            length <= tail.len(),
            "DER element of {length} bytes, {} are left",
            tail.len()
        );
        let whole = &self.rest[..2 + digits + length];
        self.rest = &tail[length..];
        Ok((*tag, &tail[..length], whole))
    }

    /// The content of the next element, which must have `tag`.
    pub(super) fn content(&mut self, tag: u8) -> Result<&'a [u8]> {
        let (found, content, _) = self.next()?;
        ensure!(found == tag, "DER element {found:#04x} where {tag:#04x} belongs");
        Ok(content)
    }

    /// A reader of the content of the next element, which must have `tag`.
    pub(super) fn enter(&mut self, tag: u8) -> Result<Self> {
        Ok(Self::new(self.content(tag)?))
    }

    /// The next element if it has `tag`: its content.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>> {
        if self.rest.first() == Some(&tag) {
            self.content(tag).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The whole encoding of the next element, whatever it is.
    pub(super) fn any(&mut self) -> Result<&'a [u8]> {
        Ok(self.next()?.2)
    }

    /// The next element must be the object identifier `expected`.
    pub(super) fn expect_oid(&mut self, expected: &[u8], what: &str) -> Result<()> {
        ensure!(
            self.content(OBJECT_IDENTIFIER)? == expected,
            "{what} has an unexpected object identifier"
        );
        Ok(())
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<()> {
        ensure!(self.rest.is_empty(), "{} bytes too many in DER", self.rest.len());
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_of_one_two_and_three_bytes() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; length];
            let bytes = element(OCTET_STRING, &[&content]);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.content(OCTET_STRING).unwrap(), content);
            reader.end().unwrap();
            assert!(Reader::new(&bytes[..bytes.len() - 1]).any().is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_der_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while !reader.is_empty() && reader.any().is_ok() {}
        }
    }
}
