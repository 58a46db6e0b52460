//! Somebody with credentials who asks the API for certificates, as anybody may.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_firstboot::http::Trust;
use kimage_firstboot::kubernetes::{Api, Caller};
use kimage_qemu_tests::cluster::{Cluster, until};
use kimage_qemu_tests::namespaces::balancer::PORT;
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_qemu_tests::namespaces::network::BENCH;
use kimage_roles::certificate::Profile;
use kimage_roles::node_config::NodeConfig;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where requests are.
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// The signer of certificates that kubelets serve with.
const SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// So many threads make a crowd.
const THREADS: usize = 4;

/// Somebody with credentials.
pub(crate) struct Requester {
    api: Api,
}

impl Requester {
    /// Whoever holds a certificate of the node called `name`.
    pub(crate) fn node(cluster: &Cluster<Contained>, name: &str) -> Result<Self> {
        let profile = Profile::client(&format!("system:node:{name}"), Some("system:nodes"));
        let pair = cluster
            .keys()
            .issue("ca", &profile, std::time::SystemTime::now())?;
        Self::of(cluster, Caller::Certificate(pair))
    }

    /// Whoever has read the user-data of a worker.
    pub(crate) fn token(cluster: &Cluster<Contained>) -> Result<Self> {
        let config = NodeConfig::from_yaml(cluster.user_data("worker")?.as_bytes())?;
        let join = config.join.context("a worker's way to join")?;
        Self::of(cluster, Caller::Token(join.token))
    }

    fn of(cluster: &Cluster<Contained>, caller: Caller) -> Result<Self> {
        let trust = Trust::Pinned(cluster.keys().text("ca.crt")?);
        let api = Api::new(&format!("https://{BENCH}:{PORT}"), trust, caller)?;
        Ok(Self { api })
    }

    /// Asks for a certificate to serve with.
    pub(crate) fn serving(&self, cluster: &Cluster<Contained>, name: &str, pem: &str) -> Result<()> {
        self.ask(cluster, &object(name, SERVING, "server auth", pem))
    }

    /// Asks for a node's certificate.
    pub(crate) fn client(&self, cluster: &Cluster<Contained>, name: &str, pem: &str) -> Result<()> {
        self.ask(cluster, &object(name, CLIENT, "client auth", pem))
    }

    fn ask(&self, cluster: &Cluster<Contained>, object: &Value) -> Result<()> {
        let asked = cluster
            .network()
            .within(|| Ok(self.api.create(REQUESTS, object)?));
        asked.map(drop)
    }

    /// Makes `count` requests with one text.
    pub(crate) fn crowd(&self, cluster: &Cluster<Contained>, pem: &str, count: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    scope.spawn(move || {
                        cluster.network().within(|| {
                            for number in (thread..count).step_by(THREADS) {
                                let name = format!("a-crowd-{number}");
                                self.api
                                    .create(REQUESTS, &object(&name, SERVING, "server auth", pem))?;
                            }
                            Ok(())
                        })
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })
    }

    /// Writes addresses into the status of the Node called `node`.
    pub(crate) fn claim(&self, cluster: &Cluster<Contained>, node: &str, addresses: &[Value]) -> Result<()> {
        let patch = json!({"status": {"addresses": addresses}});
        let path = format!("/api/v1/nodes/{node}/status");
        cluster
            .network()
            .within(|| Ok(self.api.merge(&path, &patch)?))
            .map(drop)
    }
}

fn object(name: &str, signer: &str, usage: &str, pem: &str) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": ["digital signature", usage]},
    })
}

/// The text of a request of `user`, who is in the group of nodes, for these names, with a key of its own.
pub(crate) fn pem(user: &str, names: &[&str]) -> String {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let name = &mut parameters.distinguished_name;
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, user);
    let names = names.iter().map(|name| match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*name).try_into().unwrap()),
    });
    parameters.subject_alt_names = names.collect();
    let request = parameters.serialize_request(&KeyPair::generate().unwrap());
    request.unwrap().pem().unwrap()
}

/// The request called `name`.
pub(crate) fn find(cluster: &Cluster<Contained>, name: &str) -> Result<Value> {
    let found = cluster.get(&format!("{REQUESTS}/{name}"))?;
    found.with_context(|| format!("no request {name}"))
}

/// Waits until the request called `name` is approved and signed.
pub(crate) fn wait_until_signed(cluster: &Cluster<Contained>, name: &str, deadline: Duration) -> Result<()> {
    until(deadline, name, || {
        let found = find(cluster, name)?;
        ensure!(found["status"]["certificate"].is_string(), "{}", found["status"]);
        Ok(())
    })
}

/// Waits until the kubelet of `node` has a certificate to serve with.
pub(crate) fn wait_until_served(cluster: &Cluster<Contained>, node: &str, deadline: Duration) -> Result<()> {
    let user = format!("system:node:{node}");
    until(deadline, "a serving certificate", || {
        let requests = cluster.items(REQUESTS)?;
        let served = requests.iter().any(|request| {
            let spec = &request["spec"];
            spec["signerName"] == SERVING
                && spec["username"] == user.as_str()
                && request["status"]["certificate"].is_string()
        });
        ensure!(served, "{user} has none");
        Ok(())
    })
}

/// Deletes all requests.
pub(crate) fn clear(cluster: &Cluster<Contained>) -> Result<()> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    let api = cluster.api()?;
    cluster.network().within(|| {
        let mut names = Vec::new();
        api.list(REQUESTS, "", |object: Object| {
            names.push(object.metadata.name);
            Ok(())
        })?;
        for name in names {
            api.delete(&format!("{REQUESTS}/{name}"))?;
        }
        Ok(())
    })
}
