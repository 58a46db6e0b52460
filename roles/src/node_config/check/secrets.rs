//! Keys, certificates and tokens. No problem repeats any part of them.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::text::is_token;
use super::{Checked, ensure};
use crate::node_config::{BootstrapToken, Join, KeyPair, NodeRole, Secrets};
use crate::pem;
use crate::secret::Secret;

/// Length of the key that encrypts Secrets (secretbox), in bytes.
const ENCRYPTION_KEY: usize = 32;
const TOKEN: &str = "must be a bootstrap token: 6 and 16 lower-case letters and digits with a dot between";

pub(super) fn check_join(join: &Join) -> Checked {
    ensure(is_token(join.token.reveal()), "join.token", TOKEN)?;
    let path = "join.caCertHashes";
    ensure(
        !join.ca_cert_hashes.is_empty(),
        path,
        "names no hash: the cluster could be anybody's",
    )?;
    for (index, hash) in join.ca_cert_hashes.iter().enumerate() {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digest = hash.strip_prefix("sha256:").filter(|digest| digest.len() == 64);
        ensure(
            digest.is_some_and(|digest| digest.bytes().all(hex)),
            format!("{path}[{index}]"),
            "must be `sha256:` and 64 lower-case hexadecimal digits",
        )?;
    }
    Ok(())
}

pub(super) fn check(role: NodeRole, secrets: &Secrets) -> Checked {
    check_pair(&secrets.etcd_ca, "secrets.etcdCa")?;
    let present = [
        ("secrets.ca", secrets.ca.is_some()),
        ("secrets.frontProxyCa", secrets.front_proxy_ca.is_some()),
        ("secrets.serviceAccountKey", secrets.service_account_key.is_some()),
        ("secrets.encryptionKey", secrets.encryption_key.is_some()),
    ];
    for (path, is_there) in present {
        if role == NodeRole::Etcd {
            ensure(
                !is_there,
                path,
                "an `etcd` machine needs no key of Kubernetes and must not have one",
            )?;
        } else {
            ensure(is_there, path, "role `control-plane` needs it")?;
        }
    }
    let tokens_path = "secrets.bootstrapTokens";
    if role == NodeRole::Etcd {
        ensure(
            secrets.bootstrap_tokens.is_empty(),
            tokens_path,
            "an `etcd` machine needs no bootstrap token",
        )?;
    }
    for (pair, path) in [
        (&secrets.ca, "secrets.ca"),
        (&secrets.front_proxy_ca, "secrets.frontProxyCa"),
    ] {
        if let Some(pair) = pair {
            check_pair(pair, path)?;
        }
    }
    if let Some(key) = &secrets.service_account_key {
        check_key(key, "secrets.serviceAccountKey")?;
    }
    if let Some(key) = &secrets.encryption_key {
        let length = STANDARD.decode(key.reveal()).map(|key| key.len());
        ensure(
            length == Ok(ENCRYPTION_KEY),
            "secrets.encryptionKey",
            format!("must be {ENCRYPTION_KEY} bytes as base64"),
        )?;
    }
    check_tokens(&secrets.bootstrap_tokens, tokens_path)
}

fn check_tokens(tokens: &[BootstrapToken], path: &str) -> Checked {
    let mut ids = BTreeSet::new();
    for (index, token) in tokens.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let text = token.token.reveal();
        ensure(is_token(text), format!("{path}.token"), TOKEN)?;
        let id = text.split('.').next();
        ensure(
            ids.insert(id),
            format!("{path}.token"),
            "another token has the same first six characters",
        )?;
        let Some(expires) = &token.expires else {
            continue;
        };
        // jiff reads more than RFC 3339 says, the API server doesn't.
        let plain = expires.len() >= 20 && expires.as_bytes()[10] == b'T' && !expires.contains('[');
        ensure(
            plain && expires.parse::<jiff::Timestamp>().is_ok(),
            format!("{path}.expires"),
            "must be a time like 2027-01-31T12:00:00Z",
        )?;
    }
    Ok(())
}

fn check_pair(pair: &KeyPair, path: &str) -> Checked {
    check_certificate(&pair.certificate, &format!("{path}.certificate"))?;
    check_key(&pair.key, &format!("{path}.key"))
}

/// Whether this looks like PEM of certificates; reading them is the work of `certificate`.
pub(super) fn check_certificate(text: &str, path: &str) -> Checked {
    let problem = match pem::blocks(text) {
        Ok(blocks) if blocks.iter().all(|block| block.label == "CERTIFICATE") => return Ok(()),
        Ok(_) => "holds something else than certificates".to_owned(),
        Err(problem) => problem,
    };
    ensure(false, path, format!("must be a PEM certificate: {problem}"))
}

fn check_key(key: &Secret, path: &str) -> Checked {
    let is_key = |label: &str| matches!(label, "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY");
    let problem = match pem::blocks(key.reveal()) {
        Ok(blocks) if blocks.iter().any(|block| is_key(&block.label)) => return Ok(()),
        Ok(blocks) if blocks.iter().any(|block| block.label == "ENCRYPTED PRIVATE KEY") => {
            "it is encrypted".to_owned()
        }
        Ok(_) => "holds no private key".to_owned(),
        Err(problem) => problem,
    };
    ensure(false, path, format!("must be a PEM private key: {problem}"))
}
