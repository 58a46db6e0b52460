//! UEFI firmware for QEMU, where distributions put it.

use std::path::{Path, PathBuf};

use super::Format;
use crate::failure::{ExitCode, Failure};

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

/// Code, variable store, Secure Boot. Debian and Ubuntu, Fedora, Arch. All have the 4 MB layout, which the variable
/// stores of releases have.
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
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.secboot.qcow2",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2",
        true,
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2",
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
    ///
    /// # Errors
    /// There is none; the hint names the packages that have it.
    pub fn find(secure: bool) -> Result<Self, Failure> {
        Self::find_where(secure, Path::is_file).ok_or_else(|| {
            let message = format!("no UEFI firmware for QEMU on this host (Secure Boot: {secure})");
            Failure::new(ExitCode::Failed, message).hint(
                "install OVMF: apt-get install ovmf (Debian, Ubuntu), dnf install edk2-ovmf (Fedora), \
                 pacman -S edk2-ovmf (Arch)",
            )
        })
    }

    /// The first known firmware whose files are `there`.
    pub fn find_where(secure: bool, there: impl Fn(&Path) -> bool) -> Option<Self> {
        let known = KNOWN.iter().filter(|(_, _, kind)| *kind == secure);
        let mut paths = known.map(|(code, vars, _)| (Path::new(code), Path::new(vars)));
        let (code, vars) = paths.find(|(code, vars)| there(code) && there(vars))?;
        Some(Self {
            code: code.into(),
            vars: vars.into(),
            secure,
        })
    }

    /// The format of the code's file.
    pub(super) fn code_format(&self) -> Format {
        match self.code.extension() {
            Some(extension) if extension == "qcow2" => Format::Qcow2,
            _ => Format::Raw,
        }
    }
}
