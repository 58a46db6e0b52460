//! One TOML file of a definition: read with a bound, refused with file and line.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use super::suggestion;
use crate::failure::{ExitCode, Failure};

/// No definition is anywhere near so long.
const MAX_BYTES: u64 = 1 << 20;

/// A file's text and the name that errors call it by.
pub(super) struct TomlFile {
    /// The path below the workspace: `images/x/image.toml`.
    name: String,
    text: String,
}

impl TomlFile {
    /// Reads the file at `path`; errors show its last three parts.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = last_parts(path, 3).display().to_string();
        let mut text = String::new();
        let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        read.with_context(|| Failure::new(ExitCode::Usage, format!("read {}", path.display())))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(
                Failure::new(ExitCode::Usage, format!("{name}: longer than {MAX_BYTES} bytes")).into(),
            );
        }
        Ok(Self { name, text })
    }

    /// The parsed content.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(&self.text).map_err(|error| self.located(&error).into())
    }

    /// Refuses `what` at the line that first holds `value` as a TOML string or a bare word.
    pub(super) fn refuse_at(&self, value: &str, what: impl std::fmt::Display) -> Failure {
        let quoted = [format!("\"{value}\""), format!("'{value}'"), value.to_owned()];
        let place = quoted
            .iter()
            .find_map(|value| self.text.find(value.as_str()))
            .unwrap_or(0);
        self.refuse(place, what)
    }

    /// Refuses a `name` that is not among `names`, all of which the hint lists.
    pub(super) fn known(&self, kind: &str, name: &str, names: &[String]) -> Result<()> {
        if names.iter().any(|known| known == name) {
            return Ok(());
        }
        let failure = self.refuse_at(name, format!("unknown {kind} `{name}`"));
        Err(failure
            .hint(suggestion::listing(&format!("{kind}s:"), name, names))
            .into())
    }

    fn refuse(&self, place: usize, what: impl std::fmt::Display) -> Failure {
        let before = &self.text.as_bytes()[..place.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Failure::new(ExitCode::Usage, format!("{}:{line}: {what}", self.name))
    }

    /// serde says "unknown field `x`, expected one of `a`, `b`": the list of keys belongs into the hint.
    fn located(&self, error: &toml::de::Error) -> Failure {
        let place = error.span().map_or(0, |span| span.start);
        let message = error.message().trim_end();
        let Some(rest) = message.strip_prefix("unknown field `") else {
            return self.refuse(place, message);
        };
        let (key, expected) = rest.split_once('`').unwrap_or((rest, ""));
        let failure = self.refuse(place, format!("unknown key `{key}`"));
        let keys: Vec<String> = expected
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        failure.hint(suggestion::listing("keys here:", key, &keys))
    }
}

fn last_parts(path: &Path, count: usize) -> PathBuf {
    let parts: Vec<_> = path.components().collect();
    parts[parts.len().saturating_sub(count)..].iter().collect()
}
