//! How this machine stands with its cluster. A worker whose credential has expired, is damaged or is refused, or whose
//! cluster has another authority than the one it knows, joins anew with what its NodeConfig holds. What it had stays on
//! the disk until the new one is there, and whether a machine must join is seen from what it has and what the cluster
//! says, never from a note: so it may be cut off anywhere.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use kimage_roles::cause::Cause;
use kimage_roles::certificate::{Profile, check_kept};
use kimage_roles::node_config::KeyPair;

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::host::{self, read_bounded};
use crate::http::{Fault, HttpError, TlsFault, Trust};
use crate::join::{self, Joined};
use crate::kubernetes::{Api, ApiError, Caller};
use crate::layout::{KUBELET_CLIENT, KUBELET_SERVER};
use crate::report;

/// What a worker learned when it joined: with it and its certificate it starts again without anybody's help.
const JOINED: &str = "/var/lib/kimage/joined.json";
const MAX_JOINED: u64 = 4 << 20;
const MAX_PEM: u64 = 64 << 10;
const KUBELET: &str = "kubelet.service";
/// Every kubelet may read its own, and it is small.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// How a machine stands with its cluster.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It is a node of it.
    Node,
    /// Nobody who could say so answers.
    Unheard(Failure),
    /// Its credential is worth nothing there, for this reason.
    Refused(Failure),
}

impl Worker<'_> {
    /// Finds the cluster that this machine is a node of, or joins one.
    pub(super) fn join(&mut self) -> Result<(), Failure> {
        let known = self.known_cluster();
        match known.as_ref().map(|known| self.standing_in(known)) {
            Some(Standing::Node | Standing::Unheard(_)) => {
                self.findings.refused = None;
                self.findings.joined = known;
                return Ok(());
            }
            Some(Standing::Refused(why)) => self.note_refusal(why.to_string()),
            None => {}
        }
        let machine = self.machine;
        let wanted = machine.config.join.as_ref();
        let wanted = wanted.ok_or_else(|| Failure::because(Cause::ConfigInvalid, "join: missing"))?;
        let joined = join::join(&machine.config.cluster.endpoint, wanted, &machine.name)?;
        let knew = known.map(|known| known.cluster.ca_certificate);
        if knew.is_some_and(|knew| knew != joined.cluster.ca_certificate) {
            // Nobody believes what the former authority signed: the kubelet shall ask for another one.
            self.set_aside(KUBELET_SERVER, true)?;
        }
        let bytes = serde_json::to_vec(&joined).map_err(Failure::internal)?;
        host::write(&self.host.path(JOINED), &bytes, 0o600).map_err(Failure::internal)?;
        self.findings.joined = Some(joined);
        Ok(())
    }

    /// How this machine stands with the cluster that it knows.
    pub(crate) fn standing(&self) -> Standing {
        match self.known_cluster() {
            Some(known) => self.standing_in(&known),
            None => Standing::Refused(refused("this machine has no credential")),
        }
    }

    /// What stands on this machine's disk about its credential, without asking anybody.
    pub(crate) fn check_credential(&self) -> Result<KeyPair, Failure> {
        let bytes = read_bounded(&self.host.path(KUBELET_CLIENT), MAX_PEM)
            .map_err(|error| refused(&format!("{KUBELET_CLIENT} can't be read: {error}")))?;
        let profile = Profile::kubelet_client(&self.machine.name);
        let text = String::from_utf8_lossy(&bytes);
        check_kept(&text, &profile, SystemTime::now())
            .map_err(|error| refused(&format!("{KUBELET_CLIENT}: {error}")))
    }

    /// Takes a certificate that has expired or is damaged away from a control plane's kubelet, which then starts anew with
    /// the one in its kubeconfig: that one this machine issues itself. What was wrong with it; nothing if it serves, or if
    /// the kubelet has none yet.
    pub(crate) fn renew_own_kubelet(&self) -> Result<Option<Failure>, Failure> {
        let why = self.take_unfit_credential()?;
        if why.is_some() {
            let words = ["--no-block", "restart", KUBELET].map(str::to_owned);
            host::output("systemctl", &words).or_failure(Cause::UnitFailed)?;
        }
        Ok(why)
    }

    fn take_unfit_credential(&self) -> Result<Option<Failure>, Failure> {
        if fs::symlink_metadata(self.host.path(KUBELET_CLIENT)).is_err() {
            return Ok(None);
        }
        let why = self.check_credential().err();
        if why.is_some() {
            self.set_aside(KUBELET_CLIENT, true)?;
        }
        Ok(why)
    }

    fn standing_in(&self, known: &Joined) -> Standing {
        let api = match self.node_api(known) {
            Ok(api) => api,
            Err(failure) => return Standing::Refused(failure),
        };
        match api.get(&format!("{LEASES}/{}", self.machine.name)) {
            Ok(_) => Standing::Node,
            Err(error) if is_refusal(&error) => Standing::Refused(error.failure(Cause::BalancerUnreachable)),
            // It is known there, if not allowed to do this.
            Err(error) if error.code() == Some(403) => Standing::Node,
            Err(error) => Standing::Unheard(error.failure(Cause::BalancerUnreachable)),
        }
    }

    /// What this machine learned when it joined, if it got a certificate then.
    fn known_cluster(&self) -> Option<Joined> {
        let bytes = read_bounded(&self.host.path(JOINED), MAX_JOINED).ok()?;
        let known = serde_json::from_slice(&bytes).ok()?;
        fs::symlink_metadata(self.host.path(KUBELET_CLIENT))
            .is_ok()
            .then_some(known)
    }

    fn note_refusal(&mut self, why: String) {
        if self.findings.refused.as_ref() != Some(&why) {
            report::say(self.host, &format!("kimage: this machine joins anew: {why}"));
        }
        self.findings.refused = Some(why);
    }

    /// The cluster as this node, with the kubelet's certificate.
    pub(super) fn node_api(&self, joined: &Joined) -> Result<Api, Failure> {
        let pair = self.check_credential()?;
        let trust = Trust::Pinned(joined.cluster.ca_certificate.clone());
        Api::new(&joined.cluster.server, trust, Caller::Certificate(pair)).map_err(Failure::internal)
    }

    /// Keeps a certificate of the kubelet beside its place, for whoever wants to know what it was; `away` takes it from
    /// there. A link is left alone unless it shall go: the file that it leads to stays anyway.
    pub(super) fn set_aside(&self, path: &str, away: bool) -> Result<(), Failure> {
        let (place, aside) = (self.host.path(path), self.host.path(format!("{path}.before")));
        let is_link = match fs::symlink_metadata(&place) {
            Ok(known) => known.is_symlink(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::internal(error)),
        };
        if away {
            return fs::rename(place, aside).or_failure(Cause::Internal);
        }
        if is_link {
            return Ok(());
        }
        remove(&aside)?;
        fs::hard_link(place, aside).or_failure(Cause::Internal)
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::internal(error)),
        _ => Ok(()),
    }
}

fn refused(what: &str) -> Failure {
    Failure::because(Cause::CredentialRefused, what)
}

/// Whether an API server says that it doesn't know us, or is one that we don't know.
fn is_refusal(error: &ApiError) -> bool {
    let unknown_issuer = |error: &HttpError| matches!(error.fault, Fault::Tls(TlsFault::UnknownIssuer));
    match error {
        ApiError::Http(error) if unknown_issuer(error) => true,
        error => error.code() == Some(401),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use kimage_roles::certificate::{Authority, issue};

    use super::*;
    use crate::host::Host;
    use crate::plan::tests::machine;

    fn write(host: &Host, path: &str, text: &str) {
        host::write(&host.path(path), text.as_bytes(), 0o600).unwrap();
    }

    #[test]
    fn a_credential_that_has_expired_or_is_damaged_has_its_own_cause() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let machine = machine("worker", "");
        let worker = Worker::new(&host, &machine);
        let cause = || {
            worker
                .check_credential()
                .map(drop)
                .map_err(|failure| failure.cause)
        };
        assert_eq!(cause(), Err(Cause::CredentialRefused));
        let now = SystemTime::now();
        let ca = Authority::from_pair(&Authority::create("kubernetes", now).unwrap()).unwrap();
        let day = std::time::Duration::from_secs(86_400);
        let issued = |at| {
            let pair = issue(&ca, &Profile::kubelet_client("a"), at, day).unwrap();
            format!("{}{}", pair.certificate, pair.key.reveal())
        };
        write(&host, KUBELET_CLIENT, &issued(now));
        assert_eq!(cause(), Ok(()));
        for bad in [issued(now - 2 * day), "garbage".to_owned(), String::new()] {
            write(&host, KUBELET_CLIENT, &bad);
            assert_eq!(cause(), Err(Cause::CredentialRefused));
        }
    }

    #[test]
    fn a_control_planes_kubelet_loses_a_certificate_that_is_worth_nothing_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let machine = machine("control-plane", "stacked");
        let worker = Worker::new(&host, &machine);
        let place = host.path(KUBELET_CLIENT);
        assert!(worker.take_unfit_credential().unwrap().is_none());
        let now = SystemTime::now();
        let ca = Authority::from_pair(&Authority::create("kubernetes", now).unwrap()).unwrap();
        let hour = std::time::Duration::from_secs(3600);
        for (at, serves) in [(now, true), (now - 2 * hour, false)] {
            let pair = issue(&ca, &Profile::kubelet_client("a"), at, hour).unwrap();
            let kept = format!("{}{}", pair.certificate, pair.key.reveal());
            write(&host, KUBELET_CLIENT, &kept);
            let why = worker.take_unfit_credential().unwrap();
            assert_eq!((why.is_none(), place.exists()), (serves, serves));
        }
    }

    #[test]
    fn what_was_there_before_is_kept_beside_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        let machine = machine("worker", "");
        let worker = Worker::new(&host, &machine);
        let aside = host.path(format!("{KUBELET_CLIENT}.before"));
        worker.set_aside(KUBELET_CLIENT, true).unwrap();
        write(&host, KUBELET_CLIENT, "damaged");
        for _ in 0..2 {
            worker.set_aside(KUBELET_CLIENT, false).unwrap();
            assert_eq!(fs::read_to_string(&aside).unwrap(), "damaged");
            assert!(host.path(KUBELET_CLIENT).exists());
        }
        fs::remove_file(host.path(KUBELET_CLIENT)).unwrap();
        symlink("kubelet-client-2026.pem", host.path(KUBELET_CLIENT)).unwrap();
        worker.set_aside(KUBELET_CLIENT, true).unwrap();
        assert!(fs::symlink_metadata(host.path(KUBELET_CLIENT)).is_err());
        assert!(fs::symlink_metadata(&aside).unwrap().is_symlink());
    }

    #[test]
    fn an_answer_of_401_and_an_unknown_authority_refuse_and_nothing_else_does() {
        let refused = |code| ApiError::Refused {
            code,
            reason: String::new(),
            message: String::new(),
        };
        let fault = |fault| {
            ApiError::Http(HttpError {
                url: String::new(),
                fault,
            })
        };
        assert!(is_refusal(&refused(401)) && is_refusal(&fault(Fault::Status(401))));
        assert!(is_refusal(&fault(Fault::Tls(TlsFault::UnknownIssuer))));
        assert!(!is_refusal(&refused(403)) && !is_refusal(&refused(500)));
        assert!(!is_refusal(&fault(Fault::Timeout)) && !is_refusal(&fault(Fault::Tls(TlsFault::Expired))));
    }
}
