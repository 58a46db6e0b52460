//! Files that several roles write.

use std::net::IpAddr;

use kimage_roles::certificate::public_key_pem;
use kimage_roles::node_config::Secrets;

use crate::failure::{Failure, OrFailure};
use crate::layout::{CA_CERTIFICATE, pki};
use crate::metadata::Machine;
use crate::rendered::RenderedFile;

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
pub(super) fn authorities(secrets: &Secrets) -> Result<Vec<RenderedFile>, Failure> {
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
