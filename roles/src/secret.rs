//! A value that must not be seen: it prints as `****`, and only code that asks for it by name gets it.

use serde::{Deserialize, Serialize};

/// A secret text. `Debug` and `Display` print `****`; serialising writes the value, since that is how a file is made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a value that is to stay unseen.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself. Who calls this answers for where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("****")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("****")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_shows_nothing() {
        let secret = Secret::new("abcdef.0123456789abcdef");
        assert_eq!(format!("{secret} {secret:?}"), "**** ****");
        assert_eq!(secret.reveal(), "abcdef.0123456789abcdef");
    }
}
