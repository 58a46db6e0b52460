//! Kubeconfigs of people, with a client certificate that the cluster's authority signs offline.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use kimage_roles::certificate::{Authority, Credentials, Kubeconfig, Profile, issue};
use kimage_roles::node_config::Endpoint;
use kimage_roles::secret::Secret;

use super::Folder;

/// Whose kubeconfig, and for how long.
#[derive(Debug, Clone)]
pub struct KubeconfigOrder {
    /// Name of the user.
    pub user: String,
    /// Group of the user: `kubeadm:cluster-admins` may do everything.
    pub group: String,
    /// How long the certificate is valid. Nothing can end it earlier.
    pub lifetime: Duration,
    /// Where the API is; otherwise the cluster's endpoint.
    pub server: Option<Endpoint>,
}

/// The text of a kubeconfig. It holds the private key.
pub fn kubeconfig(folder: &Folder, order: &KubeconfigOrder, now: SystemTime) -> Result<Secret> {
    let pair = folder.authority("ca")?;
    let authority = Authority::from_pair(&pair)?;
    let profile = Profile::client(&order.user, Some(&order.group));
    let client = issue(&authority, &profile, now, order.lifetime).context("make the client certificate")?;
    let cluster = &folder.description.cluster;
    let server = order.server.as_ref().unwrap_or(&cluster.endpoint).url();
    let kubeconfig = Kubeconfig {
        cluster: &cluster.name,
        server: &server,
        ca_certificate: &pair.certificate,
        user: &order.user,
        credentials: Credentials::Certificate(&client),
    };
    Ok(kubeconfig.to_json())
}
