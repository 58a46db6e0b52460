//! The words of the kernel's command line that stage 0 obeys.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The root hash of the verity tree. It is the one thing that says which root may run, so it comes from the
    /// signed command line and from nowhere else.
    pub root_hash: RootHash,
    /// Longest wait for the root's disk.
    pub root_timeout: Option<Duration>,
}

/// A SHA-256 root hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RootHash([u8; 32]);

impl RootHash {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }

    /// First and last 16 bytes: the ids of the root partition and of its hash partition.
    pub(super) fn halves(&self) -> [[u8; 16]; 2] {
        let mut halves = [[0; 16]; 2];
        halves[0].copy_from_slice(&self.0[..16]);
        halves[1].copy_from_slice(&self.0[16..]);
        halves
    }
}

impl std::fmt::Display for RootHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for RootHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl CommandLine {
    /// Reads the file that the kernel shows the command line in.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text)
    }

    /// Reads the command line as the kernel shows it. Without a root hash there is nothing to boot.
    pub fn parse(text: &str) -> Result<Self> {
        let mut root_hash = None;
        let mut root_timeout = None;
        // Words after `--` are init's arguments, not the kernel's.
        for word in text.split_ascii_whitespace().take_while(|word| *word != "--") {
            match word.split_once('=') {
                Some(("roothash", value)) => {
                    let hash = RootHash::parse(value);
                    let hash =
                        hash.with_context(|| format!("kernel command line: `{word}` is not 64 hex digits"))?;
                    // Firmware can append words to a signed command line; a second hash must not win quietly.
                    ensure!(
                        root_hash.is_none_or(|first| first == hash),
                        "kernel command line: two different roothash="
                    );
                    root_hash = Some(hash);
                }
                Some(("kimage.root_timeout", value)) => {
                    let seconds: u32 = match value.parse() {
                        Ok(seconds) if seconds > 0 => seconds,
                        _ => bail!("kernel command line: `{word}` is not a number of seconds"),
                    };
                    root_timeout = Some(Duration::from_secs(seconds.into()));
                }
                _ => {}
            }
        }
        let root_hash = root_hash.context("kernel command line: no roothash=")?;
        Ok(Self {
            root_hash,
            root_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF";

    #[test]
    fn the_hash_and_its_halves_are_read() {
        let line = CommandLine::parse(&format!("quiet roothash={HASH} kimage.root_timeout=7\n")).unwrap();
        assert_eq!(line.root_hash.to_string(), HASH.to_lowercase());
        assert_eq!(line.root_hash.halves()[1][..2], [0x01, 0x23]);
        assert_eq!(line.root_timeout, Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_second_hash_is_refused_unless_it_is_the_same() {
        assert!(CommandLine::parse(&format!("roothash={HASH} roothash={HASH}")).is_ok());
        let other = HASH.replace('0', "1");
        assert!(CommandLine::parse(&format!("roothash={HASH} roothash={other}")).is_err());
        assert!(CommandLine::parse(&format!("roothash={HASH} -- roothash={other}")).is_ok());
    }

    #[test]
    fn a_missing_or_broken_value_is_named() {
        let cases = [
            "",
            "quiet",
            "roothash",
            "roothash=",
            "roothash=12",
            &format!("roothash={HASH}0"),
            "roothash=ééééééééééééééééééééééééééééééééé",
        ];
        for text in cases {
            assert!(
                CommandLine::parse(text)
                    .unwrap_err()
                    .to_string()
                    .contains("roothash="),
                "{text}"
            );
        }
        for value in ["0", "-1", "x", "99999999999"] {
            assert!(CommandLine::parse(&format!("roothash={HASH} kimage.root_timeout={value}")).is_err());
        }
    }
}
