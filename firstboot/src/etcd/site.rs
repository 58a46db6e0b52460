//! The world of formation on a real machine: the record's store, etcd's service and files, the cluster over mTLS.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use kimage_roles::cause::Cause;

use super::client::Gateway;
use super::config::{self, Settings};
use super::world::{Disk, Glance, Launch, Local, Mark, Outcome, World};
use super::{Id, Member, View};
use crate::failure::Failure;
use crate::inventory::{Claim, Inventory, Standing, seconds};
use crate::record::{Record, RecordStore, Version, Written};

/// How long a machine may take to accept or refuse a connection.
const REACH: Duration = Duration::from_secs(2);
/// Below so many free bytes etcd can't preallocate its log (64 MiB).
const LEAST_FREE: u64 = 64 << 20;

/// The service that etcd runs as.
pub trait Service {
    /// Whether it runs or is on its way.
    fn is_running(&self) -> anyhow::Result<bool>;
    /// Starts it anew with the present configuration, without waiting for a quorum.
    fn restart(&self) -> anyhow::Result<()>;
    /// Stops it and waits for its end.
    fn stop(&self) -> anyhow::Result<()>;
}

/// `etcd.service` of systemd.
#[derive(Debug, Clone, Copy)]
pub struct Systemd;

const UNIT: &str = "etcd.service";

impl Service for Systemd {
    fn is_running(&self) -> anyhow::Result<bool> {
        let arguments = ["show", "--property=ActiveState", "--value", UNIT].map(str::to_owned);
        let state = crate::host::output("systemctl", &arguments)?;
        Ok(matches!(state.trim(), "active" | "activating" | "reloading"))
    }

    fn restart(&self) -> anyhow::Result<()> {
        drop(crate::host::output(
            "systemctl",
            &["reset-failed", UNIT].map(str::to_owned),
        ));
        let arguments = ["--no-block", "restart", UNIT].map(str::to_owned);
        crate::host::output("systemctl", &arguments).map(drop)
    }

    fn stop(&self) -> anyhow::Result<()> {
        crate::host::output("systemctl", &["stop", UNIT].map(str::to_owned)).map(drop)
    }
}

/// This machine.
pub struct Site {
    /// Absent with a fixed list.
    pub store: Option<Box<dyn RecordStore>>,
    /// Who is gone.
    pub inventory: Box<dyn Inventory>,
    /// Calls etcd with a client certificate.
    pub gateway: Gateway,
    /// Runs etcd.
    pub service: Box<dyn Service>,
    /// etcd's configuration but for the start.
    pub settings: Settings,
    /// `/etc/etcd/etcd.yaml`.
    pub config: PathBuf,
    /// `/var/lib/kimage/etcd.json`; not on etcd's own disk.
    pub mark: PathBuf,
    /// When this process began.
    pub begin: Instant,
}

fn local(error: anyhow::Error) -> Failure {
    let full = error.chain().any(|cause| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == ErrorKind::StorageFull)
    });
    Failure::new(
        if full {
            Cause::EtcdDiskFull
        } else {
            Cause::UnitFailed
        },
        error,
    )
}

impl Site {
    fn store(&self) -> Outcome<&dyn RecordStore> {
        let missing = || Failure::because(Cause::Internal, "a fixed list has no record");
        self.store.as_deref().ok_or_else(missing)
    }

    fn member_folder(&self) -> PathBuf {
        self.settings.data.join("member")
    }

    fn ask(&self, endpoints: &[String]) -> Vec<String> {
        if endpoints.is_empty() {
            vec![self.settings.loopback_client_url.clone()]
        } else {
            endpoints.to_vec()
        }
    }

    fn answer(&self) -> Option<Local> {
        let status = self.gateway.status(&self.settings.loopback_client_url).ok()?;
        // Without a leader it is no member of anything yet.
        status.leader.map(|_| Local {
            cluster: status.cluster,
            member: status.member,
        })
    }

    /// Whether etcd runs, and as it should: a changed list of members is of no interest once it answers.
    fn launch(&self, launch: &Launch) -> anyhow::Result<Option<Local>> {
        let wanted = config::render(&self.settings, launch);
        let present = match fs::read_to_string(&self.config) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.config.display())),
        };
        let listens = |text: &str| {
            let file: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            (
                file.get("listen-client-urls").cloned(),
                file.get("listen-peer-urls").cloned(),
            )
        };
        if self.service.is_running()? {
            let answer = self.answer();
            if present == wanted || answer.is_some() && listens(&present) == listens(&wanted) {
                return Ok(answer);
            }
            // Whoever is killed before the restart leaves no etcd that runs with an older file: it would not be seen.
            self.service.stop()?;
        } else if present == wanted {
            self.service.restart()?;
            return Ok(None);
        }
        crate::host::write(&self.config, wanted.as_bytes(), 0o644)?;
        self.service.restart()?;
        Ok(None)
    }

    /// The disk is full as far as etcd is concerned.
    fn check_space(&self) -> Outcome<()> {
        let status = rustix::fs::statvfs(&self.settings.data);
        let free = status.map(|status| status.f_bavail.saturating_mul(status.f_frsize));
        match free {
            Ok(free) if free < LEAST_FREE => {
                let text = format!("{} bytes are free at {}", free, self.settings.data.display());
                Err(Failure::because(Cause::EtcdDiskFull, text))
            }
            _ => Ok(()),
        }
    }
}

impl World for Site {
    fn uptime(&mut self) -> Duration {
        self.begin.elapsed()
    }

    fn now(&mut self) -> String {
        jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn token(&mut self) -> Outcome<String> {
        use ring::rand::SecureRandom;

        let mut bytes = [0; 16];
        ring::rand::SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| Failure::because(Cause::EntropyStarved, "the kernel gives no random bytes"))?;
        Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
    }

    fn record(&mut self) -> Outcome<Option<(Record, Version)>> {
        self.store()?.get()
    }

    fn create_record(&mut self, record: &Record) -> Outcome<Written> {
        self.store()?.create(record)
    }

    fn replace_record(&mut self, version: &Version, record: &Record) -> Outcome<Written> {
        self.store()?.replace(version, record)
    }

    fn disk(&mut self) -> Outcome<Disk> {
        let mark = match fs::read(&self.mark) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| {
                Failure::because(Cause::StateForeign, format!("{}: {error}", self.mark.display()))
            })?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::new(Cause::Internal, error)),
        };
        // Without a log etcd begins anew, whatever else lies there.
        let data = match fs::read_dir(self.member_folder().join("wal")) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(Failure::new(Cause::Internal, error)),
        };
        Ok(Disk { mark, data })
    }

    fn mark(&mut self, mark: Option<&Mark>) -> Outcome<()> {
        let noted = match mark {
            Some(mark) => serde_json::to_vec(mark)
                .map_err(anyhow::Error::from)
                .and_then(|bytes| crate::host::write(&self.mark, &bytes, 0o600).map(drop)),
            None => forget(&self.mark),
        };
        noted.map_err(local)
    }

    fn erase(&mut self) -> Outcome<()> {
        self.service.stop().map_err(local)?;
        let (folder, gone) = (self.member_folder(), self.settings.data.join("member.erased"));
        erase(&folder, &gone)
            .with_context(|| format!("erase {}", folder.display()))
            .map_err(local)
    }

    fn run(&mut self, launch: &Launch) -> Outcome<Option<Local>> {
        let answer = self.launch(launch).map_err(local)?;
        if answer.is_none() {
            self.check_space()?;
        }
        Ok(answer)
    }

    fn glance(&mut self, client_url: &str) -> Glance {
        match reach(client_url) {
            Err(ErrorKind::ConnectionRefused) => return Glance::Refused,
            Err(_) => return Glance::Silent,
            Ok(()) => {}
        }
        match self.gateway.members(client_url, false) {
            Ok((cluster, members)) => Glance::Answer(cluster, members),
            Err(failure) if failure.cause == Cause::EtcdForeign => {
                Glance::Foreign(format!("{:#}", failure.error))
            }
            Err(_) => Glance::Silent,
        }
    }

    fn view(&mut self, endpoints: &[String]) -> Outcome<View> {
        self.gateway.view(&self.ask(endpoints))
    }

    fn is_alive(&mut self, member: &Member) -> bool {
        let asked = |url: &String| reach(url).is_ok() && self.gateway.status(url).is_ok();
        member.client_urls.iter().any(asked)
    }

    fn claim(&mut self, endpoints: &[String], peer_url: &str, instance: &str) -> Outcome<()> {
        let claim = Claim {
            instance: instance.to_owned(),
            since: Some(seconds(SystemTime::now())),
        };
        self.gateway.claim(&self.ask(endpoints), peer_url, &claim)
    }

    fn lock(&mut self, endpoints: &[String], instance: &str) -> Outcome<bool> {
        self.gateway.lock(&self.ask(endpoints), instance)
    }

    fn unlock(&mut self, endpoints: &[String], instance: &str) -> Outcome<()> {
        self.gateway.unlock(&self.ask(endpoints), instance)
    }

    fn add_learner(&mut self, endpoints: &[String], peer_url: &str) -> Outcome<Id> {
        self.gateway.add_learner(&self.ask(endpoints), peer_url)
    }

    fn promote(&mut self, endpoints: &[String], member: Id) -> Outcome<()> {
        self.gateway.promote(&self.ask(endpoints), member)
    }

    fn hand_over(&mut self, heir: &Member) -> Outcome<()> {
        let own = &self.settings.loopback_client_url;
        let status = self.gateway.status(own)?;
        if status.leader != Some(status.member) {
            return Ok(());
        }
        self.gateway.hand_over(own, heir.id)
    }

    fn remove(&mut self, endpoints: &[String], member: Id) -> Outcome<()> {
        self.gateway.remove(&self.ask(endpoints), member)
    }

    fn standing(&mut self, claim: &Claim) -> Outcome<Standing> {
        self.inventory.standing(claim)
    }
}

/// Whether a machine accepts connections at a URL with an address.
fn reach(url: &str) -> Result<(), ErrorKind> {
    let authority = url
        .split_once("://")
        .map_or(url, |(_, rest)| rest)
        .trim_end_matches('/');
    let addresses: Vec<SocketAddr> = authority
        .to_socket_addrs()
        .map_err(|error| error.kind())?
        .collect();
    let address = addresses.first().ok_or(ErrorKind::AddrNotAvailable)?;
    TcpStream::connect_timeout(address, REACH)
        .map(drop)
        .map_err(|error| error.kind())
}

fn forget(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match fs::remove_file(path) {
        Ok(()) => File::open(folder)?
            .sync_all()
            .with_context(|| format!("sync {}", folder.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Half-removed data must not look like data: it gets another name first.
fn erase(folder: &Path, gone: &Path) -> std::io::Result<()> {
    let absent = |error: std::io::Error| {
        if error.kind() == ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    };
    fs::remove_dir_all(gone).or_else(absent)?;
    fs::rename(folder, gone).or_else(absent)?;
    if let Some(parent) = folder.parent() {
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .or_else(absent)?;
    }
    fs::remove_dir_all(gone).or_else(absent)
}

#[cfg(test)]
mod tests;
