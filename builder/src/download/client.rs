//! One URL in, a stream of bytes out: HTTP through the right proxy with stall timeouts, or a file of this host.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use ureq::http::header::{self, HeaderMap, HeaderName};
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::Address;
use super::attempts::Trouble;
use super::forward;
use super::policy::Policy;
use super::url;

const MAX_REDIRECTS: usize = 10;

/// A request for the rest of a file.
pub(super) struct Resume<'a> {
    /// Bytes that are here already.
    pub(super) offset: u64,
    /// The ETag or date under which they were served, if it was by the same URL.
    pub(super) validator: Option<&'a str>,
}

/// A server's answer.
pub(super) struct Answer {
    /// Position in the file of the first byte that follows.
    pub(super) start: u64,
    /// Length of the whole file, where the server says it.
    pub(super) total: Option<u64>,
    /// What to hand back as [`Resume::validator`]: a strong ETag, else the Last-Modified date.
    pub(super) validator: Option<String>,
    /// The bytes from `start` on. A read takes no longer than [`Policy::stall`].
    pub(super) body: Box<dyn Read>,
}

/// Which connections can serve a URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    /// To the server itself.
    Direct { tls: bool },
    /// To a proxy, which asks the server: for plain HTTP.
    Forward { tls: bool },
    /// Through a proxy, which only moves bytes: for HTTPS.
    Tunnel { proxy: String },
}

/// Connections, the health of hosts, and the switch that ends all of it.
pub(super) struct Client<'a> {
    policy: &'a Policy,
    agents: Mutex<BTreeMap<Route, Agent>>,
    faults: Mutex<BTreeMap<String, u32>>,
    stopped: Mutex<bool>,
    stopping: Condvar,
}

impl<'a> Client<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        Self {
            policy,
            agents: Mutex::default(),
            faults: Mutex::default(),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
        }
    }

    /// Ends all transfers and waits under way.
    pub(super) fn stop(&self) {
        *locked(&self.stopped) = true;
        self.stopping.notify_all();
        for agent in locked(&self.agents).values() {
            agent.clone().shutdown();
        }
    }

    pub(super) fn stopped(&self) -> bool {
        *locked(&self.stopped)
    }

    /// Waits before the `round`-th repetition (from 0), or as long as a server asked for.
    pub(super) fn back_off(&self, round: u32, asked: Option<Duration>) {
        let limit = self.policy.backoff_limit;
        let delay = self.policy.backoff.saturating_mul(1 << round.min(16)).min(limit);
        // Between half and all of it, so that many builders don't come back in step.
        let chance = RandomState::new().hash_one(round) as f64 / u64::MAX as f64;
        let delay = delay
            .mul_f64(0.5 + chance / 2.0)
            .max(asked.unwrap_or_default().min(limit));
        let stopped = locked(&self.stopped);
        let _ = self
            .stopping
            .wait_timeout_while(stopped, delay, |stopped| !*stopped);
    }

    /// Healthy hosts first, otherwise in the given order.
    pub(super) fn healthy_first(&self, urls: &mut [&Address]) {
        let faults = locked(&self.faults);
        urls.sort_by_key(|url| faults.get(url::authority(url.exposed())).copied().unwrap_or(0));
    }

    /// Notes how a host served, so that a dead mirror costs one timeout and not one per blob.
    pub(super) fn note(&self, url: &Address, served: bool) {
        let mut faults = locked(&self.faults);
        let count = faults
            .entry(url::authority(url.exposed()).to_owned())
            .or_insert(0);
        *count = if served { 0 } else { count.saturating_add(1) };
    }

    /// Opens `url` from its first byte on.
    pub(super) fn open(&self, url: &Address) -> Result<Answer, Trouble> {
        let refused = || Trouble::Lasting("refused a range that was not asked for".to_owned());
        let answer = self.request(url, None)?.ok_or_else(refused)?;
        if answer.start != 0 {
            return Err(Trouble::Lasting(
                "answered with a part of the file that was not asked for".to_owned(),
            ));
        }
        Ok(answer)
    }

    /// Opens `url` from `resume` on where the server can do that, else from where it likes; `None` when it says that
    /// there is nothing from there on (416).
    pub(super) fn resume(&self, url: &Address, resume: &Resume<'_>) -> Result<Option<Answer>, Trouble> {
        self.request(url, Some(resume))
    }

    fn request(&self, url: &Address, resume: Option<&Resume<'_>>) -> Result<Option<Answer>, Trouble> {
        if url.is_file() {
            return open_file(url.exposed()).map(Some);
        }
        let mut here = url.exposed().to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(&here, resume)?;
            let status = response.status().as_u16();
            let location = match status {
                301 | 302 | 303 | 307 | 308 => text_header(response.headers(), header::LOCATION),
                _ => None,
            };
            let Some(location) = location else {
                return if status == 416 {
                    Ok(None)
                } else {
                    answer(response).map(Some)
                };
            };
            here = url::join(&here, location);
            if url::is_file(&here) {
                return Err(Trouble::Lasting(format!(
                    "redirects to a file of this host: {}",
                    url::shown(&here)
                )));
            }
        }
        Err(Trouble::Lasting(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn get(&self, url: &str, resume: Option<&Resume<'_>>) -> Result<Response<Body>, Trouble> {
        let uri: Uri = url
            .parse()
            .map_err(|error| Trouble::Lasting(format!("not a URL: {error}")))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(Trouble::Lasting("neither an http, https nor file URL".to_owned())),
        };
        let proxy = self.policy.proxies.for_url(url);
        let mut request = match (tls, proxy) {
            (false, Some(proxy)) => {
                let (to_proxy, tls) = forwarded(url, proxy)?;
                let request = self.agent(Route::Forward { tls })?.get(to_proxy);
                let request = request.header(header::HOST, url::authority(url));
                match url::basic_credentials(proxy) {
                    Some(basic) => request.header(header::PROXY_AUTHORIZATION, basic),
                    None => request,
                }
            }
            (true, Some(proxy)) => self
                .agent(Route::Tunnel {
                    proxy: proxy.to_owned(),
                })?
                .get(url::without_credentials(url)),
            (_, None) => self
                .agent(Route::Direct { tls })?
                .get(url::without_credentials(url)),
        };
        if let Some(basic) = url::basic_credentials(url) {
            request = request.header(header::AUTHORIZATION, basic);
        }
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(resume) = resume {
            request = request.header(header::RANGE, format!("bytes={}-", resume.offset));
            if let Some(validator) = resume.validator {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        request.call().map_err(|error| self.trouble(error))
    }

    fn agent(&self, route: Route) -> Result<Agent, Trouble> {
        let mut agents = locked(&self.agents);
        if let Some(agent) = agents.get(&route) {
            return Ok(agent.clone());
        }
        let (tls, proxy) = match &route {
            Route::Direct { tls } | Route::Forward { tls } => (*tls, None),
            Route::Tunnel { proxy } => (true, Some(Proxy::new(proxy))),
        };
        let proxy = proxy.transpose();
        let proxy =
            proxy.map_err(|error| Trouble::Lasting(format!("proxy from the environment: {error}")))?;
        let (policy, stall) = (self.policy, Some(self.policy.stall));
        let mut config = Agent::config_builder()
            .user_agent(concat!("kimage/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(policy.parallel)
            .max_idle_connections_per_host(policy.parallel)
            .proxy(proxy)
            .timeout_resolve(Some(policy.connect))
            .timeout_connect(Some(policy.connect))
            .timeout_recv_response(stall)
            .timeout_per_read(stall)
            .timeout_per_write(stall);
        if tls {
            config = config.tls_config(tls_config()?);
        }
        let agent = match &route {
            Route::Forward { .. } => forward::agent(config.build()),
            Route::Direct { .. } | Route::Tunnel { .. } => config.build().new_agent(),
        };
        agents.insert(route, agent.clone());
        Ok(agent)
    }

    /// Puts a failed request or read into the user's terms.
    pub(super) fn trouble(&self, error: ureq::Error) -> Trouble {
        use ureq::Timeout;
        if self.stopped() {
            return Trouble::Stopped;
        }
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let why = match error {
            ureq::Error::Timeout(Timeout::Resolve) => {
                format!("no answer to the name lookup in {}", seconds(self.policy.connect))
            }
            ureq::Error::Timeout(Timeout::Connect) => {
                format!("no connection in {}", seconds(self.policy.connect))
            }
            ureq::Error::Timeout(_) => format!("stalled: nothing came for {}", seconds(self.policy.stall)),
            ureq::Error::HostNotFound => "the host's name is unknown".to_owned(),
            ureq::Error::Io(error) => return self.read_trouble(error),
            // Wrong certificates and bad URLs don't mend themselves.
            ureq::Error::Rustls(error) => return Trouble::Lasting(format!("TLS: {error}")),
            ureq::Error::BadUri(why) => return Trouble::Lasting(format!("not a URL: {why}")),
            other => other.to_string(),
        };
        Trouble::Passing(why, None)
    }

    /// As [`Client::trouble`], for an error from [`Answer::body`].
    pub(super) fn read_trouble(&self, error: io::Error) -> Trouble {
        if error.get_ref().is_some_and(|inner| inner.is::<ureq::Error>()) {
            return self.trouble(ureq::Error::from(error));
        }
        if self.stopped() {
            return Trouble::Stopped;
        }
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(why)) => {
                Trouble::Lasting(format!("TLS certificate: {why:?}"))
            }
            _ => Trouble::Passing(error.to_string(), None),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The URL's path at the proxy's address, and whether the proxy itself is reached by TLS.
fn forwarded(url: &str, proxy: &str) -> Result<(String, bool), Trouble> {
    let scheme = url::scheme(proxy).unwrap_or("http").to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        let shown = url::shown(proxy);
        let why = format!("proxy `{shown}` from the environment: `{scheme}` proxies are not supported");
        return Err(Trouble::Lasting(why));
    }
    let tls = scheme == "https";
    let path = match url::path_and_query(url) {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    Ok((format!("{scheme}://{}{path}", url::authority(proxy)), tls))
}

/// The host's root certificates, read only when TLS is needed.
fn tls_config() -> Result<TlsConfig, Trouble> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found
            .errors
            .first()
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        let message =
            format!("this host has no root certificates{why}; install the package `ca-certificates`");
        return Err(Trouble::Lasting(message));
    }
    let roots: Vec<_> = found
        .certs
        .iter()
        .map(|der: &CertificateDer<'_>| Certificate::from_der(der).to_owned())
        .collect();
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}

fn open_file(url: &str) -> Result<Answer, Trouble> {
    let path = url::file_path(url).map_err(Trouble::Lasting)?;
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| Trouble::Lasting(error.to_string()))?;
    if !metadata.is_file() {
        return Err(Trouble::Lasting("not a regular file".to_owned()));
    }
    Ok(Answer {
        start: 0,
        total: Some(metadata.len()),
        validator: None,
        body: Box::new(file),
    })
}

fn answer(response: Response<Body>) -> Result<Answer, Trouble> {
    let (parts, body) = response.into_parts();
    let headers = &parts.headers;
    let (start, total) = match parts.status.as_u16() {
        200 => (0, number_header(headers, header::CONTENT_LENGTH)),
        206 => content_range(headers)
            .ok_or_else(|| Trouble::Lasting("answered 206 without a usable Content-Range".to_owned()))?,
        _ => return Err(refusal(parts.status, headers)),
    };
    let etag = text_header(headers, header::ETAG).filter(|etag| etag.starts_with('"'));
    let validator = etag
        .or_else(|| text_header(headers, header::LAST_MODIFIED))
        .map(str::to_owned);
    Ok(Answer {
        start,
        total,
        validator,
        body: Box::new(body.into_reader()),
    })
}

fn refusal(status: ureq::http::StatusCode, headers: &HeaderMap) -> Trouble {
    let why = format!("HTTP {status}");
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => {
            let seconds = number_header(headers, header::RETRY_AFTER);
            Trouble::Passing(why, seconds.map(Duration::from_secs))
        }
        401 | 403 => Trouble::Lasting(format!(
            "{why} (credentials go into the URL: https://user:password@host/)"
        )),
        407 => Trouble::Lasting(format!("{why} (credentials go into http_proxy or https_proxy)")),
        _ => Trouble::Lasting(why),
    }
}

/// `bytes 100-199/1000` is `(100, Some(1000))`, `bytes 100-199/*` is `(100, None)` (RFC 9110 section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = text_header(headers, header::CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start, total))
}

fn text_header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn number_header(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    text_header(headers, name)?.trim().parse().ok()
}
