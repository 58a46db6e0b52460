//! Changes as they happen, one after the other, of which one at a time is in memory: what `T` keeps of it, while the
//! rest of its bytes goes by.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor};

use super::{Api, ApiError, segment};
use crate::http::Request;

/// The server ends a watch by itself after so long; who wants more watches again from where it ended.
const LIFE: Duration = Duration::from_secs(60);
/// Nothing comes for so long: the server is gone.
const PAUSE: Duration = Duration::from_secs(90);
/// Most that is read of one watch, in bytes.
const MAX_WATCH: u64 = 16 << 30;
/// Code of a Status: what the reader knows is older than what the server remembers.
const GONE: u16 = 410;

/// An object that knows its `metadata.resourceVersion`.
pub trait Versioned {
    /// The version.
    fn version(&self) -> &str;
}

/// How a watch ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Watched {
    /// Its time is over; the next one goes on at this resource version.
    Until(String),
    /// The server no longer knows what happened since: only a new list tells.
    TooOld,
    /// The reader has had enough.
    Enough,
}

impl Api {
    /// Hands every object at `path` that is made or changed to `each`, beginning behind `version`, until `each` answers
    /// `false` or about a minute is over.
    pub fn watch<T: DeserializeOwned + Versioned>(
        &self,
        path: &str,
        version: &str,
        mut each: impl FnMut(T) -> bool,
    ) -> Result<Watched, ApiError> {
        let mut version = version.to_owned();
        let url = self.url(&format!(
            "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            LIFE.as_secs(),
            segment(&version)
        ));
        let stream = self
            .client
            .stream(&self.request(Request::get(url)), PAUSE, MAX_WATCH);
        let stream = match stream.map_err(ApiError::from) {
            Err(error) if error.code() == Some(GONE) => return Ok(Watched::TooOld),
            stream => stream?,
        };
        for event in serde_json::Deserializer::from_reader(stream).into_iter::<Event<T>>() {
            match event.map_err(|error| self.broken(format!("a watch that can't be read: {error}")))? {
                Event::Is(object) => {
                    version = object.version().to_owned();
                    if !each(object) {
                        return Ok(Watched::Enough);
                    }
                }
                Event::Only(bookmark) => version = bookmark.metadata.resource_version,
                Event::Error(Status { code: GONE }) => return Ok(Watched::TooOld),
                Event::Error(Status { code }) => {
                    return Err(self.broken(format!("a watch that ended with error {code}")));
                }
            }
        }
        Ok(Watched::Until(version))
    }
}

/// `WatchEvent`.
enum Event<T> {
    /// `ADDED`, `MODIFIED`.
    Is(T),
    /// `DELETED`, `BOOKMARK`: of interest is the version only.
    Only(Bookmark),
    /// `ERROR`.
    Error(Status),
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Event<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for Fields<T> {
    type Value = Event<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    /// The type comes first: Go writes fields in the order of its struct.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event<T>, A::Error> {
        let (mut kind, mut event) = (String::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            match (key.as_str(), kind.as_str()) {
                ("type", _) => kind = map.next_value()?,
                ("object", "ADDED" | "MODIFIED") => event = Some(Event::Is(map.next_value()?)),
                ("object", "DELETED" | "BOOKMARK") => event = Some(Event::Only(map.next_value()?)),
                ("object", "ERROR") => event = Some(Event::Error(map.next_value()?)),
                ("object", other) => return Err(Error::custom(format!("an event of type `{other}`"))),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        event.ok_or_else(|| Error::missing_field("object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Trust;
    use crate::http::test_server::{Reply, Server};
    use crate::kubernetes::Caller;

    #[derive(Deserialize)]
    struct Thing {
        metadata: Metadata,
        #[serde(default)]
        name: String,
    }

    impl Versioned for Thing {
        fn version(&self) -> &str {
            &self.metadata.resource_version
        }
    }

    fn watched(body: &'static str) -> Result<(String, Watched), ApiError> {
        let server = Server::start(move |_| Reply::ok(body));
        let api = Api::new(&server.url(), Trust::System, Caller::Anonymous).unwrap();
        let mut names = String::new();
        let end = api.watch("/things", "3", |thing: Thing| {
            names.push_str(&thing.name);
            thing.name != "enough"
        })?;
        assert!(server.seen()[0].path.ends_with("&resourceVersion=3"));
        Ok((names, end))
    }

    #[test]
    fn what_happens_is_handed_on_and_the_last_version_is_where_the_next_watch_begins() {
        let body = r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"4"},"name":"a","more":{"x":[1]}}}
            {"type":"MODIFIED","object":{"metadata":{"resourceVersion":"5"},"name":"b"}}
            {"type":"DELETED","object":{"metadata":{"resourceVersion":"6"},"name":"c"}}
            {"type":"BOOKMARK","object":{"kind":"Thing","metadata":{"resourceVersion":"9"}}}"#;
        let expected = ("ab".to_owned(), Watched::Until("9".to_owned()));
        assert_eq!(watched(body).unwrap(), expected);
        assert_eq!(watched("").unwrap().1, Watched::Until("3".to_owned()));
    }

    #[test]
    fn a_watch_that_is_too_old_or_broken_says_so() {
        let old = r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"code":410}}"#;
        assert_eq!(watched(old).unwrap().1, Watched::TooOld);
        let enough = r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"4"},"name":"enough"}}"#;
        assert_eq!(watched(enough).unwrap().1, Watched::Enough);
        for broken in [
            r#"{"type":"ERROR","object":{"code":500}}"#,
            r#"{"type":"ADDED","object":{"metadata":{}}}"#,
            r#"{"type":"NEWS","object":{}}"#,
            r#"{"object":{}}"#,
            r#"{"type":"ADDED"}"#,
            r#"{"type":"ADDED","#,
        ] {
            assert!(watched(broken).is_err(), "{broken}");
        }
    }
}
