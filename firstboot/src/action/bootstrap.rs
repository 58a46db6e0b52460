//! How a machine gets the certificate that makes it a node: asked for with its token, kept where the kubelet looks.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use kimage_roles::cause::Cause;
use kimage_roles::certificate::{check_key, new_key};
use kimage_roles::secret::Secret;

use super::Worker;
use crate::failure::{Failure, OrFailure};
use crate::host::{self, read_bounded};
use crate::http::Trust;
use crate::join::with_token;
use crate::kubelet::certificate::{Answer, REQUESTS, Request};
use crate::kubernetes::{Api, Caller};
use crate::layout::{KUBELET_CLIENT, KUBELET_PKI};

/// The key of a request that is under way, where the kubelet would keep it too.
const KEY: &str = "/var/lib/kubelet/pki/kubelet-client.key.tmp";
const MAX_KEY: u64 = 16 << 10;
/// Controllers approve and sign within some tens of milliseconds. After so long it is a trouble to report.
const PATIENCE: Duration = Duration::from_secs(3);
/// First and longest pause between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

impl Worker<'_> {
    pub(super) fn obtain_kubelet_certificate(&mut self) -> Result<(), Failure> {
        if self.host.path(KUBELET_CLIENT).exists() && self.findings.refused.is_none() {
            return Ok(());
        }
        let missing = || Failure::because(Cause::ConfigInvalid, "join: missing");
        let join = self.machine.config.join.as_ref().ok_or_else(missing)?;
        let cluster = &self.findings.joined.as_ref().ok_or_else(missing)?.cluster;
        let trust = Trust::Pinned(cluster.ca_certificate.clone());
        let api =
            Api::new(&cluster.server, trust, Caller::Token(join.token.clone())).map_err(Failure::internal)?;
        let request = Request::new(&self.machine.name, self.kubelet_key()?)?;
        let certificate = self.have_signed(&api, &request)?;
        self.keep(&request.kept(&certificate))?;
        self.findings.refused = None;
        self.changed = true;
        Ok(())
    }

    /// The key of the request that is under way, or a new one.
    fn kubelet_key(&self) -> Result<Secret, Failure> {
        let path = self.host.path(KEY);
        let known = read_bounded(&path, MAX_KEY).ok();
        let known = known.and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(known) = known.map(Secret::new).filter(|key| check_key(key).is_ok()) {
            return Ok(known);
        }
        let key = new_key().map_err(Failure::internal)?;
        host::write(&path, key.reveal().as_bytes(), 0o600).map_err(Failure::internal)?;
        Ok(key)
    }

    fn have_signed(&self, api: &Api, request: &Request) -> Result<String, Failure> {
        match api.create(REQUESTS, &request.object) {
            Err(error) if error.code() != Some(409) => {
                return Err(with_token(error, "ask for the kubelet's certificate"));
            }
            // `409`: it was made before, by a boot that was interrupted.
            _ => {}
        }
        let (began, mut pause) = (Instant::now(), PAUSE.0);
        loop {
            let found = api.get(&request.path());
            let found = found.map_err(|error| with_token(error, "look after the kubelet's certificate"))?;
            match found.map_or(Answer::Waits, |found| request.answer(&found)) {
                Answer::Signed(certificate) => return Ok(certificate),
                Answer::Refused(message) => {
                    // Another request needs another key.
                    fs::remove_file(self.host.path(KEY)).map_err(Failure::internal)?;
                    let text = format!("the cluster refuses the kubelet's certificate: {message}");
                    return Err(Failure::because(Cause::NodeNotReady, text));
                }
                Answer::Waits if began.elapsed() > PATIENCE => {
                    let text = "the cluster has not signed the kubelet's certificate yet";
                    return Err(Failure::because(Cause::NodeNotReady, text));
                }
                Answer::Waits => thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// As the kubelet's own store does: a file with a date, and a link to it (`client-go/util/certificate`).
    fn keep(&self, pem: &Secret) -> Result<(), Failure> {
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let file = format!("{KUBELET_PKI}/kubelet-client-{date}.pem");
        host::write(&self.host.path(&file), pem.reveal().as_bytes(), 0o600).map_err(Failure::internal)?;
        let (link, beside) = (
            self.host.path(KUBELET_CLIENT),
            self.host.path(format!("{KUBELET_CLIENT}.new")),
        );
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::internal(error)),
            _ => {}
        }
        self.set_aside(KUBELET_CLIENT, false)?;
        symlink(&file, &beside).or_failure(Cause::Internal)?;
        fs::rename(&beside, &link).or_failure(Cause::Internal)?;
        let folder = fs::File::open(self.host.path(KUBELET_PKI)).or_failure(Cause::Internal)?;
        folder.sync_all().or_failure(Cause::Internal)?;
        // Of no more use.
        match fs::remove_file(self.host.path(KEY)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::internal(error)),
            _ => Ok(()),
        }
    }
}
