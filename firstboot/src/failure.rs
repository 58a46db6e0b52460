//! A failed step of first boot: the cause that is reported, and the error that says where and why.

use std::fmt;

use anyhow::Error;
use kimage_roles::cause::Cause;

/// Why a step failed. The message never holds a secret: it goes to the console.
#[derive(Debug)]
pub struct Failure {
    /// The code of the report.
    pub cause: Cause,
    /// What failed, where and why.
    pub error: Error,
}

impl Failure {
    /// A failure of a known cause.
    pub fn new(cause: Cause, error: impl Into<Error>) -> Self {
        Self {
            cause,
            error: error.into(),
        }
    }

    /// A failure of a known cause, in words.
    pub fn because(cause: Cause, message: impl fmt::Display) -> Self {
        Self {
            cause,
            error: Error::msg(message.to_string()),
        }
    }

    /// A fault in kimage itself, or in the machine below it.
    pub fn internal(error: impl Into<Error>) -> Self {
        Self::new(Cause::Internal, error)
    }

    /// The same failure, seen from one step further out.
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self {
            cause: self.cause,
            error: self.error.context(context.to_string()),
        }
    }

    /// The whole chain on one line: outermost first.
    pub fn message(&self) -> String {
        format!("{:#}", self.error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#}", self.cause, self.error)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

/// Gives errors of any kind a cause.
pub trait OrFailure<T> {
    /// An error becomes a failure of this cause.
    fn or_failure(self, cause: Cause) -> Result<T, Failure>;
}

impl<T, E: Into<Error>> OrFailure<T> for Result<T, E> {
    fn or_failure(self, cause: Cause) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(cause, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_code_and_the_whole_chain() {
        let failure = Failure::because(Cause::DnsFailed, "no such host").context("ask lb.example.com");
        assert_eq!(
            failure.to_string(),
            "dns-failed: ask lb.example.com: no such host"
        );
        assert_eq!(failure.message(), "ask lb.example.com: no such host");
    }
}
