//! What the agent does about things with an end: issues them anew, and starts services anew that hold old ones in
//! memory. That a service waits for its restart is noted before what it reads is written, so that an agent that is cut
//! off in between does it later.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;

use super::Worker;
use super::cluster::API_SERVER;
use super::units;
use crate::control_plane::identity::{Client, Leaf, Signer};
use crate::failure::{Failure, OrFailure};
use crate::host;
use crate::http::{self, Request, Settings, Trust};
use crate::kubernetes::Api;
use crate::lease::{Lease, RESTART};
use crate::lifetime::{HOLDERS, holder};

/// A file for each service that is to be started anew.
const WAITING: &str = "/run/kimage/restart";
/// Health of controller manager and scheduler: ports that Kubernetes gives them.
const HEALTH: [(&str, &str); 2] = [
    (HOLDERS[1], "https://127.0.0.1:10257/healthz"),
    (HOLDERS[2], "https://127.0.0.1:10259/healthz"),
];
/// So long a restarted service may take until it is healthy; and between two looks.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// So long others are waited for that restart theirs; and between two looks.
const QUEUE: Duration = Duration::from_secs(600);
const QUEUE_PAUSE: Duration = Duration::from_secs(3);

impl Worker<'_> {
    /// Issues anew what is old among these. Whether anything was.
    pub(crate) fn renew(&mut self, leaves: &[Leaf], clients: &[Client]) -> Result<bool, Failure> {
        self.turn(false);
        self.issue(leaves)?;
        if !clients.is_empty() {
            let authority = self.authority(Signer::Kubernetes)?;
            for client in clients {
                if self.has_current(client, &authority)? {
                    continue;
                }
                if let Some(unit) = holder(client) {
                    self.note_for_restart(unit)?;
                }
                self.kubeconfigs(std::slice::from_ref(client))?;
            }
        }
        Ok(self.has_changed_files())
    }

    /// Notes that a service is to be started anew.
    pub(crate) fn note_for_restart(&self, unit: &str) -> Result<(), Failure> {
        host::write(&self.note(unit), b"", 0o600)
            .map(drop)
            .map_err(Failure::internal)
    }

    fn note(&self, unit: &str) -> PathBuf {
        self.host.path(WAITING).join(unit)
    }

    /// Starts the services anew that wait for it, one control plane after the other. Their names.
    pub(crate) fn restart_waiting(&mut self) -> Result<Vec<&'static str>, Failure> {
        let waiting: Vec<&'static str> = HOLDERS
            .into_iter()
            .filter(|unit| self.note(unit).exists())
            .collect();
        if waiting.is_empty() {
            return Ok(waiting);
        }
        let api = self.own_api()?;
        let lease = self.wait_for_turn(&api)?;
        let done = waiting.iter().try_for_each(|unit| self.restart(unit));
        lease.give_back(&api);
        done.map(|()| waiting)
    }

    fn wait_for_turn(&mut self, api: &Api) -> Result<Lease, Failure> {
        let began = Instant::now();
        loop {
            match self.turns.take(api, &RESTART, &self.machine.name) {
                Err(_) if began.elapsed() < QUEUE && api.ready().is_ok() => thread::sleep(QUEUE_PAUSE),
                other => return other,
            }
        }
    }

    fn restart(&mut self, unit: &str) -> Result<(), Failure> {
        // One that is on its way up, or that nobody has started yet, reads what there is now.
        if units::main_process(unit)?.is_some() {
            let words = ["restart", unit].map(str::to_owned);
            host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
        }
        fs::remove_file(self.note(unit)).or_failure(Cause::Internal)?;
        match HEALTH.iter().find(|(known, _)| *known == unit) {
            None if unit == API_SERVER => self.await_restarted(),
            None => Ok(()),
            Some((_, url)) => await_health(unit, url),
        }
    }
}

fn await_health(unit: &str, url: &str) -> Result<(), Failure> {
    // It serves health with a certificate of its own making.
    let settings = Settings {
        trust: Trust::Unverified,
        ..Settings::default()
    };
    let client = http::Client::new(&settings).or_failure(Cause::UnitFailed)?;
    let began = Instant::now();
    loop {
        let answer = client.send(&Request::get(url)).and_then(http::Answer::success);
        match answer {
            Ok(_) => return Ok(()),
            Err(_) if began.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(error) => {
                let last = units::last_line(unit).unwrap_or_default();
                let text =
                    format!("{unit} was started anew and is not healthy ({error}); it last said: {last}");
                return Err(Failure::because(Cause::UnitFailed, text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use kimage_roles::certificate::{certificate_in, validity_of};

    use super::*;
    use crate::host::Host;
    use crate::layout::{CONTROLLER_MANAGER_KUBECONFIG, SCHEDULER_KUBECONFIG};
    use crate::lifetime::{clients, leaves};
    use crate::plan::tests::machine;

    fn read(host: &Host, path: &str) -> String {
        fs::read_to_string(host.path(path)).unwrap()
    }

    #[test]
    fn a_kubeconfig_that_is_old_or_damaged_is_made_anew_and_its_service_noted_first() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let machine = machine("control-plane", "external");
        let clients = clients(&machine);
        let mut worker = Worker::new(&host, &machine);
        let waits = |unit| host.path(WAITING).join(unit).exists();
        assert!(worker.renew(&[], &clients).unwrap());
        assert!(waits(HOLDERS[1]) && waits(HOLDERS[2]) && !waits(HOLDERS[0]));
        fs::remove_dir_all(host.path(WAITING)).unwrap();
        let made = read(&host, SCHEDULER_KUBECONFIG);
        assert!(!worker.renew(&[], &clients).unwrap());
        assert_eq!(read(&host, SCHEDULER_KUBECONFIG), made);
        for damage in ["", "{}", &made.replacen("https", "http", 1)] {
            fs::write(host.path(SCHEDULER_KUBECONFIG), damage).unwrap();
            assert!(worker.renew(&[], &clients).unwrap());
            assert!(waits(HOLDERS[2]) && !waits(HOLDERS[1]));
            let pair = certificate_in(&read(&host, SCHEDULER_KUBECONFIG)).unwrap();
            assert!(
                validity_of(&pair.certificate)
                    .unwrap()
                    .is_young(SystemTime::now())
            );
        }
        assert_ne!(read(&host, CONTROLLER_MANAGER_KUBECONFIG), "");
    }

    #[test]
    fn certificates_live_as_long_as_the_cluster_says() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let mut machine = machine("control-plane", "external");
        machine.config.certificates.lifetime_seconds = 600;
        Worker::new(&host, &machine)
            .renew(&leaves(&machine), &clients(&machine))
            .unwrap();
        let leaf = validity_of(&read(&host, "/etc/kubernetes/pki/apiserver.crt")).unwrap();
        let pair = certificate_in(&read(&host, SCHEDULER_KUBECONFIG)).unwrap();
        for validity in [leaf, validity_of(&pair.certificate).unwrap()] {
            assert_eq!(validity.until - validity.from, 600 + 60);
        }
    }
}
