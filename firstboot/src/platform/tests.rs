//! Golden platforms: `tests/platforms/<name>/{root,mounts,http.json,guestinfo.json,expected.json}`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::cause::Cause;
use serde::Deserialize;
use serde_json::{Value, json};

use super::disks::{Disks, Labelled};
use super::server::MetadataServer;
use super::vmware::GuestInfo;
use super::{Doors, MAX_DOCUMENT, Platform, Raw, detect};
use crate::failure::Failure;
use crate::host::Host;
use crate::http::test_server::{Reply, Seen, Server};
use crate::http::{Client, Settings, Trust};

/// One request that the server expects, and its answer. A request without these headers is answered with 400.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    status: u16,
    #[serde(default)]
    answer_headers: BTreeMap<String, String>,
    body: String,
}

impl Exchange {
    fn fits(&self, seen: &Seen) -> bool {
        let headers = |(name, value): (&String, &String)| seen.header(name) == Some(value);
        self.method == seen.method && self.path == seen.path && self.headers.iter().all(headers)
    }

    fn reply(&self) -> Reply {
        let headers = self.answer_headers.clone().into_iter().collect();
        Reply::Answer(self.status, headers, self.body.clone().into_bytes())
    }
}

#[derive(Default)]
pub(super) struct FakeGuestInfo(BTreeMap<String, String>);

impl GuestInfo for FakeGuestInfo {
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).map(|value| value.clone().into_bytes()))
    }
}

fn read<T: serde::de::DeserializeOwned + Default>(path: &Path) -> T {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
        Err(_) => T::default(),
    }
}

pub(super) fn client() -> Client {
    let settings = Settings {
        connect: Duration::from_secs(2),
        total: Duration::from_millis(700),
        max_body: MAX_DOCUMENT,
        trust: Trust::Unverified,
        identity: None,
    };
    Client::new(&settings).unwrap()
}

fn ask(
    root: &Path,
    mounts: &Path,
    server: &str,
    guest_info: &dyn GuestInfo,
) -> (Platform, Result<Raw, Failure>) {
    let host = Host::at(root);
    let mounts = mounts.to_owned();
    let mount = Box::new(move |found: &Labelled| -> Result<OwnedFd> {
        Ok(fs::File::open(mounts.join(&found.device))?.into())
    });
    let doors = Doors {
        host: &host,
        server: MetadataServer::new(client(), server),
        disks: Disks::mounted_by(&host, mount, Duration::ZERO),
        guest_info,
    };
    let platform = detect(&host);
    (platform, doors.fetch(platform))
}

/// What a platform gave, as `expected.json` has it.
fn told(platform: Platform, result: Result<Raw, Failure>) -> Value {
    match result {
        Ok(raw) => {
            let user_data = String::from_utf8(raw.user_data.clone());
            json!({
                "platform": raw.platform.as_str(),
                "source": raw.source,
                "userData": user_data.unwrap_or_else(|_| STANDARD.encode(&raw.user_data)),
                "instanceId": raw.instance_id,
                "hostName": raw.host_name,
                "address": raw.address,
                "zone": raw.zone,
                "region": raw.region,
                "providerId": raw.provider_id,
            })
        }
        Err(failure) => json!({
            "platform": platform.as_str(),
            "cause": failure.cause.code(),
            "message": failure.message(),
        }),
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/platforms")
}

#[test]
fn every_golden_platform_says_what_is_expected() {
    let mut names: Vec<_> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(names.len() >= 20, "fixtures are missing: {names:?}");
    for folder in names {
        let exchanges: Vec<Exchange> = read(&folder.join("http.json"));
        let served = exchanges.clone();
        let server = Server::start(move |seen: &Seen| {
            let fitting = served.iter().find(|exchange| exchange.fits(seen));
            fitting.map_or_else(|| Reply::status(400), Exchange::reply)
        });
        let guest_info = FakeGuestInfo(read(&folder.join("guestinfo.json")));
        // A seed names its server in the firmware, where the port of this run must stand.
        let root = tempfile::tempdir().unwrap();
        copy(&folder.join("root"), root.path(), &server.url());
        let (platform, result) = ask(root.path(), &folder.join("mounts"), &server.url(), &guest_info);
        let told = serde_json::to_string_pretty(&told(platform, result)).unwrap();
        let told: Value = serde_json::from_str(&told.replace(&server.url(), "SERVER")).unwrap();
        let expected: Value = read(&folder.join("expected.json"));
        assert_eq!(told, expected, "{}", folder.display());
        for exchange in exchanges {
            let asked = server.seen().iter().any(|seen| exchange.fits(seen));
            assert!(asked, "{}: nobody asked for {exchange:?}", folder.display());
        }
        if !folder.join("http.json").exists() {
            assert!(
                server.seen().is_empty(),
                "{}: the network was probed",
                folder.display()
            );
        }
    }
}

fn copy(from: &Path, to: &Path, server: &str) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target, server);
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            fs::write(target, text.replace("SERVER", server)).unwrap();
        }
    }
}

/// The cause of a failure of EC2's service, where `reply` answers everything that bears a token.
fn ec2_failure(reply: impl Fn() -> Reply + Send + Sync + 'static) -> (Failure, Server) {
    let server = Server::start(move |seen: &Seen| match seen.method.as_str() {
        "PUT" => Reply::ok("token"),
        _ => reply(),
    });
    let root = fixtures().join("ec2/root");
    let (platform, result) = ask(&root, &root, &server.url(), &FakeGuestInfo(BTreeMap::new()));
    assert_eq!(platform, Platform::Ec2);
    (result.unwrap_err(), server)
}

#[test]
fn every_fault_of_a_metadata_server_has_its_cause() {
    let cause = |reply: fn() -> Reply| ec2_failure(reply).0.cause;
    assert_eq!(cause(|| Reply::Trickle), Cause::MetadataUnreachable);
    assert_eq!(cause(|| Reply::status(403)), Cause::MetadataDenied);
    assert_eq!(cause(|| Reply::status(404)), Cause::MetadataMissing);
    assert_eq!(cause(|| Reply::status(500)), Cause::MetadataBroken);
    assert_eq!(cause(|| Reply::status(503)), Cause::MetadataBroken);
    assert_eq!(cause(|| Reply::Cut), Cause::MetadataBroken);
    for announced in [true, false] {
        let (failure, server) = ec2_failure(move || Reply::Flood {
            bytes: 1 << 30,
            announced,
        });
        assert_eq!(failure.cause, Cause::MetadataTooLarge);
        assert!(server.flooded.load(std::sync::atomic::Ordering::SeqCst) < 64 << 20);
    }
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let root = fixtures().join("ec2/root");
    let (_, result) = ask(
        &root,
        &root,
        &format!("http://{closed}"),
        &FakeGuestInfo(BTreeMap::new()),
    );
    assert_eq!(result.unwrap_err().cause, Cause::MetadataUnreachable);
}

#[test]
fn a_refused_token_is_replaced_once_and_version_one_is_never_spoken() {
    let (failure, server) = ec2_failure(|| Reply::status(401));
    assert_eq!(failure.cause, Cause::MetadataDenied);
    let seen = server.seen();
    let methods: Vec<&str> = seen.iter().map(|seen| seen.method.as_str()).collect();
    assert_eq!(methods, ["PUT", "GET", "PUT", "GET"]);
    let bears_token = |seen: &Seen| seen.header("x-aws-ec2-metadata-token").is_some();
    assert!(seen.iter().all(|seen| seen.method == "PUT" || bears_token(seen)));
}

#[test]
fn a_service_without_tokens_is_not_asked_further() {
    let server = Server::start(|_: &Seen| Reply::status(403));
    let root = fixtures().join("ec2/root");
    let (_, result) = ask(&root, &root, &server.url(), &FakeGuestInfo(BTreeMap::new()));
    assert_eq!(result.unwrap_err().cause, Cause::MetadataDenied);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn the_message_of_a_failure_never_repeats_what_the_server_said() {
    let (failure, _) = ec2_failure(|| Reply::status(500));
    assert!(!failure.message().contains("own words"), "{}", failure.message());
}

#[test]
fn a_disk_that_comes_late_is_waited_for_and_a_missing_one_not_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let (block, data) = (
        root.path().join("sys/class/block/sr0"),
        root.path().join("run/udev/data"),
    );
    fs::create_dir_all(&block).unwrap();
    fs::create_dir_all(&data).unwrap();
    fs::write(block.join("dev"), "11:0\n").unwrap();
    let host = Host::at(root.path());
    let none = Box::new(|_: &Labelled| -> Result<OwnedFd> { anyhow::bail!("not to be opened") });
    let disks = Disks::mounted_by(&host, none, Duration::from_secs(20));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            fs::write(data.join("new"), "E:ID_FS_TYPE=iso9660\nE:ID_FS_LABEL=cidata\n").unwrap();
            fs::rename(data.join("new"), data.join("b11:0")).unwrap();
        });
        let begin = std::time::Instant::now();
        disks.wait_for(&["cidata"]).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(15));
    });
    let begin = std::time::Instant::now();
    let short = Disks::mounted_by(
        &host,
        Box::new(|_| anyhow::bail!("no")),
        Duration::from_millis(100),
    );
    short.wait_for(&["other"]).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(100));
}
