//! What is allowed in a cluster's folder and worth a second thought.

use std::time::SystemTime;

use anyhow::Result;
use kimage_roles::node_config::{BootstrapToken, NodeRole, PodMetadata};

use crate::cluster::{Folder, TokenLife, token_life};
use crate::progress::Progress;

/// Says that the token of a new folder never ends. That is the default because the launch template of a group outlives
/// any date, and a group that can't replace a machine is the worse fault.
pub(super) fn new(folder: &Folder, progress: &Progress) -> Result<()> {
    for token in &folder.bootstrap_tokens()? {
        if token_life(token, SystemTime::now())? == TokenLife::Endless {
            progress.warn(&endless(token));
            progress.line("hint: `--token-lifetime 24h` makes one that ends");
        }
    }
    Ok(())
}

/// Says what is wrong with the tokens that machines of a role get, and who can read the keys.
pub(super) fn user_data(folder: &Folder, role: NodeRole, progress: &Progress) -> Result<()> {
    for token in tokens(folder, role)? {
        let warning = match token_life(&token, SystemTime::now())? {
            TokenLife::Limited => continue,
            TokenLife::Endless => endless(&token),
            TokenLife::Over => format!(
                "bootstrap token {} has ended: no machine can join with it",
                id(&token)
            ),
        };
        progress.warn(&warning);
        progress.line(
            "hint: set `expires` in bootstrap-tokens.json, or add a token there (the last is handed out); then give \
             control planes and workers new user-data",
        );
    }
    let open = folder.description.network.pod_metadata == PodMetadata::Allowed;
    if open && role == NodeRole::ControlPlane {
        progress.warn(
            "network.podMetadata is `allowed`: a pod on a control plane can read this user-data, and so every key of the \
             cluster",
        );
        progress.line("hint: leave it `blocked` in the user-data of control planes");
    }
    Ok(())
}

/// Those that stand in the user-data of a role.
fn tokens(folder: &Folder, role: NodeRole) -> Result<Vec<BootstrapToken>> {
    if role == NodeRole::Etcd {
        return Ok(Vec::new());
    }
    let mut tokens = folder.bootstrap_tokens()?;
    if role == NodeRole::Worker {
        tokens = tokens.split_off(tokens.len() - 1);
    }
    Ok(tokens)
}

fn endless(token: &BootstrapToken) -> String {
    format!(
        "bootstrap token {} never ends: who reads a worker's user-data, today or from an old copy, can join the cluster",
        id(token)
    )
}

/// The public half.
fn id(token: &BootstrapToken) -> &str {
    token.token.reveal().split('.').next().unwrap_or_default()
}
