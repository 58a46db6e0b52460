//! The one HTTP client of first boot: blocking, HTTP/1.1, over ureq and rustls. Every answer is bounded in size and
//! time; redirects are not followed and proxies not used, since a machine speaks only to servers that its platform or
//! its NodeConfig names.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

mod fault;
#[cfg(test)]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
mod trust;

pub use fault::{Fault, HttpError, TlsFault};
pub use trust::{Identity, Trust};

/// Longest body of a failed answer that is kept for its message, in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How a URL begins whose server is not asked for trust.
const PLAIN: &str = "http:";

/// How a client behaves towards all its servers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest time until a connection stands, TLS and name lookup included.
    pub connect: Duration,
    /// Longest time of a whole exchange, from the name lookup to the last byte of the answer. Streams don't obey it.
    pub total: Duration,
    /// Largest body that is read, in bytes.
    pub max_body: usize,
    /// Which servers are believed.
    pub trust: Trust,
    /// Client certificate.
    pub identity: Option<Identity>,
}

impl Default for Settings {
    /// 5 s to connect, 30 s in all, 1 MiB, the system's roots, no client certificate.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(30),
            max_body: 1 << 20,
            trust: Trust::System,
            identity: None,
        }
    }
}

/// A client. It keeps connections open for the next request; clones share them.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    /// In its place where the system's roots count, for servers that speak TLS.
    rooted: Option<Arc<Rooted>>,
    max_body: usize,
}

/// An agent that believes the system's roots. It reads them for the first server that asks for trust and no earlier: at
/// a cold start that takes a tenth of a second, and most metadata services speak plain HTTP.
#[derive(Debug)]
struct Rooted {
    connect: Duration,
    total: Duration,
    agent: OnceLock<Agent>,
}

impl Rooted {
    fn agent(&self) -> &Agent {
        let make = || agent(self.connect, self.total, trust::by_system_roots());
        self.agent.get_or_init(make)
    }
}

fn agent(connect: Duration, total: Duration, tls: TlsConfig) -> Agent {
    let config = Agent::config_builder()
        .user_agent(concat!("kimage/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_global(Some(total))
        .tls_config(tls)
        .build();
    Agent::with_parts(config, DefaultConnector::new(), Names::default())
}

impl Client {
    /// A client with these settings.
    ///
    /// # Errors
    ///
    /// A certificate or key can't be read, they don't belong together, or the system has no root certificates
    /// ([`Fault::Tls`]).
    pub fn new(settings: &Settings) -> Result<Self, HttpError> {
        let Settings { connect, total, .. } = *settings;
        let (tls, rooted) = match (&settings.trust, &settings.identity) {
            (Trust::System, None) => {
                let agent = OnceLock::new();
                let rooted = Rooted {
                    connect,
                    total,
                    agent,
                };
                (trust::nobody(), Some(Arc::new(rooted)))
            }
            (trust, identity) => (trust::tls(trust, identity.as_ref())?, None),
        };
        Ok(Self {
            agent: agent(connect, total, tls),
            rooted,
            max_body: settings.max_body,
        })
    }

    fn agent(&self, url: &str) -> &Agent {
        let is_plain = |start: &str| start.eq_ignore_ascii_case(PLAIN);
        match &self.rooted {
            Some(rooted) if !url.get(..PLAIN.len()).is_some_and(is_plain) => rooted.agent(),
            _ => &self.agent,
        }
    }

    /// Sends a request and reads the whole answer, whatever its status.
    pub fn send(&self, request: &Request<'_>) -> Result<Answer, HttpError> {
        let shown = shown(&request.url);
        let response = self
            .run(request, None)
            .map_err(|error| fault::of(&shown, error))?;
        let (parts, mut body) = response.into_parts();
        let limit = if parts.status.is_success() {
            self.max_body
        } else {
            self.max_body.min(MAX_ERROR_BODY)
        };
        if body.content_length().is_some_and(|length| length > limit as u64) {
            return Err(match parts.status.is_success() {
                true => HttpError::new(&shown, Fault::TooLarge(limit)),
                // Its status says more than the size of its message.
                false => HttpError::new(&shown, Fault::Status(parts.status.as_u16())),
            });
        }
        let mut bytes = Vec::new();
        let read = body.as_reader().take(limit as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| fault::of(&shown, ureq::Error::from(error)))?;
        if bytes.len() > limit && parts.status.is_success() {
            return Err(HttpError::new(&shown, Fault::TooLarge(limit)));
        }
        bytes.truncate(limit);
        let headers = parts.headers.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        });
        Ok(Answer {
            url: shown,
            status: parts.status.as_u16(),
            headers: headers.collect(),
            body: bytes,
        })
    }

    /// Sends a request and hands out the body of a successful answer as it comes. A pause longer than `idle` ends it
    /// with an error, and so does a body of more than `max_bytes`.
    pub fn stream(&self, request: &Request<'_>, idle: Duration, max_bytes: u64) -> Result<Stream, HttpError> {
        let shown = shown(&request.url);
        let response = self
            .run(request, Some(idle))
            .map_err(|error| fault::of(&shown, error))?;
        if !response.status().is_success() {
            return Err(HttpError::new(&shown, Fault::Status(response.status().as_u16())));
        }
        let body = response.into_body().into_reader();
        Ok(Stream {
            url: shown,
            reader: BufReader::new(Box::new(body)),
            left: max_bytes,
            limit: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        })
    }

    /// GET; the body of a successful answer.
    pub fn get(&self, url: &str) -> Result<Vec<u8>, HttpError> {
        Ok(self.send(&Request::get(url))?.success()?.body)
    }

    /// Sends a request and reads the JSON of a successful answer.
    pub fn json<T: DeserializeOwned>(&self, request: &Request<'_>) -> Result<T, HttpError> {
        self.send(request)?.success()?.json()
    }

    fn run(
        &self,
        request: &Request<'_>,
        idle: Option<Duration>,
    ) -> Result<ureq::http::Response<Body>, ureq::Error> {
        let mut builder = ureq::http::Request::builder()
            .method(request.method.clone())
            .uri(&request.url)
            .header("accept-encoding", "identity");
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        match request.body {
            Some(body) => run_with(self.agent(&request.url), builder.body(body)?, idle),
            None => run_with(self.agent(&request.url), builder.body(())?, idle),
        }
    }
}

fn run_with<B: ureq::AsSendBody>(
    agent: &Agent,
    request: ureq::http::Request<B>,
    idle: Option<Duration>,
) -> Result<ureq::http::Response<Body>, ureq::Error> {
    let Some(idle) = idle else {
        return agent.run(request);
    };
    let configured = agent.configure_request(request);
    let request = configured
        .timeout_global(None)
        .timeout_recv_response(Some(idle))
        .timeout_per_read(Some(idle))
        .build();
    agent.run(request)
}

/// A request. It has no `Debug`: headers and body may be secret.
pub struct Request<'a> {
    method: Method,
    url: String,
    headers: Vec<(&'a str, String)>,
    body: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// GET.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    /// DELETE.
    pub fn delete(url: impl Into<String>) -> Self {
        Self::new(Method::DELETE, url)
    }

    /// POST.
    pub fn post(url: impl Into<String>, body: &'a [u8]) -> Self {
        Self::new(Method::POST, url).body(body)
    }

    /// PUT.
    pub fn put(url: impl Into<String>, body: &'a [u8]) -> Self {
        Self::new(Method::PUT, url).body(body)
    }

    /// PATCH.
    pub fn patch(url: impl Into<String>, body: &'a [u8]) -> Self {
        Self::new(Method::PATCH, url).body(body)
    }

    fn body(mut self, body: &'a [u8]) -> Self {
        self.body = Some(body);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds `Authorization: Bearer`.
    pub fn bearer(self, token: &kimage_roles::secret::Secret) -> Self {
        self.header("authorization", format!("Bearer {}", token.reveal()))
    }
}

/// The JSON of a value, for the body of a request.
pub fn to_json(value: &impl Serialize) -> Result<Vec<u8>, HttpError> {
    serde_json::to_vec(value)
        .map_err(|error| HttpError::new("", Fault::Broken(format!("write JSON: {error}"))))
}

/// A whole answer. It has no `Debug`: the body may be secret.
pub struct Answer {
    url: String,
    /// Status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body; of an answer that is no success at most its first 64 KiB.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name (lower case) that is plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The answer itself when its status is 2xx, else [`Fault::Status`].
    pub fn success(self) -> Result<Self, HttpError> {
        if (200..300).contains(&self.status) {
            Ok(self)
        } else {
            Err(HttpError::new(&self.url, Fault::Status(self.status)))
        }
    }

    /// The body as JSON. An error names the place, never the text there.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let what = format!(
                "not the JSON that is expected: line {} column {}",
                error.line(),
                error.column()
            );
            HttpError::new(&self.url, Fault::Broken(what))
        })
    }
}

/// The body of an answer, as it comes.
pub struct Stream {
    url: String,
    reader: BufReader<Box<dyn Read + Send>>,
    left: u64,
    limit: usize,
}

impl Stream {
    /// The next line without its end, of at most `longest` bytes; `None` at the end of the body.
    pub fn line(&mut self, longest: usize) -> Result<Option<Vec<u8>>, HttpError> {
        let mut line = Vec::new();
        let cap = (longest as u64 + 1).min(self.left.saturating_add(1));
        let read = self.reader.by_ref().take(cap).read_until(b'\n', &mut line);
        let count = read.map_err(|error| fault::of(&self.url, ureq::Error::from(error)))? as u64;
        if count > self.left {
            return Err(HttpError::new(&self.url, Fault::TooLarge(self.limit)));
        }
        self.left -= count;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > longest {
            return Err(HttpError::new(&self.url, Fault::TooLarge(longest)));
        }
        Ok((count > 0).then_some(line))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {} bytes", self.limit),
            )
        })?;
        Ok(count)
    }
}

/// A URL as it may be shown: without credentials and query, which can be secret.
fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => plain.to_owned(),
    }
}

/// ureq's lookup of names, except that a failed one can be told from a failed connection.
#[derive(Debug, Default)]
struct Names {
    inner: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.inner
            .resolve(uri, config, timeout)
            .map_err(|error| match error {
                ureq::Error::Io(_) => ureq::Error::HostNotFound,
                other => other,
            })
    }
}
