//! A URL with what may be secret in it.

use std::fmt;

use super::url;

/// Where something may be had: a URL that may hold a user name with a password, or a token in its query
/// (`https://user:password@host/path?token=...`). Printed in any way it hides those; they go to the server and nowhere
/// else: not into messages, not into files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    /// All of it, for the request and for nothing else.
    pub(super) fn exposed(&self) -> &str {
        &self.0
    }

    /// A name for notes in files: the same for the same place, whatever the secrets.
    pub(super) fn place(&self) -> String {
        url::shown(&self.0)
    }

    /// Whether it names a file of this host.
    pub(super) fn is_file(&self) -> bool {
        url::is_file(&self.0)
    }

    /// Whether it holds a user name, with a password or without.
    pub fn has_credentials(&self) -> bool {
        url::basic_credentials(&self.0).is_some()
    }

    /// What `path` is below this one.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self(format!("{}/{path}", self.0.trim_end_matches('/')))
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl PartialEq<&str> for Address {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&url::shown(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&url::shown(&self.0), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_of_printing_shows_a_secret() {
        let address = Address::from("https://user:pass%77ord@h.example:8/a/b?token=abc#f");
        assert_eq!(address.to_string(), "https://****@h.example:8/a/b?****");
        assert_eq!(format!("{address:?}"), "\"https://****@h.example:8/a/b?****\"");
        assert_eq!(address.place(), address.to_string());
        assert_eq!(Address::from("http://h/a/").below("b").exposed(), "http://h/a/b");
        for odd in ["user:password@host", "x", "://user:password@h", "http://password"] {
            let shown = Address::from(odd).to_string();
            assert_eq!(shown.contains("password"), odd == "http://password", "{shown}");
        }
    }
}
