//! The record as a resource of a web server that honours `If-None-Match: *` and `If-Match` (RFC 9110 section 13.1) and
//! gives strong ETags.

use kimage_roles::cause::Cause;
use kimage_roles::secret::Secret;

use super::{Record, RecordStore, Version, Written, broken, bytes_of, parse};
use crate::failure::Failure;
use crate::http::{Answer, Client, Request};

/// A record on a web server.
pub struct HttpResource {
    /// Trusts the server.
    pub client: Client,
    /// Where the record is.
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret>,
}

impl HttpResource {
    fn send(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let request = match &self.token {
            Some(token) => request.bearer(token),
            None => request,
        };
        self.client.send(&request).map_err(|error| Failure::new(Cause::EtcdForming, error))
    }

    fn put(&self, condition: &str, value: &str, record: &Record) -> Result<Written, Failure> {
        let body = bytes_of(record)?;
        let request = Request::put(self.url.as_str(), &body)
            .header("content-type", "application/json")
            .header(condition, value);
        written(&self.send(request)?, &self.url)
    }
}

/// What the status of a conditional PUT says.
pub(super) fn written(answer: &Answer, place: &str) -> Result<Written, Failure> {
    match answer.status {
        200 | 201 | 204 => Ok(Written::Done),
        // 404: `If-Match` on what isn't there; 409: another write at the same moment came first.
        404 | 409 | 412 => Ok(Written::Conflict),
        status => Err(broken(format!("{place} answers a write with status {status}"))),
    }
}

/// The record in a successful answer and its version.
pub(super) fn read(answer: &Answer, place: &str) -> Result<(Record, Version), Failure> {
    let tag = answer.header("etag").filter(|tag| !tag.starts_with("W/"));
    let tag = tag.ok_or_else(|| broken(format!("{place} gives no strong ETag")))?;
    Ok((parse(&answer.body, place)?, Version(tag.to_owned())))
}

impl RecordStore for HttpResource {
    fn get(&self) -> Result<Option<(Record, Version)>, Failure> {
        let answer = self.send(Request::get(self.url.as_str()).header("cache-control", "no-cache"))?;
        match answer.status {
            200 => read(&answer, &self.url).map(Some),
            404 => Ok(None),
            status => Err(broken(format!("{} answers with status {status}", self.url))),
        }
    }

    fn create(&self, record: &Record) -> Result<Written, Failure> {
        self.put("if-none-match", "*", record)
    }

    fn replace(&self, version: &Version, record: &Record) -> Result<Written, Failure> {
        self.put("if-match", &version.0, record)
    }
}
