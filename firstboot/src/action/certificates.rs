//! Leaf certificates and kubeconfigs with such in them: made here, and made anew when they don't fit any more.

use std::time::{Duration, SystemTime};

use kimage_roles::cause::Cause;
use kimage_roles::certificate::{Credentials, Kubeconfig, is_current, issue};
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;

use super::Worker;
use crate::control_plane::identity::{Client, Leaf, Signer};
use crate::failure::{Failure, OrFailure};
use crate::host::{self, read_bounded};

/// kubeadm's: a year. They are made at every boot and renewed when a third is left.
const LIFETIME: Duration = Duration::from_secs(8760 * 3600);
/// User and group of etcd in the images (`roles/*/role.toml`).
const ETCD: (u32, u32) = (900, 900);
/// Largest certificate or key that is read, in bytes.
const MAX_PEM: u64 = 64 << 10;

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
        let pair = issue(&authority, &leaf.profile, now, LIFETIME).or_failure(Cause::Internal)?;
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
        let ca = self.secrets()?.ca.as_ref().map(|ca| ca.certificate.as_str());
        for client in clients {
            let pair = issue(&authority, &client.profile, SystemTime::now(), LIFETIME)
                .or_failure(Cause::Internal)?;
            let kubeconfig = Kubeconfig {
                cluster: &client.cluster,
                server: &client.server,
                ca_certificate: ca.unwrap_or_default(),
                user: client.profile.common_name(),
                credentials: Credentials::Certificate(&pair),
            };
            let path = self.host.path(client.path);
            host::write(&path, kubeconfig.to_json().reveal().as_bytes(), 0o600).map_err(Failure::internal)?;
        }
        Ok(())
    }
}
