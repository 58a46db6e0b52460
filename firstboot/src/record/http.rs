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
        self.client
            .send(&request)
            .map_err(|error| Failure::new(Cause::EtcdForming, error))
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

/// A store in a test's server: conditional PUTs as RFC 9110 and S3 have them.
#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::super::tests::{contract, record};
    use super::*;
    use crate::http::Settings;
    use crate::http::test_server::{Reply, Seen, Server};

    /// Keeps one resource; `compares` or takes every write.
    pub(in super::super) fn store(compares: bool) -> Server {
        let kept: Mutex<(u64, Option<Vec<u8>>)> = Mutex::new((0, None));
        Server::start(move |seen: &Seen| {
            let mut kept = kept.lock().unwrap();
            let tag = format!("\"{}\"", kept.0);
            let Some(body) = (seen.method == "PUT").then(|| seen.body.clone()) else {
                return match &kept.1 {
                    Some(body) => Reply::Answer(200, vec![("ETag".to_owned(), tag)], body.clone()),
                    None => Reply::status(404),
                };
            };
            let absent = seen
                .header("if-none-match")
                .is_some_and(|value| value == "*" && kept.1.is_some());
            let other = seen
                .header("if-match")
                .is_some_and(|value| value != tag || kept.1.is_none());
            if compares && (absent || other) {
                return Reply::status(412);
            }
            *kept = (kept.0 + 1, Some(body));
            Reply::status(201)
        })
    }

    fn resource(server: &Server) -> HttpResource {
        HttpResource {
            client: Client::new(&Settings::default()).unwrap(),
            url: format!("http://{}/record", server.address),
            token: Some(Secret::new("hush")),
        }
    }

    #[test]
    fn a_web_server_keeps_the_contract() {
        contract(&resource(&store(true)));
    }

    #[test]
    fn a_web_server_that_ignores_conditions_shows_it() {
        let server = store(false);
        let resource = resource(&server);
        assert_eq!(resource.create(&record(1)).unwrap(), Written::Done);
        assert_eq!(resource.create(&record(1)).unwrap(), Written::Done);
    }

    #[test]
    fn an_answer_that_says_nothing_is_no_absence() {
        for status in [204, 301, 401, 403, 500, 503] {
            let server = Server::start(move |_| Reply::status(status));
            assert_eq!(resource(&server).get().unwrap_err().cause, Cause::EtcdForming);
        }
        // No strong ETag: nothing to compare with.
        for headers in [vec![], vec![("ETag".to_owned(), "W/\"1\"".to_owned())]] {
            let server = Server::start(move |_| Reply::Answer(200, headers.clone(), b"{}".to_vec()));
            assert!(
                resource(&server)
                    .get()
                    .unwrap_err()
                    .to_string()
                    .contains("no strong ETag")
            );
        }
    }
}
