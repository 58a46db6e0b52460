//! Errors for the person who must act: an exit code that scripts branch on and a hint that says what mends it.
//!
//! A stage returns `anyhow::Result`. Where the exit code or the remedy is known, the error carries a [`Failure`]
//! somewhere in its chain; `main` prints the chain as `error: outer: inner`, then `hint: ...`.

use std::fmt;
use std::io;

/// Exit codes of the `kimage` command: a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Something else went wrong.
    Failed = 1,
    /// The command line or a definition is wrong.
    Usage = 2,
    /// The lock is missing or stale.
    Lock = 3,
    /// An input could not be fetched.
    Fetch = 4,
    /// A digest or signature does not match.
    Mismatch = 5,
    /// This host does not allow the build sandbox.
    Sandbox = 6,
    /// `kimage verify` found a difference.
    Verification = 7,
}

/// An error with an exit code and, where there is one, the remedy.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: ExitCode,
    hint: Option<String>,
}

impl Failure {
    /// A failure that ends the program with `code`. The message is lower case, without a full stop, and names
    /// the object.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code,
            hint: None,
        }
    }

    /// Adds what the user can do, with the command where there is one.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code that the outermost [`Failure`] in the chain asks for.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    failures(error)
        .next()
        .map_or(ExitCode::Failed, |failure| failure.code)
}

/// The hints of the chain, outermost first. A chain without any that ends in what a disk answered has the hint that
/// always helps: who wrote to the file knows its path, but not why that was refused.
pub fn hints(error: &anyhow::Error) -> impl Iterator<Item = &str> {
    let mut given = failures(error)
        .filter_map(|failure| failure.hint.as_deref())
        .peekable();
    let usual = match given.peek() {
        Some(_) => None,
        None => error
            .chain()
            .filter_map(|link| link.downcast_ref::<io::Error>())
            .find_map(usual_hint),
    };
    given.chain(usual)
}

fn usual_hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space on that disk, or name folders on another one (--output DIR, --store DIR)")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Some("name folders that can be written to (--output DIR, --store DIR)")
        }
        _ => None,
    }
}

fn failures(error: &anyhow::Error) -> impl Iterator<Item = &Failure> {
    // A `Failure` attached with `.context(...)` is not itself a link of `chain()`, but `downcast_ref` finds it.
    let context = error.downcast_ref::<Failure>();
    let links = error.chain().filter_map(|link| link.downcast_ref::<Failure>());
    context
        .into_iter()
        .chain(links.filter(move |link| !context.is_some_and(|seen| std::ptr::eq(seen, *link))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_failure_is_found_wherever_it_stands_in_the_chain() {
        let inner = anyhow!(Failure::new(ExitCode::Fetch, "no answer").hint("use --mirror"));
        let error = inner.context("fetch package index");
        assert_eq!(exit_code(&error), ExitCode::Fetch);
        assert_eq!(hints(&error).collect::<Vec<_>>(), ["use --mirror"]);
        assert_eq!(format!("{error:#}"), "fetch package index: no answer");
    }

    #[test]
    fn a_failure_given_as_context_counts_once() {
        let result: Result<(), std::io::Error> = Err(std::io::Error::other("disk on fire"));
        let error = result
            .context(Failure::new(ExitCode::Mismatch, "read blob").hint("fetch again"))
            .unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::Mismatch);
        assert_eq!(hints(&error).count(), 1);
    }

    #[test]
    fn a_full_disk_has_a_remedy_wherever_it_shows() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = anyhow!(full())
            .context("copy root.squashfs")
            .context("write disk.raw");
        assert!(hints(&error).eq([
            "free some space on that disk, or name folders on another one (--output DIR, --store DIR)"
        ]));
        let known = anyhow!(full()).context(Failure::new(ExitCode::Failed, "store").hint("use another"));
        assert!(hints(&known).eq(["use another"]));
        assert_eq!(hints(&anyhow!("plain")).count(), 0);
    }

    #[test]
    fn an_ordinary_error_is_exit_code_one() {
        assert_eq!(exit_code(&anyhow!("plain")), ExitCode::Failed);
    }
}
