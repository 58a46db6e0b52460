//! What the types alone can't say about a NodeConfig. Every problem names the path of its key and no secret.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::network::{is_dns_label, is_dns_name};
use super::{
    API_VERSION, Certificates, Cluster, Etcd, EtcdLayout, Formation, Inventory, KIND, NodeConfig,
    NodeConfigError, NodeRole, RecordStore, StaticMember, Timing,
};
use crate::inventory::check_public_key;

mod node;
mod secrets;
mod text;

pub use text::{is_token, is_url};

type Checked = Result<(), NodeConfigError>;

/// Refuses the value at `path` unless `holds`.
fn ensure(holds: bool, path: impl Into<String>, problem: impl Into<String>) -> Checked {
    if holds {
        return Ok(());
    }
    Err(NodeConfigError {
        path: path.into(),
        problem: problem.into(),
    })
}

impl NodeConfig {
    /// Refuses what no machine could work with.
    pub(super) fn check(&self) -> Checked {
        let other = |is: &str, expected: &str| format!("`{is}` is not {expected}");
        ensure(
            self.api_version == API_VERSION,
            "apiVersion",
            other(&self.api_version, API_VERSION),
        )?;
        ensure(self.kind == KIND, "kind", other(&self.kind, KIND))?;
        check_cluster(&self.cluster)?;
        node::check(&self.node)?;
        self.check_sections()?;
        if let Some(etcd) = &self.etcd {
            check_etcd(self.role, etcd)?;
        }
        if let Some(join) = &self.join {
            secrets::check_join(join)?;
        }
        if let Some(secrets) = &self.secrets {
            secrets::check(self.role, secrets)?;
        }
        if let Some(inventory) = &self.inventory {
            check_inventory(inventory)?;
        }
        self.check_addresses()?;
        check_timing(&self.timing)?;
        check_certificates(&self.certificates)
    }

    /// Which sections a role needs and which it must not have.
    fn check_sections(&self) -> Checked {
        let role = self.role.as_str();
        let needed = |path: &str| format!("role `{role}` needs `{path}`");
        if self.role == NodeRole::Worker {
            ensure(self.join.is_some(), "join", needed("join"))?;
            ensure(
                self.secrets.is_none(),
                "secrets",
                "a worker gets no private key of the cluster",
            )?;
            ensure(
                self.etcd.is_none(),
                "etcd",
                "a worker has nothing to do with etcd",
            )
        } else {
            ensure(self.etcd.is_some(), "etcd", needed("etcd"))?;
            ensure(self.secrets.is_some(), "secrets", needed("secrets"))
        }
    }

    /// No machine's address may lie among those of Services or pods.
    fn check_addresses(&self) -> Checked {
        let outside = |address: IpAddr, path: String| {
            let ranges = [
                ("serviceSubnet", self.cluster.service_subnet),
                ("podSubnet", self.cluster.pod_subnet),
            ];
            for (name, range) in ranges {
                let problem = format!("{address} lies in cluster.{name} {range}");
                ensure(!range.contains(address), path.as_str(), problem)?;
            }
            Ok(())
        };
        if let Some(address) = self.cluster.endpoint.address() {
            outside(address, "cluster.endpoint".to_owned())?;
        }
        if let Some(address) = self.node.address {
            outside(address, "node.address".to_owned())?;
        }
        if let Some(Etcd {
            formation: Formation::Static(members),
            ..
        }) = &self.etcd
        {
            for (index, member) in members.iter().enumerate() {
                outside(member.address, format!("etcd.formation.static[{index}].address"))?;
            }
        }
        Ok(())
    }
}

fn check_cluster(cluster: &Cluster) -> Checked {
    let label = "must be 1 to 63 lower-case letters, digits and inner dashes";
    ensure(is_dns_label(&cluster.name), "cluster.name", label)?;
    for (index, name) in cluster.api_names.iter().enumerate() {
        ensure(
            is_dns_name(name) || name.parse::<IpAddr>().is_ok(),
            format!("cluster.apiNames[{index}]"),
            "must be a DNS name in lower case or an address",
        )?;
    }
    ensure(
        is_dns_name(&cluster.dns_domain),
        "cluster.dnsDomain",
        "must be a DNS name in lower case",
    )?;
    let (services, pods) = (cluster.service_subnet, cluster.pod_subnet);
    ensure(
        services.nth(20).is_some(),
        "cluster.serviceSubnet",
        format!("{services} is too small for the cluster's own Services"),
    )?;
    ensure(
        services.network().is_ipv4() == pods.network().is_ipv4(),
        "cluster.podSubnet",
        format!("{pods} is of another IP version than cluster.serviceSubnet {services}"),
    )?;
    ensure(
        !services.overlaps(&pods),
        "cluster.podSubnet",
        format!("{pods} overlaps cluster.serviceSubnet {services}"),
    )?;
    // The controller manager gives each node a /24 (IPv6: /64) and manages at most 2^16 of them.
    let (shortest, longest) = if pods.network().is_ipv4() {
        (8, 24)
    } else {
        (48, 64)
    };
    ensure(
        (shortest..=longest).contains(&pods.prefix()),
        "cluster.podSubnet",
        format!("{pods} must have a prefix of /{shortest} to /{longest}: each node gets a /{longest} of it"),
    )
}

fn check_etcd(role: NodeRole, etcd: &Etcd) -> Checked {
    ensure(
        role != NodeRole::Etcd || etcd.layout == EtcdLayout::External,
        "etcd.layout",
        "a machine of role `etcd` exists in the layout `external` only",
    )?;
    match &etcd.formation {
        Formation::Static(members) => check_members(members),
        Formation::Record(record) => check_record(record),
    }
}

fn check_members(members: &[StaticMember]) -> Checked {
    const PATH: &str = "etcd.formation.static";
    ensure(!members.is_empty(), PATH, "names no member")?;
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (index, member) in members.iter().enumerate() {
        node::check_name(&member.name, &format!("{PATH}[{index}].name"))?;
        node::check_address(member.address, &format!("{PATH}[{index}].address"))?;
        let twice = |what: &str| format!("another member has this {what}");
        ensure(
            names.insert(&member.name),
            format!("{PATH}[{index}].name"),
            twice("name"),
        )?;
        ensure(
            addresses.insert(member.address),
            format!("{PATH}[{index}].address"),
            twice("address"),
        )?;
    }
    Ok(())
}

fn check_record(record: &RecordStore) -> Checked {
    const PATH: &str = "etcd.formation.record";
    let url = "must be an http or https URL without user, blanks and fragment";
    match record {
        RecordStore::S3 {
            endpoint,
            region,
            bucket,
            key,
            credentials,
        } => {
            let path = |name: &str| format!("{PATH}.s3.{name}");
            ensure(is_url(endpoint), path("endpoint"), url)?;
            ensure(
                text::is_plain(region, 64),
                path("region"),
                "must be the name of a region",
            )?;
            let is_bucket = (3..=63).contains(&bucket.len()) && is_dns_name(bucket);
            ensure(is_bucket, path("bucket"), "must be the name of a bucket")?;
            ensure(
                text::is_plain(key, 1024),
                path("key"),
                "must be the key of an object",
            )?;
            let Some(credentials) = credentials else {
                return Ok(());
            };
            let (id, secret) = (&credentials.access_key_id, credentials.secret_access_key.reveal());
            ensure(
                text::is_plain(id, 256),
                path("credentials.accessKeyId"),
                "must not be empty or have blanks",
            )?;
            let problem = "must not be empty or have blanks";
            ensure(
                text::is_plain(secret, 1024),
                path("credentials.secretAccessKey"),
                problem,
            )
        }
        RecordStore::Etcd {
            endpoints,
            key,
            ca_certificate,
        } => {
            ensure(
                !endpoints.is_empty(),
                format!("{PATH}.etcd.endpoints"),
                "names no endpoint",
            )?;
            for (index, endpoint) in endpoints.iter().enumerate() {
                ensure(is_url(endpoint), format!("{PATH}.etcd.endpoints[{index}]"), url)?;
            }
            ensure(
                text::is_plain(key, 1024),
                format!("{PATH}.etcd.key"),
                "must not be empty or have blanks",
            )?;
            match ca_certificate {
                Some(pem) => secrets::check_certificate(pem, &format!("{PATH}.etcd.caCertificate")),
                None => Ok(()),
            }
        }
        RecordStore::Http { url: address, token } => {
            ensure(is_url(address), format!("{PATH}.http.url"), url)?;
            let plain = token
                .as_ref()
                .is_none_or(|token| text::is_plain(token.reveal(), 8192));
            ensure(
                plain,
                format!("{PATH}.http.token"),
                "must not be empty or have blanks",
            )
        }
        RecordStore::File { path } => check_path(path, &format!("{PATH}.file.path")),
    }
}

fn check_path(path: &str, at: &str) -> Checked {
    let plain = path.starts_with('/') && path.len() <= 4096 && !path.contains('\0');
    ensure(
        plain && path.split('/').all(|part| part != ".."),
        at,
        "must be an absolute path without `..`",
    )
}

fn check_inventory(inventory: &Inventory) -> Checked {
    match inventory {
        Inventory::Static(ids) => {
            let mut seen = BTreeSet::new();
            ensure(
                !ids.is_empty(),
                "inventory.static",
                "names no instance: all members of etcd would be gone",
            )?;
            for (index, id) in ids.iter().enumerate() {
                let path = format!("inventory.static[{index}]");
                ensure(
                    text::is_plain(id, 512),
                    path.as_str(),
                    "must be an instance id without blanks",
                )?;
                ensure(seen.insert(id), path, "stands twice")?;
            }
            Ok(())
        }
        Inventory::Http { url, public_key } => {
            ensure(
                is_url(url),
                "inventory.http.url",
                "must be an http or https URL without user, blanks and fragment",
            )?;
            check_key(public_key, "inventory.http.publicKey")
        }
        Inventory::File { path, public_key } => {
            check_path(path, "inventory.file.path")?;
            check_key(public_key, "inventory.file.publicKey")
        }
    }
}

fn check_key(public_key: &str, path: &str) -> Checked {
    ensure(
        check_public_key(public_key).is_ok(),
        path,
        "must be PEM of an Ed25519 public key",
    )
}

fn check_timing(timing: &Timing) -> Checked {
    /// etcd refuses a longer election timeout (`embed.Config`).
    const MAX_ELECTION: u32 = 50_000;
    let (heartbeat, election) = (
        timing.etcd_heartbeat_milliseconds,
        timing.etcd_election_milliseconds,
    );
    ensure(
        heartbeat >= 10,
        "timing.etcdHeartbeatMilliseconds",
        "must be at least 10",
    )?;
    ensure(
        u64::from(election) >= 5 * u64::from(heartbeat) && election <= MAX_ELECTION,
        "timing.etcdElectionMilliseconds",
        format!("{election} must be at least five heartbeats of {heartbeat} and at most {MAX_ELECTION}"),
    )?;
    ensure(
        (5..=3600).contains(&timing.leader_lease_seconds),
        "timing.leaderLeaseSeconds",
        "must be 5 to 3600",
    )?;
    ensure(
        (10..=3600).contains(&timing.node_grace_seconds),
        "timing.nodeGraceSeconds",
        "must be 10 to 3600",
    )
}

fn check_certificates(certificates: &Certificates) -> Checked {
    /// Nothing of a cluster outlives its authorities: ten years.
    const MAX_LIFETIME: u32 = 315_360_000;
    /// A kubelet needs half a minute to have its next certificate approved and signed.
    const MIN_LIFETIME: u32 = 120;
    ensure(
        (MIN_LIFETIME..=MAX_LIFETIME).contains(&certificates.lifetime_seconds),
        "certificates.lifetimeSeconds",
        format!("must be {MIN_LIFETIME} to {MAX_LIFETIME}"),
    )
}

#[cfg(test)]
mod tests;
