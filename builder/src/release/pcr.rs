//! What a TPM will hold in PCR 11 after our UKI started: a policy can be made before the first boot.
//!
//! Source: systemd `src/boot/efi/stub.c` and `src/fundamental/uki.h` (versions 255 and 257): each section that is present
//! and known is measured as its name with a NUL, then as its bytes, in a fixed order that is not the file's.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::partitions::uki::Uki;

/// Sections in the order of measurement, with the first version of systemd-stub that knows them. `.pcrsig` is known and
/// never measured: it holds signatures over the outcome.
const MEASURED: [(&str, u32); 13] = [
    (".linux", 252),
    (".osrel", 252),
    (".cmdline", 252),
    (".initrd", 252),
    (".ucode", 256),
    (".splash", 252),
    (".dtb", 252),
    (".uname", 254),
    (".sbat", 254),
    (".pcrpkey", 252),
    (".profile", 257),
    (".dtbauto", 257),
    (".hwids", 257),
];

/// Expected values of PCR 11 in the SHA-256 bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pcr11 {
    /// After systemd-stub, before any program of the system ran. Our stage 0 measures nothing, so this is also the value
    /// that the kernel and stage 0 see.
    pub kernel: Digest,
    /// After `systemd-pcrphase-sysinit.service` of the real root, where it runs.
    pub sysinit: Digest,
    /// After `systemd-pcrphase.service`, where both run: the value of a machine that is up.
    pub ready: Digest,
}

impl Pcr11 {
    /// The values for `uki`.
    pub fn expected(uki: &Uki<'_>) -> Result<Self> {
        let version = stub_version(uki)?;
        ensure!(
            version >= 254,
            "systemd-stub {version} measures in another order than this knows"
        );
        let mut value = Digest::from_bytes([0; 32]);
        for (name, since) in MEASURED {
            let Some(data) = uki.section(name).filter(|_| version >= since) else {
                continue;
            };
            value = extend(&value, &[name.as_bytes(), &[0]].concat());
            value = extend(&value, data);
        }
        let sysinit = extend(&value, b"sysinit");
        let ready = extend(&sysinit, b"ready");
        Ok(Self {
            kernel: value,
            sysinit,
            ready,
        })
    }
}

/// The TPM's extend operation over the digest of `data`.
fn extend(value: &Digest, data: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(value.as_bytes());
    hasher.update(Digest::of(data).as_bytes());
    hasher.finish()
}

/// Major version of the stub, which it states in its section `.sdmagic`:
/// `#### LoaderInfo: systemd-stub 255.4-1ubuntu8 ####`.
fn stub_version(uki: &Uki<'_>) -> Result<u32> {
    let magic = uki
        .section(".sdmagic")
        .context("EFI stub is not systemd's: it has no .sdmagic section")?;
    let magic = String::from_utf8_lossy(magic);
    let version = magic.split_once("systemd-stub ").map(|(_, version)| version);
    let digits = version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    digits
        .and_then(|digits| digits.parse().ok())
        .context("EFI stub does not state its version in .sdmagic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partitions::uki::pe::sample;

    #[test]
    fn the_order_of_sections_in_the_file_does_not_matter() {
        let magic: (&[u8], &[u8]) = (b".sdmagic", b"#### LoaderInfo: systemd-stub 255.4-1ubuntu8 ####");
        let value =
            |sections: &[(&[u8], &[u8])]| Pcr11::expected(&Uki::parse(&sample(sections)).unwrap()).unwrap();
        let one = value(&[(b".linux", b"l"), (b".cmdline", b"c"), magic]);
        assert_eq!(
            one,
            value(&[
                magic,
                (b".cmdline", b"c"),
                (b".linux", b"l"),
                (b".pcrsig", b"{}"),
                (b".ucode", b"u")
            ])
        );
        assert_ne!(
            one.kernel,
            value(&[magic, (b".linux", b"l"), (b".cmdline", b"C")]).kernel
        );
        assert_ne!(one.kernel, one.ready);
    }

    #[test]
    fn a_foreign_stub_is_refused() {
        for magic in [
            &b"#### LoaderInfo: shim ####"[..],
            b"#### LoaderInfo: systemd-stub 252 ####",
        ] {
            let file = sample(&[(b".sdmagic", magic)]);
            assert!(Pcr11::expected(&Uki::parse(&file).unwrap()).is_err());
        }
        assert!(Pcr11::expected(&Uki::parse(&sample(&[(b".text", b"x")])).unwrap()).is_err());
    }
}
