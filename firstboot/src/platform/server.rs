//! A platform's metadata server, with every way that it can fail named by a cause.

use kimage_roles::cause::Cause;
use serde::de::DeserializeOwned;

use super::MAX_DOCUMENT;
use crate::failure::Failure;
use crate::http::{Answer, Client, Fault, HttpError, Request, TlsFault};

/// A metadata server.
pub(super) struct MetadataServer {
    client: Client,
    base: String,
}

/// Headers of a request.
pub(super) type Headers<'a> = &'a [(&'a str, &'a str)];

impl MetadataServer {
    pub(super) fn new(client: Client, base: &str) -> Self {
        Self {
            client,
            base: base.to_owned(),
        }
    }

    /// The same client at another address, which a seed names.
    pub(super) fn at(&self, base: &str) -> Self {
        Self::new(self.client.clone(), base)
    }

    /// GET without judging the status.
    pub(super) fn ask(&self, path: &str, headers: Headers<'_>) -> Result<Answer, Failure> {
        self.send(Request::get(format!("{}{path}", self.base)), headers)
    }

    /// PUT without a body.
    pub(super) fn put(&self, path: &str, headers: Headers<'_>) -> Result<Answer, Failure> {
        self.send(Request::put(format!("{}{path}", self.base), b""), headers)
    }

    /// GET of something that must be there.
    pub(super) fn get(&self, path: &str, headers: Headers<'_>) -> Result<Vec<u8>, Failure> {
        succeeded(self.ask(path, headers)?)
    }

    /// GET of something that need not be there (404).
    pub(super) fn find(&self, path: &str, headers: Headers<'_>) -> Result<Option<Vec<u8>>, Failure> {
        let answer = self.ask(path, headers)?;
        if answer.status == 404 {
            return Ok(None);
        }
        succeeded(answer).map(Some)
    }

    fn send<'a>(&self, mut request: Request<'a>, headers: Headers<'a>) -> Result<Answer, Failure> {
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        self.client.send(&request).map_err(of)
    }
}

/// The body of an answer whose status is 2xx.
pub(super) fn succeeded(answer: Answer) -> Result<Vec<u8>, Failure> {
    Ok(answer.success().map_err(of)?.body)
}

/// Which cause a failed request to a metadata server has.
pub(super) fn of(error: HttpError) -> Failure {
    let cause = match &error.fault {
        Fault::Dns | Fault::Connect(_) | Fault::Timeout => Cause::MetadataUnreachable,
        Fault::Status(401 | 403) => Cause::MetadataDenied,
        Fault::Status(404) => Cause::MetadataMissing,
        Fault::TooLarge(_) => Cause::MetadataTooLarge,
        Fault::Tls(TlsFault::Expired | TlsFault::NotYetValid) => Cause::ClockWrong,
        Fault::Status(_) | Fault::Tls(_) | Fault::Broken(_) => Cause::MetadataBroken,
    };
    Failure::new(cause, error)
}

/// A short answer that is one line of text: an id, a name.
pub(super) fn text(bytes: &[u8], what: &str) -> Result<String, Failure> {
    let text = std::str::from_utf8(bytes).ok().map(str::trim);
    match text {
        Some(text) if !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control) => {
            Ok(text.to_owned())
        }
        _ => Err(broken(format!("{what} is not one line of text"))),
    }
}

/// A document in JSON. An error names the place, never the text there: the document may hold the user-data.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        broken(format!(
            "{what} is not the JSON that is expected: line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

/// A document in YAML, of which keys that kimage doesn't use may be anything.
pub(super) fn yaml<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(too_large(what));
    }
    serde_saphyr::from_slice(bytes).map_err(|_| broken(format!("{what} is not the YAML that is expected")))
}

/// The platform says what makes no sense.
pub(super) fn broken(message: String) -> Failure {
    Failure::because(Cause::MetadataBroken, message)
}

/// The platform has nothing to say.
pub(super) fn nothing(message: impl std::fmt::Display) -> Failure {
    Failure::because(Cause::NoMetadata, message)
}

/// The platform has too much to say.
pub(super) fn too_large(what: &str) -> Failure {
    Failure::because(
        Cause::MetadataTooLarge,
        format!("{what} has more than {MAX_DOCUMENT} bytes"),
    )
}
