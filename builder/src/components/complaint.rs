//! What a compiler says when it fails, with the exit code that it deserves.

use crate::failure::{ExitCode, Failure};
use crate::tool::tail;

/// One reason to fail, known by words that the tool prints.
pub(super) struct Cause<'a> {
    /// Any of these tells it.
    pub(super) phrases: &'a [&'a str],
    /// What kimage ends with.
    pub(super) code: ExitCode,
    /// What the user can do.
    pub(super) hint: &'a str,
}

/// The failure of `what`: the end of what `tool` printed, with the first of `causes` that it names.
pub(super) fn explain(what: &str, tool: &str, stderr: &str, causes: &[Cause<'_>]) -> anyhow::Error {
    let message = format!("{what}: {tool} says\n{}", tail(stderr.as_bytes()));
    let told = |cause: &&Cause<'_>| cause.phrases.iter().any(|phrase| stderr.contains(phrase));
    match causes.iter().find(told) {
        Some(cause) => Failure::new(cause.code, message).hint(cause.hint).into(),
        None => Failure::new(ExitCode::Failed, message).into(),
    }
}
