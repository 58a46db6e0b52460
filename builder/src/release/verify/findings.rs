//! What a verification found, check by check.

use std::fmt::{self, Display, Write};

use anyhow::Result;
use serde::Serialize;

use crate::failure::{ExitCode, Failure};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The claim holds.
    Ok,
    /// It could not be checked, or it holds and still deserves a look.
    Warning,
    /// The release is not what was signed: a signature or the digest of a file is wrong.
    Mismatch,
    /// What was signed is not true.
    Contradiction,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked (`partition root-a`).
    pub check: String,
    /// How it ended.
    pub state: State,
    /// What was found.
    pub detail: String,
}

/// All checks in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    /// The checks.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// Adds something that deserves a look.
    pub fn warn(&mut self, check: &str, detail: impl Into<String>) {
        self.add(check, State::Warning, detail.into());
    }

    /// Takes the outcome of a check of the signed bytes.
    pub(super) fn signed<T>(&mut self, check: &str, outcome: Result<(T, String)>) -> Option<T> {
        self.take(check, State::Mismatch, outcome)
    }

    /// Takes the outcome of a check of what the signed bytes claim.
    pub fn claim<T>(&mut self, check: &str, outcome: Result<(T, String)>) -> Option<T> {
        self.take(check, State::Contradiction, outcome)
    }

    fn take<T>(&mut self, check: &str, failed: State, outcome: Result<(T, String)>) -> Option<T> {
        match outcome {
            Ok((value, detail)) => {
                self.add(check, State::Ok, detail);
                Some(value)
            }
            Err(error) => {
                self.add(check, failed, format!("{error:#}"));
                None
            }
        }
    }

    fn add(&mut self, check: &str, state: State, detail: String) {
        self.list.push(Finding {
            check: check.to_owned(),
            state,
            detail,
        });
    }

    /// Error when a check failed: exit code 5 when the bytes are not the signed ones, 7 when they are and what they
    /// claim is wrong.
    pub fn conclude(&self) -> Result<()> {
        let failed: Vec<&Finding> = self
            .list
            .iter()
            .filter(|finding| matches!(finding.state, State::Mismatch | State::Contradiction))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let mismatch = failed.iter().any(|finding| finding.state == State::Mismatch);
        let code = if mismatch {
            ExitCode::Mismatch
        } else {
            ExitCode::Verification
        };
        let names: Vec<&str> = failed.iter().map(|finding| finding.check.as_str()).collect();
        let message = format!(
            "{} of {} checks failed: {}",
            failed.len(),
            self.list.len(),
            names.join(", ")
        );
        Err(Failure::new(code, message).into())
    }
}

/// One line for each check.
impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.list {
            let mark = match finding.state {
                State::Ok => "ok  ",
                State::Warning => "WARN",
                State::Mismatch | State::Contradiction => "FAIL",
            };
            // A file name from outside must not forge a line.
            let mut line = String::new();
            write!(line, "{mark}  {}: {}", finding.check, finding.detail)?;
            let line: String = line
                .chars()
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect();
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// Error that names `field` when two values differ.
pub(super) fn same<T: PartialEq + Display>(field: &str, expected: T, found: T) -> Result<()> {
    anyhow::ensure!(expected == found, "{field} is {found}, expected {expected}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_mismatch_beats_a_contradiction() {
        let mut findings = Findings::default();
        findings.claim("one", Ok(((), "fine".to_owned())));
        findings.warn("two", "hm");
        findings.conclude().unwrap();
        findings.claim::<()>("three", Err(anyhow!("no\nok    all: forged")));
        let code = |findings: &Findings| crate::failure::exit_code(&findings.conclude().unwrap_err());
        assert_eq!(code(&findings), ExitCode::Verification);
        findings.signed::<()>("four", Err(anyhow!("no")));
        assert_eq!(code(&findings), ExitCode::Mismatch);
        assert_eq!(findings.to_string().lines().count(), 4);
    }
}
