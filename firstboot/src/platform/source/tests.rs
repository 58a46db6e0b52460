//! A machine that boots again and again while disks come and go.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use kimage_roles::cause::Cause;
use tempfile::TempDir;

use super::*;
use crate::host::Host;
use crate::http::test_server::{Reply, Seen, Server};
use crate::platform::disks::Disks;
use crate::platform::server::MetadataServer;
use crate::platform::tests::{FakeGuestInfo, client};

const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
const OTHER_UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3302";
const SEED: &str = "pci-0000:00:1f.2-ata-1";
const SLOT: &str = "pci-0000:00:05.0";

struct FakeMachine {
    root: TempDir,
    mounts: TempDir,
    server: String,
    pin: Option<Pin>,
}

/// A disk that offers metadata.
#[derive(Clone, Copy)]
struct Offer<'a> {
    device: &'a str,
    label: &'a str,
    path: &'a str,
    serial: &'a str,
    instance: &'a str,
    user_data: &'a str,
}

const OWN: Offer<'static> = Offer {
    device: "sr0",
    label: "cidata",
    path: SEED,
    serial: "QEMU_DVD-ROM",
    instance: "i-1",
    user_data: "own",
};

/// What a tenant who read the Node's provider id attaches.
const FORGED: Offer<'static> = Offer {
    device: "sda",
    path: SLOT,
    serial: "vol-1",
    user_data: "forged",
    ..OWN
};

impl FakeMachine {
    fn new() -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            mounts: tempfile::tempdir().unwrap(),
            server: "http://127.0.0.1:9".to_owned(),
            pin: None,
        };
        machine.firmware("product_uuid", UUID);
        machine
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn firmware(&self, name: &str, value: &str) {
        self.put(&format!("sys/class/dmi/id/{name}"), value);
    }

    fn attach(&self, offer: Offer<'_>) {
        let Offer {
            device,
            label,
            path,
            serial,
            instance,
            user_data,
        } = offer;
        self.put(&format!("sys/class/block/{device}/dev"), device);
        let known =
            format!("E:ID_FS_TYPE=iso9660\nE:ID_FS_LABEL={label}\nE:ID_PATH={path}\nE:ID_SERIAL={serial}\n");
        self.put(&format!("run/udev/data/b{device}"), &known);
        let folder = self.mounts.path().join(device);
        let put = |path: &str, text: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("user-data", user_data);
        put("meta-data", &format!("instance-id: {instance}\n"));
        put("openstack/latest/user_data", user_data);
        put(
            "openstack/latest/meta_data.json",
            &format!(r#"{{"uuid": "{instance}"}}"#),
        );
    }

    fn detach(&self, device: &str) {
        fs::remove_dir_all(self.root.path().join("sys/class/block").join(device)).unwrap();
    }

    /// Asks, and keeps the pin on the disk as first boot does.
    fn boot(&mut self) -> Result<Answer, Failure> {
        let host = Host::at(self.root.path());
        let mounts = self.mounts.path().to_owned();
        let mount = Box::new(move |disk: &Labelled| -> Result<OwnedFd> {
            Ok(fs::File::open(mounts.join(&disk.device))?.into())
        });
        let mut doors = Doors {
            host: &host,
            server: MetadataServer::new(client(), &self.server),
            disks: Disks::mounted_by(&host, mount, Duration::ZERO),
            guest_info: &FakeGuestInfo::default(),
        };
        let answer = doors.ask(crate::platform::detect(&host), Pin::read(&host)?)?;
        answer.pin.write(&host)?;
        assert_eq!(Pin::read(&host)?, Some(answer.pin.clone()));
        self.pin = Some(answer.pin.clone());
        Ok(answer)
    }

    fn says(&mut self) -> String {
        String::from_utf8(self.boot().unwrap().raw.user_data).unwrap()
    }
}

fn first_boot() -> FakeMachine {
    let mut machine = FakeMachine::new();
    machine.attach(OWN);
    assert_eq!(machine.says(), "own");
    machine
}

#[test]
fn a_disk_with_the_same_label_that_comes_later_is_named_and_ignored() {
    let mut machine = first_boot();
    machine.attach(FORGED);
    machine.attach(Offer {
        device: "sdb",
        label: "config-2",
        path: "pci-0000:00:06.0",
        ..FORGED
    });
    let answer = machine.boot().unwrap();
    assert_eq!(answer.raw.user_data, b"own");
    assert_eq!(answer.remarks.len(), 2, "{:?}", answer.remarks);
    let expected = format!("disk sda (iso9660 cidata) at {SLOT} is ignored");
    assert!(answer.remarks[0].starts_with(&expected), "{:?}", answer.remarks);
    assert!(machine.boot().unwrap().remarks.len() == 2);
}

#[test]
fn letters_of_disks_may_change_and_the_place_counts() {
    let mut machine = first_boot();
    machine.detach("sr0");
    machine.attach(Offer {
        device: "sr0",
        ..FORGED
    });
    machine.attach(Offer { device: "sr1", ..OWN });
    assert_eq!(machine.says(), "own");
}

#[test]
fn a_disk_in_the_pinned_place_is_another_one_by_its_serial_number_or_instance() {
    for forged in [
        Offer { path: SEED, ..FORGED },
        Offer {
            path: SEED,
            serial: OWN.serial,
            instance: "i-2",
            ..FORGED
        },
    ] {
        let mut machine = first_boot();
        machine.detach("sr0");
        machine.attach(forged);
        let before = machine.pin.clone();
        assert_eq!(machine.boot().unwrap_err().cause, Cause::MetadataSourceGone);
        assert_eq!(machine.pin, before);
        // Once the own disk is back, all is as before.
        machine.detach("sda");
        machine.attach(OWN);
        assert_eq!(machine.says(), "own");
    }
}

#[test]
fn a_machine_whose_source_is_gone_takes_no_other_and_says_where_it_was() {
    let mut machine = first_boot();
    machine.detach("sr0");
    machine.attach(FORGED);
    let failure = machine.boot().unwrap_err();
    assert_eq!(failure.cause, Cause::MetadataSourceGone);
    assert!(!failure.cause.is_lasting(), "it may be attached again");
    assert!(failure.message().contains(SEED), "{}", failure.message());
    assert!(!failure.message().contains("forged"), "{}", failure.message());
}

#[test]
fn the_very_same_words_are_the_source_in_any_slot_but_do_not_move_the_pin() {
    let mut machine = first_boot();
    machine.detach("sr0");
    machine.attach(Offer { path: SLOT, ..OWN });
    assert_eq!(machine.says(), "own");
    machine.detach("sr0");
    machine.attach(Offer {
        path: SLOT,
        user_data: "forged",
        ..OWN
    });
    assert_eq!(machine.boot().unwrap_err().cause, Cause::MetadataSourceGone);
}

#[test]
fn the_platform_may_change_what_its_own_disk_says() {
    let mut machine = first_boot();
    machine.attach(Offer {
        user_data: "a new token",
        ..OWN
    });
    assert_eq!(machine.says(), "a new token");
}

#[test]
fn two_disks_at_first_boot_are_both_named_whatever_their_labels() {
    for label in ["cidata", "config-2"] {
        let mut machine = FakeMachine::new();
        machine.attach(OWN);
        machine.attach(Offer { label, ..FORGED });
        let failure = machine.boot().unwrap_err();
        assert_eq!(failure.cause, Cause::MetadataAmbiguous);
        let message = failure.message();
        assert!(message.contains(SEED) && message.contains(SLOT), "{message}");
        machine.detach("sda");
        assert_eq!(machine.says(), "own");
    }
}

#[test]
fn a_machine_that_began_without_a_disk_never_asks_one() {
    let mut machine = FakeMachine::new();
    machine.put("run/credentials/@system/kimage.node-config", "own");
    assert_eq!(machine.says(), "own");
    machine.attach(FORGED);
    let answer = machine.boot().unwrap();
    assert_eq!(
        (answer.raw.user_data.as_slice(), answer.remarks.len()),
        (&b"own"[..], 1)
    );
    fs::remove_file(
        machine
            .root
            .path()
            .join("run/credentials/@system/kimage.node-config"),
    )
    .unwrap();
    assert_eq!(machine.boot().unwrap_err().cause, Cause::NoMetadata);
}

#[test]
fn openstack_stays_with_its_server_and_finds_it_when_the_config_drive_is_gone() {
    let server = Server::start(|seen: &Seen| match seen.path.as_str() {
        "/openstack/latest/user_data" => Reply::ok("served"),
        "/openstack/latest/meta_data.json" => Reply::ok(r#"{"uuid": "i-1"}"#),
        _ => Reply::status(404),
    });
    let machine = || {
        let mut machine = FakeMachine::new();
        machine.firmware("product_name", "OpenStack Nova");
        machine.server = server.url();
        machine
    };
    let drive = Offer {
        label: "config-2",
        ..OWN
    };
    let volume = Offer {
        label: "config-2",
        ..FORGED
    };
    let mut on_server = machine();
    assert_eq!(on_server.says(), "served");
    on_server.attach(volume);
    assert_eq!(on_server.says(), "served");
    let mut on_drive = machine();
    on_drive.attach(drive);
    assert_eq!(on_drive.says(), "own");
    on_drive.attach(volume);
    assert_eq!(on_drive.says(), "own");
    on_drive.detach("sr0");
    assert_eq!(on_drive.says(), "served");
    on_drive.attach(drive);
    assert_eq!(on_drive.says(), "own", "the pin is still there");
}

#[test]
fn a_disk_that_was_cloned_for_another_machine_finds_its_source_anew() {
    let mut machine = first_boot();
    machine.firmware("product_uuid", OTHER_UUID);
    machine.attach(Offer {
        path: SLOT,
        instance: "i-2",
        user_data: "clone",
        ..OWN
    });
    let answer = machine.boot().unwrap();
    assert_eq!(
        (answer.raw.user_data.as_slice(), answer.raw.instance_id.as_str()),
        (&b"clone"[..], "i-2")
    );
    assert!(
        answer.remarks[0].contains("another machine"),
        "{:?}",
        answer.remarks
    );
    machine.attach(FORGED);
    assert_eq!(machine.says(), "clone", "and keeps to it");
}

#[test]
fn a_damaged_pin_is_no_licence_to_choose() {
    let mut machine = first_boot();
    for text in [
        "",
        "{}",
        "{\"schema\": 2, \"platform\": \"generic\", \"instanceId\": \"i-1\"}",
    ] {
        machine.put(pin_path(), text);
        assert_eq!(machine.boot().unwrap_err().cause, Cause::Internal);
    }
}

fn pin_path() -> &'static str {
    let absolute = Path::new(crate::platform::pin::PIN_PATH);
    absolute.strip_prefix("/").unwrap().to_str().unwrap()
}
