//! The formats of a disk: the one place that knows them all. Whoever makes, checks or hands out disks matches on
//! [`Format`], so that a further one can't be forgotten anywhere.

/// A form in which a disk is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// The disk itself, byte for byte; all others are made from it.
    Raw,
    /// QEMU's format, version 3.
    Qcow2,
}

impl Format {
    /// All formats, raw first.
    pub const ALL: [Self; 2] = [Self::Raw, Self::Qcow2];

    /// What the file names of disks begin with, and no other file's of a release.
    pub const PREFIX: &str = "disk.";

    /// Its file in a release folder.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "disk.raw",
            Self::Qcow2 => "disk.qcow2",
        }
    }

    /// The format of the file called `name`.
    pub fn of_file(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.file_name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_name_of_its_own() {
        for format in Format::ALL {
            assert!(format.file_name().starts_with(Format::PREFIX));
            assert_eq!(Format::of_file(format.file_name()), Some(format));
        }
        assert_eq!(Format::of_file("disk.vhd"), None);
    }
}
