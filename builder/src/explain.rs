//! A machine's serial console, read back for a person: which boot, which machine, what it did and where it stopped. A
//! console is anybody's text: kernel, firmware and services write into each other's lines, so nothing in it is trusted
//! to be whole.

use std::io::{self, BufRead};

use kimage_roles::cause::Cause;
use kimage_roles::status::{Outcome, Phase, Status};
use serde::Serialize;

mod boot;
mod line;
mod text;

pub use boot::Boot;
pub use text::report;

use boot::Event;
use line::{Lines, Piece};

/// No console is longer, in bytes; what comes after is not read.
pub const MAX_CONSOLE: u64 = 1 << 30;
/// So many boots are kept, the newest: a machine that starts anew every minute fills a console with them.
const MAX_BOOTS: usize = 64;

/// What a console says.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Console {
    /// How many boots there were.
    pub boots_seen: u64,
    /// The newest boots, oldest first.
    pub boots: Vec<Boot>,
    /// The console was longer than [`MAX_CONSOLE`].
    pub cut: bool,
    /// Lines of the report that could not be read.
    pub damaged_reports: u64,
}

/// How a boot ended, as far as the console tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", rename_all_fields = "camelCase")]
pub enum Verdict {
    /// The machine is in service.
    InService,
    /// First boot is under way, or was when the console ended.
    Underway {
        /// Where it is.
        phase: Phase,
    },
    /// First boot failed, and tries again or has given up.
    Failed {
        /// Where it stopped.
        phase: Phase,
        /// Whether the machine tries again by itself.
        tries_again: bool,
        /// Why.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
        /// What failed.
        message: String,
        /// What a person can do.
        hint: String,
    },
    /// The machine stopped before first boot, or the kernel stopped it.
    Stopped {
        /// Who stopped it.
        by: Stop,
        /// Why, where whoever stopped it gives a code.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
        /// Its own words.
        message: String,
        /// What a person can do.
        hint: String,
    },
    /// No report of first boot yet.
    NoReport {
        /// How far the machine came.
        reached: Reached,
    },
}

/// Who stops a machine without a report of first boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// UEFI Secure Boot refused the kernel image.
    SecureBoot,
    /// The firmware found nothing to boot.
    NothingToBoot,
    /// A block of the root is not what was signed.
    Verity,
    /// Stage 0 could not find or mount the root.
    Root,
    /// Any other panic of the kernel.
    Panic,
}

impl Stop {
    fn hint(self) -> &'static str {
        match self {
            Self::SecureBoot => {
                "the firmware's db must hold the certificate that signed this image (db.crt of the release): enrol \
                 it, or boot the image with its own ovmf-vars.fd; `kimage verify DIR` checks the image itself"
            }
            Self::NothingToBoot => {
                "the disk holds no bootable image or is not attached: write disk.raw to it, and boot by UEFI"
            }
            Self::Verity => {
                "the disk's bytes are not those that were signed: `kimage verify DIR` checks the image; if it is whole, \
                 replace the machine and distrust its disk"
            }
            Self::Root => {
                "the image's disk is not attached, or its partition table was changed: attach it, or replace the machine"
            }
            Self::Panic => {
                "see the lines above the panic; more memory and another host rule out the common causes"
            }
        }
    }
}

/// How far a machine without a report came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// Not one known line.
    #[default]
    Nothing,
    /// The firmware speaks.
    Firmware,
    /// The kernel runs.
    Kernel,
    /// The root is mounted.
    Root,
}

impl Console {
    /// Reads a console to its end.
    ///
    /// # Errors
    ///
    /// Only those of `input`.
    pub fn read(input: impl BufRead) -> io::Result<Self> {
        let mut console = Self::default();
        let mut lines = Lines::new(input, MAX_CONSOLE);
        while let Some(piece) = lines.next()? {
            match piece {
                Piece::Report(status) => console.boot(&Event::Report(status)),
                Piece::Damaged => console.damaged_reports += 1,
                Piece::Text(text) => {
                    if let Some(event) = Event::of(&text) {
                        console.boot(&event);
                    }
                }
            }
        }
        console.cut = lines.is_cut();
        Ok(console)
    }

    fn boot(&mut self, event: &Event) {
        let begins = self.boots.last().is_none_or(|boot| boot.is_ended_by(event));
        if begins {
            self.boots_seen += 1;
            if self.boots.len() == MAX_BOOTS {
                self.boots.remove(0);
            }
            self.boots.push(Boot::new(self.boots_seen));
        }
        if let Some(boot) = self.boots.last_mut() {
            boot.take(event);
        }
    }

    /// How the newest boot ended.
    pub fn verdict(&self) -> Verdict {
        self.boots.last().map_or(
            Verdict::NoReport {
                reached: Reached::Nothing,
            },
            Boot::verdict,
        )
    }
}

/// The verdict that a report gives.
fn judge(status: &Status) -> Verdict {
    match (status.phase, status.outcome) {
        (Phase::InService, Outcome::Done) => Verdict::InService,
        (phase, Outcome::Running | Outcome::Done) => Verdict::Underway { phase },
        (phase, outcome @ (Outcome::Retrying | Outcome::Failed)) => Verdict::Failed {
            phase,
            tries_again: outcome == Outcome::Retrying,
            cause: status.cause,
            message: status.message.clone().unwrap_or_default(),
            hint: status.hint.clone().unwrap_or_default(),
        },
    }
}
