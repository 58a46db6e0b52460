//! Talks to one repository of a registry: manifests and blobs, verified, with an anonymous token where one is wanted.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use ureq::Agent;
use ureq::http::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use ureq::http::{HeaderMap, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Descriptor, Document, Manifest, Platform, parse};
use crate::definition::component::Registry;
use crate::digest::{Digest, Hasher};
use crate::failure::{ExitCode, Failure};
use crate::progress::Task;

/// Manifests, indexes and configurations that kimage understands.
const DOCUMENTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Most bytes of a manifest, an index or a configuration (registries refuse more than 4 MiB).
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// Most bytes of a layer.
const LARGEST_LAYER: u64 = 16 << 30;
/// Most layers (overlayfs mounts no more).
const MOST_LAYERS: usize = 500;
/// How often a transfer is tried.
const TRIES: u32 = 3;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// One repository of one registry.
pub(super) struct Client<'a> {
    agent: Agent,
    registry: &'a Registry,
    token: Option<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(registry: &'a Registry) -> Result<Self> {
        let mut config = Agent::config_builder()
            .user_agent(concat!("kimage/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(30)));
        if registry.url.starts_with("https:") {
            config = config.tls_config(tls()?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            registry,
            token: None,
        })
    }

    /// The manifest for linux/amd64 that `digest` names, directly or through an index.
    pub(super) fn manifest(&mut self, digest: &Digest) -> Result<Manifest> {
        let mut wanted = Descriptor {
            digest: format!("sha256:{digest}"),
            size: LARGEST_DOCUMENT,
            platform: None,
        };
        // An index names manifests; an index of indexes is nobody's practice.
        for _ in 0..2 {
            let bytes = self.document("manifests", &wanted)?;
            match parse::<Document>(&bytes, "the image's manifest")? {
                Document {
                    config: Some(config),
                    layers: Some(layers),
                    ..
                } => {
                    if layers.len() > MOST_LAYERS {
                        bail!(
                            "{}: {} layers, at most {MOST_LAYERS} can be mounted",
                            wanted.digest,
                            layers.len()
                        );
                    }
                    return Ok(Manifest { config, layers });
                }
                Document {
                    manifests: Some(manifests),
                    ..
                } => {
                    let fits =
                        |platform: &Platform| platform.os == "linux" && platform.architecture == "amd64";
                    let found = manifests
                        .into_iter()
                        .find(|one| one.platform.as_ref().is_some_and(fits));
                    wanted =
                        found.with_context(|| format!("{} has no image for linux/amd64", wanted.digest))?;
                }
                _ => bail!("{} is neither an image manifest nor an index", wanted.digest),
            }
        }
        bail!("sha256:{digest} is an index of indexes")
    }

    /// A small blob or manifest, verified.
    pub(super) fn document(&mut self, kind: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.sha256()?;
        let limit = descriptor.size.min(LARGEST_DOCUMENT);
        let mut bytes = Vec::new();
        self.transfer(kind, &descriptor.digest, |reader| {
            bytes.clear();
            reader
                .take(limit + 1)
                .read_to_end(&mut bytes)
                .map(drop)
                .context("read the answer")
        })?;
        if bytes.len() as u64 > limit {
            bail!("{} is longer than {limit} bytes", descriptor.digest);
        }
        self.verify(&digest, &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A layer into the file at `path`, verified.
    pub(super) fn blob(&mut self, descriptor: &Descriptor, path: &Path, task: &Task) -> Result<()> {
        let digest = descriptor.sha256()?;
        if descriptor.size > LARGEST_LAYER {
            bail!(
                "layer {} has {} bytes, at most {LARGEST_LAYER} are taken",
                descriptor.digest,
                descriptor.size
            );
        }
        let mut found = Digest::of(&[]);
        self.transfer("blobs", &descriptor.digest, |reader| {
            let mut file = File::create(path).with_context(|| format!("make {}", path.display()))?;
            let mut reader = reader.take(descriptor.size.saturating_add(1));
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = reader.read(&mut buffer).context("read the answer")?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
                file.write_all(&buffer[..count])
                    .with_context(|| format!("write {}", path.display()))?;
                task.advance(count as u64);
            }
            found = hasher.finish();
            Ok(())
        })?;
        self.verify(&digest, &found)
    }

    fn verify(&self, wanted: &Digest, found: &Digest) -> Result<()> {
        if wanted == found {
            return Ok(());
        }
        let message = format!(
            "{}: sha256:{wanted} has bytes that hash to {found}",
            self.registry.url
        );
        Err(Failure::new(ExitCode::Mismatch, message)
            .hint("the registry serves other bytes than the definition pins")
            .into())
    }

    /// Hands the body of one object to `take`, asking for a token where the registry wants one, and again after a
    /// cut connection.
    fn transfer(
        &mut self,
        kind: &str,
        digest: &str,
        mut take: impl FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let url = format!(
            "{}/v2/{}/{kind}/{digest}",
            self.registry.url.trim_end_matches('/'),
            self.registry.repository
        );
        let fetch = |why: String| Failure::new(ExitCode::Fetch, format!("{url}: {why}"));
        let mut trouble = String::new();
        for _ in 0..TRIES {
            let mut request = self.agent.get(&url).header(ACCEPT, DOCUMENTS);
            if let Some(token) = &self.token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let mut response = match request.call() {
                Ok(response) => response,
                Err(error) => {
                    trouble = error.to_string();
                    continue;
                }
            };
            match response.status() {
                StatusCode::OK => match take(&mut response.body_mut().as_reader()) {
                    Ok(()) => return Ok(()),
                    Err(error) => trouble = format!("{error:#}"),
                },
                StatusCode::UNAUTHORIZED if self.token.is_none() => {
                    self.token = Some(
                        self.anonymous_token(response.headers())
                            .map_err(|why| fetch(format!("{why:#}")))?,
                    );
                    trouble = "the registry wants credentials".into();
                }
                status if status.is_server_error() => trouble = format!("HTTP {status}"),
                status => return Err(fetch(format!("HTTP {status}")).into()),
            }
        }
        Err(fetch(trouble)
            .hint("check the network and the component's `url`")
            .into())
    }

    /// Asks the token server that the challenge names (`Bearer realm="...",service="...",scope="..."`).
    fn anonymous_token(&self, headers: &HeaderMap) -> Result<String> {
        let challenge = headers
            .get(WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let fields = challenge
            .strip_prefix("Bearer ")
            .context("the registry offers no anonymous token")?;
        let fields = challenge_fields(fields);
        let field = |name: &str| {
            fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let realm = field("realm").context("the registry names no token server")?;
        let repository = format!("repository:{}:pull", self.registry.repository);
        let mut request = self
            .agent
            .get(realm)
            .query("scope", field("scope").unwrap_or(&repository));
        if let Some(service) = field("service") {
            request = request.query("service", service);
        }
        let mut response = request
            .call()
            .with_context(|| format!("ask {realm} for a token"))?;
        if !response.status().is_success() {
            bail!("{realm} answers HTTP {}", response.status());
        }
        let mut bytes = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(LARGEST_DOCUMENT)
            .read_to_end(&mut bytes)
            .context("read a token")?;
        let token: Token = parse(&bytes, "a token")?;
        token
            .token
            .or(token.access_token)
            .context("the token server's answer holds no token")
    }
}

/// `a="b",c="d,e"` as pairs.
fn challenge_fields(text: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let Some((value, after)) = after.split_once('"') else {
            break;
        };
        fields.push((key.trim_start_matches([',', ' ']).to_owned(), value.to_owned()));
        rest = after;
    }
    fields
}

fn tls() -> Result<TlsConfig> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        bail!("this host has no root certificates; install the package `ca-certificates`");
    }
    let roots: Vec<_> = found
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    Ok(config.root_certs(RootCerts::new_with_certs(&roots)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_with_commas_inside_quotes() {
        let fields =
            challenge_fields(r#"realm="https://auth/token",service="r",scope="repository:a/b:pull,push""#);
        let expected = [
            ("realm", "https://auth/token"),
            ("service", "r"),
            ("scope", "repository:a/b:pull,push"),
        ];
        assert_eq!(
            fields,
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        assert_eq!(challenge_fields("realm=\"cut"), []);
        assert_eq!(challenge_fields("\"\"\"==,"), []);
    }
}
