//! What etcd itself says, asked directly and not through an API server.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_firstboot::etcd::Id;
use kimage_firstboot::etcd::client::Gateway;
use kimage_firstboot::http::{self, Client, Trust};
use kimage_roles::certificate::Profile;
use serde_json::json;

use super::keys::Etcd;
use super::machine::Machine;
use super::{Cluster, until};

/// What is in the Secret that must not be readable, and in the ConfigMap that may be.
pub const CLEAR: &str = "a-word-that-must-not-be-read";

impl<M: Machine> Cluster<M> {
    /// A client of etcd, and the client URLs of the machines that carry a member.
    pub fn gateway(&self) -> Result<(Gateway, Vec<String>)> {
        let pair = self
            .keys
            .issue("etcd-ca", &Profile::etcd_healthcheck_client(), self.clock.now())?;
        let settings = http::Settings {
            connect: Duration::from_secs(2),
            trust: Trust::Pinned(self.keys.text("etcd-ca.crt")?),
            identity: Some(http::Identity {
                certificate: pair.certificate,
                key: pair.key,
            }),
            ..http::Settings::default()
        };
        let prefix = match self.shape.etcd() {
            Etcd::Stacked => "cp",
            Etcd::External => "e",
        };
        let members = self
            .machines
            .iter()
            .filter(|machine| machine.name().starts_with(prefix));
        let endpoints = members
            .map(|machine| format!("https://{}:2379", machine.address()))
            .collect();
        Ok((Gateway::new(Client::new(&settings)?), endpoints))
    }

    /// Ids of etcd's voting members, which all members agree on; one cluster.
    pub fn etcd_member_ids(&self) -> Result<BTreeSet<Id>> {
        let (gateway, endpoints) = self.gateway()?;
        self.network.within(|| {
            let mut views = BTreeSet::new();
            for endpoint in &endpoints {
                let (cluster, members) = gateway.members(endpoint, true)?;
                let voters: BTreeSet<Id> = members
                    .iter()
                    .filter(|member| !member.learner)
                    .map(|member| member.id)
                    .collect();
                views.insert((cluster, voters));
            }
            ensure!(views.len() == 1, "members disagree: {views:?}");
            views.pop_first().map(|(_, voters)| voters).context("no members")
        })
    }

    /// Waits until so many members vote and all answer.
    pub fn wait_for_etcd(&self, count: usize, deadline: Duration) -> Result<()> {
        until(deadline, "members of etcd", || {
            let members = self.etcd_member_ids()?;
            ensure!(members.len() == count, "members {members:?}");
            Ok(())
        })
    }

    /// Waits until a member of `old` has gone and as many members vote again.
    pub fn wait_for_etcd_without(&self, old: &BTreeSet<Id>, deadline: Duration) -> Result<()> {
        until(deadline, "members of etcd", || {
            let now = self.etcd_member_ids()?;
            ensure!(
                now.len() == old.len() && now != *old,
                "members {now:?}, before {old:?}"
            );
            Ok(())
        })
    }

    /// The bytes of a key in etcd.
    pub fn in_etcd(&self, key: &str) -> Result<Vec<u8>> {
        let (gateway, endpoints) = self.gateway()?;
        let body = json!({"key": STANDARD.encode(key)});
        let answer = self
            .network
            .within(|| Ok(gateway.call_any(&endpoints, "/v3/kv/range", &body)?))?;
        let value = answer["kvs"][0]["value"]
            .as_str()
            .with_context(|| format!("etcd has no key {key}"))?;
        Ok(STANDARD.decode(value)?)
    }

    /// Makes the Secret `probe`, and checks that it is ciphertext in etcd, where what is not secret is readable.
    pub fn check_encryption_at_rest(&self, deadline: Duration) -> Result<()> {
        let of_kind = |kind: &str, field: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "probe", "namespace": "default"}, field: {"word": CLEAR}});
        let objects = [of_kind("Secret", "stringData"), of_kind("ConfigMap", "data")];
        self.apply(&objects, deadline)?;
        let stored = self.in_etcd("/registry/secrets/default/probe")?;
        let text = String::from_utf8_lossy(&stored);
        ensure!(text.starts_with("k8s:enc:secretbox:"), "{text}");
        ensure!(!text.contains(CLEAR), "{text}");
        let readable = self.in_etcd("/registry/configmaps/default/probe")?;
        ensure!(String::from_utf8_lossy(&readable).contains(CLEAR));
        Ok(())
    }

    /// Checks that the API still has the Secret of [`Cluster::check_encryption_at_rest`].
    pub fn check_secret(&self) -> Result<()> {
        let secret = self.get("/api/v1/namespaces/default/secrets/probe")?;
        let word = secret.context("the Secret is gone")?["data"]["word"].clone();
        if word != STANDARD.encode(CLEAR) {
            bail!("the Secret says {word}");
        }
        Ok(())
    }
}
