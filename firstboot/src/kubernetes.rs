//! The few calls of the Kubernetes API that first boot needs, over the one HTTP client. Objects are JSON values: they
//! come from `objects` or go back where they came from.

use std::fmt;
use std::time::Duration;

use kimage_roles::cause::Cause;
use kimage_roles::node_config::KeyPair;
use kimage_roles::secret::Secret;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::http::{Answer, Client, Fault, HttpError, Identity, Request, Settings, TlsFault, Trust};

mod apply;
pub mod field;
mod list;
mod path;
mod watch;

pub use apply::{Applied, Conflict, Retired};
pub use path::{collection, object, segment};
pub use watch::{Versioned, Watched};

/// Who owns the fields that kimage applies.
const FIELD_MANAGER: &str = "kimage";
/// An object may be large (a CoreDNS Corefile is not); lists that others can make long are read by [`Api::list`].
const MAX_ANSWER: usize = 8 << 20;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// No answer of an API server.
    Http(HttpError),
    /// The API server says no: code, reason and message of its Status object.
    Refused {
        /// HTTP status.
        code: u16,
        /// `Forbidden`, `Conflict`, ...
        reason: String,
        /// For people.
        message: String,
    },
}

impl ApiError {
    /// The HTTP status, if the server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Http(HttpError {
                fault: Fault::Status(code),
                ..
            })
            | Self::Refused { code, .. } => Some(*code),
            Self::Http(_) => None,
        }
    }

    /// The cause, where nothing more is known than that the API at `place` was asked.
    pub fn cause(&self, unreachable: Cause) -> Cause {
        match self {
            Self::Http(error) => cause_of(&error.fault, unreachable),
            Self::Refused { code: 401, .. } => Cause::CredentialRefused,
            Self::Refused { .. } => Cause::ApiServerNotReady,
        }
    }

    /// A failure whose cause is `unreachable` when nobody answers.
    pub fn failure(self, unreachable: Cause) -> Failure {
        let cause = self.cause(unreachable);
        Failure::new(cause, self)
    }
}

/// What a fault of the transport to an API server means.
pub fn cause_of(fault: &Fault, unreachable: Cause) -> Cause {
    match fault {
        Fault::Dns => Cause::DnsFailed,
        Fault::Connect(_) | Fault::Timeout => unreachable,
        Fault::Tls(TlsFault::Expired | TlsFault::NotYetValid) => Cause::ClockWrong,
        Fault::Tls(TlsFault::UnknownIssuer | TlsFault::WrongName) => Cause::ForeignCluster,
        Fault::Tls(_) | Fault::Broken(_) => unreachable,
        Fault::Status(401) => Cause::CredentialRefused,
        Fault::Status(_) | Fault::TooLarge(_) => Cause::ApiServerNotReady,
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::Refused {
                code,
                reason,
                message,
            } => write!(f, "{code} {reason}: {message}"),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<HttpError> for ApiError {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A client certificate.
    Certificate(KeyPair),
    /// A bearer token.
    Token(Secret),
    /// Nobody.
    Anonymous,
}

/// An API server.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    server: String,
    token: Option<Secret>,
}

impl Api {
    /// The API at `server` (`https://host:port`), trusted if `trust` says so.
    pub fn new(server: &str, trust: Trust, caller: Caller) -> Result<Self, HttpError> {
        let (identity, token) = match caller {
            Caller::Certificate(KeyPair { certificate, key }) => (Some(Identity { certificate, key }), None),
            Caller::Token(token) => (None, Some(token)),
            Caller::Anonymous => (None, None),
        };
        let settings = Settings {
            total: Duration::from_secs(60),
            max_body: MAX_ANSWER,
            trust,
            identity,
            ..Settings::default()
        };
        Ok(Self {
            client: Client::new(&settings)?,
            server: server.trim_end_matches('/').to_owned(),
            token,
        })
    }

    /// `https://host:port`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether `/readyz` says so.
    pub fn ready(&self) -> Result<(), ApiError> {
        self.client
            .send(&self.request(Request::get(self.url("/readyz"))))?
            .success()?;
        Ok(())
    }

    /// The object at `path`; `None` if there is none.
    pub fn get(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.call(Request::get(self.url(path))) {
            Err(error) if error.code() == Some(404) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// What `T` keeps of the object at `path`; `None` if there is none.
    pub fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        let answer = self.client.send(&self.request(Request::get(self.url(path))))?;
        match answer.status {
            404 => Ok(None),
            200..300 => Ok(Some(answer.json()?)),
            _ => Err(refused(&answer)),
        }
    }

    /// Takes the object at `path` away; `false` if there is none.
    pub fn delete(&self, path: &str) -> Result<bool, ApiError> {
        match self.call(Request::delete(self.url(path))) {
            Err(error) if error.code() == Some(404) => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    /// Adds an object to the collection at `path`. A `409` means that it is there already.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        let body = crate::http::to_json(object)?;
        let request = Request::post(self.url(path), &body).header("content-type", "application/json");
        self.call(request)
    }

    /// Replaces the object at `path`. A `409` means that somebody changed it since it was read.
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        let body = crate::http::to_json(object)?;
        let request = Request::put(self.url(path), &body).header("content-type", "application/json");
        self.call(request)
    }

    /// Merges `patch` into the object at `path` (RFC 7396).
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value, ApiError> {
        let body = crate::http::to_json(patch)?;
        let request =
            Request::patch(self.url(path), &body).header("content-type", "application/merge-patch+json");
        self.call(request)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    fn request<'a>(&self, request: Request<'a>) -> Request<'a> {
        match &self.token {
            Some(token) => request.bearer(token),
            None => request,
        }
    }

    fn call(&self, request: Request<'_>) -> Result<Value, ApiError> {
        let answer = self.client.send(&self.request(request))?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.json()?);
        }
        Err(refused(&answer))
    }
}

/// What the Status object of an answer says that is no success.
fn refused(answer: &Answer) -> ApiError {
    let said: Value = answer.json().unwrap_or_else(|_| json!({}));
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    ApiError::Refused {
        code: answer.status,
        reason: text("reason"),
        message: text("message"),
    }
}
