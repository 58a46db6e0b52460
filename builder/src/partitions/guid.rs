//! GUIDs as partition tables and firmware variables hold them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::digest::{hex, unhex};

/// A GUID, its sixteen bytes in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// From the bytes in the order of the text (`Guid::new(0x…)` reads like the text).
    pub const fn new(value: u128) -> Self {
        Self(value.to_be_bytes())
    }

    /// From the bytes in the order of the text.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A GUID derived from a digest: the first sixteen bytes with version 8 (RFC 9562) marked.
    pub fn derived(bytes: [u8; 16]) -> Self {
        let mut bytes = bytes;
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The bytes in the order of the text.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The bytes as firmware and disks store them: the first three fields little-endian (UEFI, appendix A).
    pub const fn to_disk(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
    }

    /// The reverse of [`Guid::to_disk`].
    pub const fn from_disk(bytes: [u8; 16]) -> Self {
        Self(Self(bytes).to_disk())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex(&self.0);
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..]
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        ensure!(groups == [8, 4, 4, 4, 12], "`{text}` is not a GUID");
        let bytes = unhex(&text.replace('-', "")).with_context(|| format!("`{text}` is not a GUID"))?;
        Ok(Self(
            bytes
                .try_into()
                .map_err(|_| anyhow::anyhow!("`{text}` is not a GUID"))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_order_are_the_published_ones() {
        let esp: Guid = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".parse().unwrap();
        assert_eq!(esp, Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b));
        assert_eq!(hex(&esp.to_disk()), "28732ac11ff8d211ba4b00a0c93ec93b");
        assert_eq!(Guid::from_disk(esp.to_disk()), esp);
        assert_eq!(esp.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        for bad in [
            "",
            "c12a7328f81f11d2ba4b00a0c93ec93b",
            "g12a7328-f81f-11d2-ba4b-00a0c93ec93b",
            "é-é-é-é-é",
        ] {
            assert!(bad.parse::<Guid>().is_err(), "{bad}");
        }
    }
}
