//! How old an archive's word is. A signature never ages: whoever stands between us and the archive can show last
//! year's state for ever, with all its holes. Debian's pockets say until when they hold (`Valid-Until`); Ubuntu's say
//! nothing, so the definition says how old each suite may be (`max-age-days`). A release pocket itself (`noble`) is
//! signed once and never again: it has no limit, the pockets that bring its updates have.

use std::fmt;

use anyhow::Result;
use jiff::Timestamp;

use super::suites::Snapshot;
use crate::definition::Image;
use crate::failure::{ExitCode, Failure};

const DAY: i64 = 86_400;

/// The age of one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    /// The suite's name.
    pub suite: String,
    /// When the archive signed it.
    pub signed: Timestamp,
    /// Whole days since then.
    pub days: u64,
    /// Days that the definition allows.
    pub limit: Option<u32>,
    /// Until when it holds, where the archive says it.
    pub valid_until: Option<Timestamp>,
}

impl Age {
    fn is_too_old(&self) -> bool {
        self.limit.is_some_and(|limit| self.days > u64::from(limit))
    }
}

/// `suite noble-updates was signed on 2026-11-20, 10 days ago (30 are allowed)`.
impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |time: Timestamp| time.to_string().chars().take(10).collect::<String>();
        let Self { suite, days, .. } = self;
        write!(
            f,
            "suite {suite} was signed on {}, {days} days ago",
            day(self.signed)
        )?;
        match (self.limit, self.valid_until) {
            (Some(limit), _) => write!(f, " ({limit} are allowed)"),
            (None, Some(until)) => write!(f, " (it holds until {})", day(until)),
            (None, None) => f.write_str(" (neither archive nor definition says how old it may be)"),
        }
    }
}

/// The ages of all suites of `image`, by the clock `now`.
pub fn ages(image: &Image, snapshot: &Snapshot, now: Timestamp) -> Vec<Age> {
    let suites = snapshot.suites.iter().zip(&image.manifest.archive.suites);
    let age = suites.map(|(state, suite)| {
        let seconds = now.as_second().saturating_sub(state.release.date.as_second());
        Age {
            suite: state.name.clone(),
            signed: state.release.date,
            days: u64::try_from(seconds / DAY).unwrap_or(0),
            limit: suite.max_age_days,
            valid_until: state.release.valid_until,
        }
    });
    age.collect()
}

/// # Errors
/// [`ExitCode::Mismatch`] when a suite is older than the definition allows.
pub fn refuse_frozen(ages: &[Age]) -> Result<()> {
    let Some(age) = ages.iter().find(|age| age.is_too_old()) else {
        return Ok(());
    };
    let hint = "the mirror is behind, or somebody hides updates: choose another one with --mirror URL; where the archive \
                really says nothing new, raise `max-age-days` in image.toml or run `kimage lock --update --allow-old`";
    Err(Failure::new(ExitCode::Mismatch, age.to_string())
        .hint(hint)
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(days: u64, limit: Option<u32>) -> Age {
        Age {
            suite: "noble-updates".to_owned(),
            signed: "2026-11-20T02:27:59Z".parse().unwrap(),
            days,
            limit,
            valid_until: None,
        }
    }

    #[test]
    fn an_age_is_refused_past_its_limit_and_not_before() {
        assert!(refuse_frozen(&[age(30, Some(30)), age(9999, None)]).is_ok());
        let error = refuse_frozen(&[age(1, Some(30)), age(31, Some(30))]).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Mismatch);
        assert_eq!(
            error.to_string(),
            "suite noble-updates was signed on 2026-11-20, 31 days ago (30 are allowed)"
        );
        assert_eq!(crate::failure::hints(&error).count(), 1);
    }

    #[test]
    fn what_limits_nothing_is_said() {
        assert!(
            age(3, None)
                .to_string()
                .ends_with("(neither archive nor definition says how old it may be)")
        );
        let until = Age {
            valid_until: Some("2026-11-27T00:00:00Z".parse().unwrap()),
            ..age(3, None)
        };
        assert!(
            until.to_string().ends_with("(it holds until 2026-11-27)"),
            "{until}"
        );
    }
}
