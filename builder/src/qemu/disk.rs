//! Disks: the file behind one, and the bus through which the guest sees it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::option_value;
use crate::tool::Tool;

/// A disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    format: Format,
    bus: Bus,
    cache: Cache,
    boots: bool,
}

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's and Azure's first format, `vpc` in QEMU.
    Vhd,
}

/// The hardware between machine and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk: KVM, most clouds.
    VirtioBlk,
    /// virtio-scsi: OpenStack, Proxmox, GCE.
    VirtioScsi,
    /// NVMe: AWS, Azure, GCE.
    Nvme,
    /// SATA: VirtualBox, bare metal.
    Ahci,
    /// VMware's paravirtual SCSI.
    Pvscsi,
    /// LSI SAS 1068: VMware's other controller.
    MptSas,
    /// LSI MegaRAID SAS: bare metal.
    MegaSas,
    /// A USB stick.
    Usb,
}

/// What QEMU does with a flush of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: fast, for disks that are thrown away.
    Unsafe,
    /// It passes it on: for machines whose power is cut.
    Writeback,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vpc",
        }
    }
}

impl Disk {
    /// The file at `path` itself, which the machine changes.
    pub fn of(path: &Path, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            bus: Bus::VirtioBlk,
            cache: Cache::Unsafe,
            boots: true,
        }
    }

    /// A disk of `size` bytes (`None`: as large as the base) that starts as a copy of `base` and keeps its changes
    /// in the new file `path`. The base is not changed, so many machines may share it.
    pub fn overlay(base: &Path, format: Format, path: &Path, size: Option<u64>) -> Result<Self> {
        let base = std::path::absolute(base)?;
        let tool = Tool::new("qemu-img").inherit(&["PATH"]).args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            format.name(),
            "-b",
        ]);
        tool.arg(base)
            .arg(path)
            .args(size.map(|bytes| bytes.to_string()))
            .run()?;
        Ok(Self::of(path, Format::Qcow2))
    }

    /// Puts it on another bus than virtio-blk.
    #[must_use]
    pub fn bus(mut self, bus: Bus) -> Self {
        self.bus = bus;
        self
    }

    /// Says what a flush is worth; nothing unless told.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Leaves it out of the firmware's order of disks to boot.
    #[must_use]
    pub fn only_data(mut self) -> Self {
        self.boots = false;
        self
    }

    pub(super) fn arguments(&self, number: usize) -> Vec<String> {
        let (path, format) = (option_value(&self.path), self.format.name());
        let cache = match self.cache {
            Cache::Unsafe => "unsafe",
            Cache::Writeback => "writeback",
        };
        let drive =
            format!("if=none,id=disk{number},file={path},format={format},cache={cache},discard=unmap");
        let on_controller = |controller: &str, disk: &str| {
            vec![
                format!("{controller},id=bus{number}"),
                format!("{disk},bus=bus{number}.0,drive=disk{number}"),
            ]
        };
        let mut devices = match self.bus {
            Bus::VirtioBlk => vec![format!("virtio-blk-pci,drive=disk{number}")],
            Bus::Nvme => vec![format!("nvme,serial=kimage{number},drive=disk{number}")],
            Bus::Ahci => on_controller("ich9-ahci", "ide-hd"),
            Bus::VirtioScsi => on_controller("virtio-scsi-pci", "scsi-hd"),
            Bus::Pvscsi => on_controller("pvscsi", "scsi-hd"),
            // Without addresses Linux finds neither ports nor disks.
            Bus::MptSas => on_controller(
                "mptsas1068,sas_address=0x5000c50000000001",
                "scsi-hd,wwn=0x5000c50000000002",
            ),
            Bus::MegaSas => on_controller("megasas", "scsi-hd"),
            Bus::Usb => on_controller("qemu-xhci", "usb-storage"),
        };
        if let (true, Some(device)) = (self.boots, devices.last_mut()) {
            device.push_str(&format!(",bootindex={}", number + 1));
        }
        let mut words = vec!["-drive".to_owned(), drive];
        words.extend(
            devices
                .into_iter()
                .flat_map(|device| ["-device".to_owned(), device]),
        );
        words
    }
}
