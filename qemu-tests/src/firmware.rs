//! UEFI firmware for QEMU, where distributions put it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A firmware image and an empty variable store that fits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The code, mapped read-only.
    pub code: PathBuf,
    /// A variable store without keys; a machine gets a copy.
    pub vars: PathBuf,
    /// It keeps its variables in system management mode and enforces Secure Boot once keys are enrolled.
    pub secure: bool,
}

/// Code, variable store, Secure Boot. Debian and Ubuntu, Fedora, Arch.
const KNOWN: [(&str, &str, bool); 7] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
        true,
    ),
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
        false,
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd",
        true,
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
        true,
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
        false,
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        true,
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
        false,
    ),
];

impl Firmware {
    /// The first known firmware that is installed, with or without Secure Boot.
    pub fn find(secure: bool) -> Result<Self> {
        let there = |path: &str| Path::new(path).is_file();
        let found = KNOWN
            .iter()
            .find(|(code, vars, kind)| *kind == secure && there(code) && there(vars));
        let Some((code, vars, secure)) = found else {
            bail!("no UEFI firmware for QEMU on this host (Secure Boot: {secure}); apt-get install ovmf");
        };
        Ok(Self {
            code: code.into(),
            vars: vars.into(),
            secure: *secure,
        })
    }
}
