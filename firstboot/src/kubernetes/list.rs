//! Lists that anybody may have made long. They come page by page, and of each page one object at a time is in memory:
//! what `T` keeps of it, while the rest of its bytes goes by.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Api, ApiError, segment};
use crate::http::{Fault, HttpError, Request};

/// Objects of one page.
const PAGE: usize = 100;
/// Largest page that is read, in bytes: so many objects of the largest size that etcd takes (1.5 MiB), as JSON, which
/// may write a byte in six.
const MAX_PAGE: u64 = 1 << 30;
/// Longest pause within a page.
const PAUSE: Duration = Duration::from_secs(30);
/// A list that has more pages never ends.
const MAX_PAGES: usize = 10_000;

impl Api {
    /// Hands every object at `path` to `each` and returns the list's resource version, from which
    /// [`Api::watch`] goes on. `query` (`labelSelector=...`) may be empty.
    ///
    /// # Errors
    ///
    /// Those of the API: a `410` when the list has grown too old between two of its pages. And what `each` answers,
    /// which ends the list.
    pub fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
        mut each: impl FnMut(T) -> Result<(), ApiError>,
    ) -> Result<String, ApiError> {
        let mut next = String::new();
        for _ in 0..MAX_PAGES {
            let url = format!("{path}?limit={PAGE}&continue={}&{query}", segment(&next));
            let page = self.page(&url, &mut each)?;
            if page.next.is_empty() {
                return Ok(page.resource_version);
            }
            next = page.next;
        }
        Err(self.broken(format!("{path}: more than {MAX_PAGES} pages")))
    }

    fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        each: &mut dyn FnMut(T) -> Result<(), ApiError>,
    ) -> Result<Metadata, ApiError> {
        let request = self.request(Request::get(self.url(path)));
        let stream = self.client.stream(&request, PAUSE, MAX_PAGE)?;
        let mut reader = serde_json::Deserializer::from_reader(stream);
        let mut ended = None;
        let page = Page {
            each,
            ended: &mut ended,
            object: PhantomData,
        };
        let read = page.deserialize(&mut reader);
        match (ended, read) {
            (Some(error), _) => Err(error),
            (None, Ok(metadata)) => Ok(metadata),
            (None, Err(error)) => Err(self.broken(format!("a list that can't be read: {error}"))),
        }
    }

    /// An answer that makes no sense.
    pub(crate) fn broken(&self, what: String) -> ApiError {
        ApiError::Http(HttpError {
            url: self.server.clone(),
            fault: Fault::Broken(what),
        })
    }
}

/// `ListMeta`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// A page, whose objects go to `each` while it is read.
struct Page<'a, T> {
    each: &'a mut dyn FnMut(T) -> Result<(), ApiError>,
    /// What `each` answered that ended the list.
    ended: &'a mut Option<ApiError>,
    object: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Page<'_, T> {
    type Value = Metadata;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Metadata, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Page<'_, T> {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of the Kubernetes API")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Metadata, A::Error> {
        let mut metadata = Metadata::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => metadata = map.next_value()?,
                "items" => map.next_value_seed(Items(&mut self))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(metadata)
    }
}

struct Items<'a, 'b, T>(&'a mut Page<'b, T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Items<'_, '_, T> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Items<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the objects of a list")
    }

    /// Go writes an empty list of objects so, too.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<T>()? {
            if let Err(error) = (self.0.each)(item) {
                *self.0.ended = Some(error);
                return Err(serde::de::Error::custom("the reader has had enough"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::Trust;
    use crate::http::test_server::{Reply, Server};
    use crate::kubernetes::Caller;

    #[derive(Deserialize)]
    struct Named {
        metadata: Name,
    }

    #[derive(Deserialize)]
    struct Name {
        name: String,
    }

    fn names(server: &Server) -> Result<(Vec<String>, String), ApiError> {
        let api = Api::new(&server.url(), Trust::System, Caller::Anonymous).unwrap();
        let mut names = Vec::new();
        let version = api.list("/things", "a=b", |named: Named| {
            names.push(named.metadata.name);
            Ok(())
        })?;
        Ok((names, version))
    }

    #[test]
    fn pages_are_read_one_after_the_other_and_what_is_not_asked_for_goes_by() {
        let server = Server::start(|seen| {
            let (names, next) = match seen.path.contains("continue=next%2Fpage%3D") {
                false => (["a", "b"], "next/page="),
                true => (["c", "d"], ""),
            };
            let items = names.map(|name| json!({"metadata": {"name": name}, "spec": "x".repeat(100_000)}));
            let metadata = json!({"resourceVersion": "7", "continue": next});
            Reply::ok(json!({"kind": "List", "items": items, "metadata": metadata}).to_string())
        });
        let (found, version) = names(&server).unwrap();
        assert_eq!((found.join(""), version.as_str()), ("abcd".to_owned(), "7"));
        assert!(
            server.seen()[0]
                .path
                .starts_with("/things?limit=100&continue=&a=b")
        );
    }

    #[test]
    fn an_empty_list_a_refusal_and_a_list_that_makes_no_sense_are_told_apart() {
        let empty = Server::start(|_| Reply::ok(r#"{"metadata":{"resourceVersion":"1"},"items":null}"#));
        assert_eq!(names(&empty).unwrap(), (vec![], "1".to_owned()));
        let gone = Server::start(|_| Reply::status(410));
        assert_eq!(names(&gone).unwrap_err().code(), Some(410));
        let broken = Server::start(|_| Reply::ok(r#"{"items":[{"metadata":{}}]}"#));
        assert_eq!(names(&broken).unwrap_err().code(), None);
    }
}
