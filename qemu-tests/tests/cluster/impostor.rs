//! Who and what a joining machine may meet in place of its cluster: a token whose time is over, a server of another
//! cluster, a clock of another time.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_qemu_tests::cluster::Cluster;
use kimage_qemu_tests::images::{command, finish};
use kimage_qemu_tests::namespaces::machine::Contained;
use kimage_qemu_tests::namespaces::network::{BENCH, Network};
use kimage_qemu_tests::processes::start_for_good;
use serde_json::json;
use tempfile::TempDir;

use super::FORMATION;

/// Port at which somebody answers who is another cluster.
pub(crate) const FOREIGN: u16 = 7443;
/// Port at which somebody answers whose clock is two hours ahead.
pub(crate) const LATE: u16 = 8443;
const TWO_HOURS: Duration = Duration::from_secs(7200);

/// A token that the cluster has known and signed with, until its time was over.
pub(crate) fn expired_token(cluster: &Cluster<Contained>) -> Result<String> {
    let (id, secret) = ("expire", "0123456789abcdef");
    let ends = std::time::SystemTime::now() + Duration::from_secs(6);
    let ends = ends.duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "expiration": rfc3339(ends)?,
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    });
    let api = cluster.api()?;
    cluster
        .network()
        .within(|| Ok(api.create("/api/v1/namespaces/kube-system/secrets", &object)?))?;
    for wanted in [true, false] {
        let end = Instant::now() + FORMATION;
        loop {
            let info = cluster.get("/api/v1/namespaces/kube-public/configmaps/cluster-info")?;
            let info = info.context("cluster-info")?;
            if info["data"].get(format!("jws-kubeconfig-{id}")).is_some() == wanted {
                break;
            }
            ensure!(Instant::now() < end, "the signature with token {id}: {wanted}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(format!("{id}.{secret}"))
}

fn rfc3339(seconds: u64) -> Result<String> {
    date(&format!("--date=@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ")
}

/// coreutils' `date` writes moments as others want them.
fn date(moment: &str, form: &str) -> Result<String> {
    let output = finish(command("date").args(["--utc", moment, form]))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Who answers in place of the cluster: HAProxy with a certificate of its own and fixed answers.
pub(crate) struct Impostor {
    child: Child,
    _folder: TempDir,
}

impl Impostor {
    /// Answers in `network` at [`FOREIGN`] and [`LATE`].
    pub(crate) fn start(network: &Network) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = folder.path();
        let key = rcgen::KeyPair::generate()?;
        let parameters = rcgen::CertificateParams::new(vec![BENCH.to_string()])?;
        let certificate = parameters.self_signed(&key)?.pem();
        fs::write(place.join("pem"), format!("{certificate}{}", key.serialize_pem()))?;
        let kubeconfig = json!({"clusters": [{"name": "", "cluster": {
            "server": format!("https://{BENCH}:{FOREIGN}"), "certificate-authority-data": STANDARD.encode(&certificate)}}]});
        let info = json!({"data": {"kubeconfig": kubeconfig.to_string()}});
        fs::write(place.join("info"), info.to_string())?;
        let late = std::time::SystemTime::now() + TWO_HOURS;
        let late = late.duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let late = date(&format!("--date=@{late}"), "+%a, %d %b %Y %H:%M:%S GMT")?;
        let answer = |port: u16, more: &str| {
            format!(
                "frontend at-{port}\n  bind :{port} ssl crt {0}/pem\n  http-request return status 200 content-type \
                 application/json file {0}/info {more}\n",
                place.display()
            )
        };
        let text = format!(
            "defaults\n  mode http\n  timeout client 10s\n  timeout connect 1s\n  timeout server 10s\n{}{}",
            answer(FOREIGN, ""),
            answer(LATE, &format!("hdr Date \"{late}\""))
        );
        fs::write(place.join("haproxy.cfg"), text)?;
        let mut haproxy = command("ip");
        haproxy
            .args(["netns", "exec", network.name(), "haproxy", "-db", "-f"])
            .arg(place.join("haproxy.cfg"))
            .stdin(Stdio::null());
        let child = start_for_good(haproxy).context("start haproxy")?;
        Ok(Self {
            child,
            _folder: folder,
        })
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
