//! Files that several roles write.

use std::net::IpAddr;

use kimage_roles::certificate::public_key_pem;
use kimage_roles::node_config::Secrets;
use kimage_roles::status::Phase;

use super::{Step, step};
use crate::action::Action;
use crate::control_plane::identity::Leaf;
use crate::failure::{Failure, OrFailure};
use crate::layout::{CA_CERTIFICATE, pki};
use crate::metadata::Machine;
use crate::rendered::RenderedFile;

/// The first steps of a machine that signs with the cluster's authorities.
pub(super) fn with_authorities(machine: &Machine, certificates: Vec<Leaf>) -> Result<Vec<Step>, Failure> {
    let mut written = hosts(machine);
    if let Some(secrets) = &machine.config.secrets {
        written.extend(authorities(secrets)?);
    }
    let name = Action::NameHost(machine.name.clone());
    Ok(vec![
        step("host-name", Phase::Configure, name),
        step("files", Phase::Configure, Action::Write(written)),
        step("certificates", Phase::Configure, Action::Issue(certificates)),
    ])
}

/// Before anything that could run a pod.
pub(super) fn metadata_wall(machine: &Machine) -> Step {
    let pods = machine.config.network.pod_metadata;
    step("metadata-wall", Phase::Configure, Action::GuardMetadata(pods))
}

/// Names that don't need a DNS server: `localhost`, without which etcd doesn't start, and the machine's own.
pub(super) fn hosts(machine: &Machine) -> Vec<RenderedFile> {
    let Machine { name, address, .. } = machine;
    let loopback = match address {
        IpAddr::V4(_) => "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
        IpAddr::V6(_) => "::1 localhost ip6-localhost\n127.0.0.1 localhost\n",
    };
    vec![
        RenderedFile::public("/etc/hosts", format!("{loopback}{address} {name}\n")),
        RenderedFile::public("/etc/hostname", format!("{name}\n")),
    ]
}

/// Certificates of authorities, and the keys that services on this machine sign with.
fn authorities(secrets: &Secrets) -> Result<Vec<RenderedFile>, Failure> {
    let mut files = vec![RenderedFile::public(
        pki("etcd/ca.crt"),
        secrets.etcd_ca.certificate.clone(),
    )];
    if let Some(ca) = &secrets.ca {
        files.push(RenderedFile::public(CA_CERTIFICATE, ca.certificate.clone()));
        // kube-controller-manager signs certificates of kubelets.
        files.push(RenderedFile::private(pki("ca.key"), ca.key.reveal()));
    }
    if let Some(front_proxy) = &secrets.front_proxy_ca {
        files.push(RenderedFile::public(
            pki("front-proxy-ca.crt"),
            front_proxy.certificate.clone(),
        ));
    }
    if let Some(key) = &secrets.service_account_key {
        let public = public_key_pem(key).or_failure(kimage_roles::cause::Cause::ConfigInvalid)?;
        files.push(RenderedFile::private(pki("sa.key"), key.reveal()));
        files.push(RenderedFile::private(pki("sa.pub"), public));
    }
    Ok(files)
}
