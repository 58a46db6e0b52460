//! The NodeConfig of a role. What leaves here has been read back by the code that reads it on the machine.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use kimage_roles::certificate::public_key_hash;
use kimage_roles::node_config::{
    API_VERSION, Etcd, Formation, Inventory, Join, KIND, Node, NodeConfig, NodeConfigError, NodeRole, Secrets,
};
use kimage_roles::secret::Secret;

use super::{Description, Folder};
use crate::failure::{ExitCode, Failure};

/// What differs between documents of one cluster.
#[derive(Debug, Clone)]
pub struct Order {
    /// For which role.
    pub role: NodeRole,
    /// How members of etcd find each other; for `etcd` and `control-plane`.
    pub formation: Option<Formation>,
    /// Who says which instances are gone.
    pub inventory: Option<Inventory>,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node.
    pub taints: Vec<String>,
}

/// The document. A worker's holds no private key; an etcd machine's only that of etcd's authority.
pub fn user_data(folder: &Folder, order: &Order) -> Result<Secret> {
    let description = &folder.description;
    let worker = order.role == NodeRole::Worker;
    let mut config = NodeConfig {
        role: order.role,
        node: Node {
            labels: order.labels.clone(),
            taints: order.taints.clone(),
            ..Node::default()
        },
        ..empty(description)
    };
    if worker {
        config.join = Some(join(folder)?);
    } else {
        config.etcd = order.formation.clone().map(|formation| Etcd {
            layout: description.etcd.layout,
            formation,
        });
        config.secrets = Some(secrets(folder, order.role)?);
        config.inventory = order.inventory.clone();
    }
    let text = config.to_json().context("write the NodeConfig")?;
    NodeConfig::from_yaml(text.reveal().as_bytes()).map_err(usage)?;
    Ok(text)
}

fn join(folder: &Folder) -> Result<Join> {
    let hash = public_key_hash(&folder.text("ca.crt")?).context("read ca.crt")?;
    let mut tokens = folder.bootstrap_tokens()?;
    let token = tokens.pop().context("no bootstrap token")?;
    Ok(Join {
        token: token.token,
        ca_cert_hashes: vec![hash],
    })
}

fn secrets(folder: &Folder, role: NodeRole) -> Result<Secrets> {
    let mut secrets = Secrets {
        etcd_ca: folder.authority("etcd-ca")?,
        ca: None,
        front_proxy_ca: None,
        service_account_key: None,
        encryption_key: None,
        bootstrap_tokens: Vec::new(),
    };
    if role == NodeRole::ControlPlane {
        secrets.ca = Some(folder.authority("ca")?);
        secrets.front_proxy_ca = Some(folder.authority("front-proxy-ca")?);
        secrets.service_account_key = Some(folder.secret("sa.key")?);
        secrets.encryption_key = Some(folder.encryption_key()?);
        secrets.bootstrap_tokens = folder.bootstrap_tokens()?;
    }
    Ok(secrets)
}

fn empty(description: &Description) -> NodeConfig {
    NodeConfig {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        role: NodeRole::Worker,
        cluster: description.cluster.clone(),
        node: Node::default(),
        network: description.network.clone(),
        etcd: None,
        join: None,
        secrets: None,
        inventory: None,
        timing: description.timing.clone(),
        certificates: description.certificates.clone(),
    }
}

/// Refuses a description that no machine would take.
pub(super) fn check(description: &Description) -> Result<()> {
    // Any credentials do: only what the description says is looked at.
    let join = Join {
        token: Secret::new("aaaaaa.aaaaaaaaaaaaaaaa"),
        ca_cert_hashes: vec![format!("sha256:{}", "0".repeat(64))],
    };
    let config = NodeConfig {
        join: Some(join),
        ..empty(description)
    };
    config.validate().map_err(usage)
}

fn usage(error: NodeConfigError) -> anyhow::Error {
    Failure::new(ExitCode::Usage, error.to_string()).into()
}
