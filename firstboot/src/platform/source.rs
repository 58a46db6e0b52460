//! Which door counts at this boot: any at the first one, later the one that is pinned. Other disks that offer metadata
//! are named and left alone; they neither replace what the machine is told nor stop it.

use kimage_roles::cause::Cause;

use super::disks::{Choice, Labelled};
use super::dmi::Dmi;
use super::pin::Pin;
use super::{Doors, Platform, Raw, nocloud, openstack};
use crate::failure::Failure;

/// Labels of disks that offer metadata.
const LABELS: [&str; 2] = [nocloud::LABEL, openstack::LABEL];

/// What the platform says, and what is to be remembered of how it said it.
#[derive(Debug)]
pub struct Answer {
    /// What it says.
    pub raw: Raw,
    /// Where that came from, to be written once the machine takes it.
    pub pin: Pin,
    /// What a person at the console should know.
    pub remarks: Vec<String>,
}

impl Doors<'_> {
    /// Asks the platform through the door that `pin` allows.
    ///
    /// # Errors
    ///
    /// As [`super::fetch`].
    pub(super) fn ask(&mut self, platform: Platform, pin: Option<Pin>) -> Result<Answer, Failure> {
        // A container sees its host's firmware.
        let machine = match platform {
            Platform::Container => None,
            _ => Dmi::read(self.host).uuid(),
        };
        match pin {
            Some(pin) if pin.is_of_another(platform, machine.as_deref()) => {
                let mut answer = self.ask_any(platform, machine)?;
                let remark =
                    "the state disk comes from another machine; metadata is looked for as at first boot";
                answer.remarks.push(remark.to_owned());
                Ok(answer)
            }
            Some(pin) => self.ask_again(platform, &pin),
            None => self.ask_any(platform, machine),
        }
    }

    fn ask_any(&mut self, platform: Platform, machine: Option<String>) -> Result<Answer, Failure> {
        self.disks.choose(Choice::TheOnlyOne);
        let raw = self.fetch(platform)?;
        Ok(Answer {
            pin: Pin::of(&raw, machine),
            raw,
            remarks: Vec::new(),
        })
    }

    fn ask_again(&mut self, platform: Platform, pin: &Pin) -> Result<Answer, Failure> {
        let mut choices = Vec::new();
        if let Some(place) = pin.place() {
            self.disks.wait_for_place(place, &LABELS)?;
            choices.push(Choice::At(place.clone()));
            let others = self.disks.labelled(&LABELS).into_iter();
            let others = others.filter(|disk| disk.place != *place);
            choices.extend(others.map(|disk| Choice::At(disk.place)));
        }
        choices.push(Choice::Nothing);
        let mut troubles = Vec::new();
        for choice in choices {
            let words = choice.to_string();
            self.disks.choose(choice);
            match self.fetch(platform) {
                Ok(raw) => match pin.after(&raw) {
                    Some(pin) => {
                        let remarks = self.strangers(platform, &raw);
                        return Ok(Answer { raw, pin, remarks });
                    }
                    None => troubles.push(format!("{} is instance {}", raw.source, raw.instance_id)),
                },
                // Without a pinned disk this is the one door, and its trouble is the machine's.
                Err(failure) if pin.place().is_none() => return Err(failure),
                Err(failure) => troubles.push(format!("{words}: {}", failure.message())),
            }
        }
        let place = pin.place().map(|place| place.path.as_str()).unwrap_or_default();
        let message = format!(
            "at first boot a disk at {place} was asked; {}",
            troubles.join("; ")
        );
        Err(Failure::because(Cause::MetadataSourceGone, message))
    }

    /// A line for each disk that offers metadata and is not asked.
    fn strangers(&self, platform: Platform, raw: &Raw) -> Vec<String> {
        if platform == Platform::Container {
            return Vec::new();
        }
        let others = self.disks.labelled(&LABELS).into_iter();
        let others = others.filter(|disk| Some(&disk.place) != raw.disk.as_ref());
        let line = |disk: Labelled| {
            format!(
                "{disk} at {} is ignored: since first boot this machine's metadata comes from {}",
                disk.place.path, raw.source
            )
        };
        others.map(line).collect()
    }
}

#[cfg(test)]
mod tests;
