//! Leaf certificates and kubeconfigs with such in them: made here, and made anew when they don't fit any more or when a
//! third of their life is left.

use std::time::{Duration, SystemTime};

use kimage_roles::cause::Cause;
use kimage_roles::certificate::{Authority, Credentials, Kubeconfig, certificate_in, is_current, issue};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;

use super::Worker;
use crate::control_plane::identity::{Client, Leaf, Signer};
use crate::failure::{Failure, OrFailure};
use crate::host::{self, read_bounded};

/// User and group of etcd in the images (`roles/*/role.toml`).
const ETCD: (u32, u32) = (900, 900);
/// Largest certificate or key that is read, in bytes.
const MAX_PEM: u64 = 64 << 10;
/// Largest kubeconfig that is read, in bytes: two certificates and a key in base64.
const MAX_KUBECONFIG: u64 = 256 << 10;

impl Worker<'_> {
    pub(super) fn issue(&mut self, leaves: &[Leaf]) -> Result<(), Failure> {
        for leaf in leaves {
            self.issue_one(leaf)?;
        }
        Ok(())
    }

    fn issue_one(&mut self, leaf: &Leaf) -> Result<(), Failure> {
        let authority = self.authority(leaf.signer)?;
        let path = |ending: &str| self.host.path(format!("{}.{ending}", leaf.path));
        let (certificate, key) = (path("crt"), path("key"));
        let text = |path| {
            let bytes = read_bounded(path, MAX_PEM).ok()?;
            String::from_utf8(bytes).ok()
        };
        let now = SystemTime::now();
        if let (Some(certificate), Some(key)) = (text(&certificate), text(&key)) {
            let key = Secret::new(key);
            if is_current(&KeyPair { certificate, key }, &leaf.profile, &authority, now) {
                return Ok(());
            }
        }
        let pair = issue(&authority, &leaf.profile, now, self.lifetime()).or_failure(Cause::Internal)?;
        // etcd reads its own; the client that checks its health is root's.
        let owner = match leaf.signer {
            Signer::Etcd if leaf.path.contains("/etcd/") => Some(ETCD),
            _ => None,
        };
        let write = |path: &std::path::Path, bytes: &str, mode| {
            host::write_for(path, bytes.as_bytes(), mode, owner).map_err(Failure::internal)
        };
        // The key first: a certificate without its key would be taken for a pair that fits.
        write(&key, pair.key.reveal(), 0o600)?;
        write(&certificate, &pair.certificate, 0o644)?;
        self.changed = true;
        Ok(())
    }

    pub(super) fn kubeconfigs(&mut self, clients: &[Client]) -> Result<(), Failure> {
        let authority = self.authority(Signer::Kubernetes)?;
        for client in clients {
            if self.has_current(client, &authority)? {
                continue;
            }
            let pair = issue(&authority, &client.profile, SystemTime::now(), self.lifetime())
                .or_failure(Cause::Internal)?;
            let text = self.kubeconfig(client, &pair)?;
            let path = self.host.path(client.path);
            host::write(&path, text.reveal().as_bytes(), 0o600).map_err(Failure::internal)?;
            self.changed = true;
        }
        Ok(())
    }

    /// Whether the kubeconfig on this machine is the one that would be written, with a certificate that is current.
    pub(super) fn has_current(&self, client: &Client, authority: &Authority) -> Result<bool, Failure> {
        let bytes = read_bounded(&self.host.path(client.path), MAX_KUBECONFIG).unwrap_or_default();
        let Ok(text) = String::from_utf8(bytes).map(Secret::new) else {
            return Ok(false);
        };
        let Some(pair) = certificate_in(text.reveal()) else {
            return Ok(false);
        };
        Ok(is_current(&pair, &client.profile, authority, SystemTime::now())
            && self.kubeconfig(client, &pair)? == text)
    }

    fn kubeconfig(&self, client: &Client, pair: &KeyPair) -> Result<Secret, Failure> {
        let ca = self.secrets()?.ca.as_ref().map(|ca| ca.certificate.as_str());
        let kubeconfig = Kubeconfig {
            cluster: &client.cluster,
            server: &client.server,
            ca_certificate: ca.unwrap_or_default(),
            user: client.profile.common_name(),
            credentials: Credentials::Certificate(pair),
        };
        Ok(kubeconfig.to_json())
    }

    /// Of what this machine issues.
    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.machine.config.certificates.lifetime_seconds.into())
    }
}
