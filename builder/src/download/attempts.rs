//! What was tried for one input and what came of it.

use std::fmt;
use std::time::Duration;

use super::Address;
use crate::digest::Digest;

/// Why one try of one URL failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// May go away: no answer, a stall, a server error. The server may say when to come again.
    Passing(String, Option<Duration>),
    /// Will not go away: not found, refused.
    Lasting(String),
    /// These are not the bytes that were asked for.
    Mismatch(String, Option<Digest>),
    /// This host can't take the bytes: disk full, store not writable.
    Local(anyhow::Error),
    /// The whole fetch is being given up.
    Stopped,
}

/// All URLs of one input, with what happened.
pub(super) struct Attempts<'a> {
    list: Vec<Attempt<'a>>,
}

struct Attempt<'a> {
    url: &'a Address,
    tries: u32,
    /// What went wrong last.
    why: Option<String>,
    /// Trying again is of no use.
    over: bool,
    mismatch: bool,
    come_again: Option<Duration>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(urls: &'a [Address]) -> Self {
        let attempt = |url| Attempt {
            url,
            tries: 0,
            why: None,
            over: false,
            mismatch: false,
            come_again: None,
        };
        Self {
            list: urls.iter().map(attempt).collect(),
        }
    }

    /// The URLs worth a try.
    pub(super) fn live(&self) -> Vec<&'a Address> {
        self.list
            .iter()
            .filter(|attempt| !attempt.over)
            .map(|attempt| attempt.url)
            .collect()
    }

    /// Notes a failed try; hands back what concerns more than this URL.
    pub(super) fn record(&mut self, url: &Address, trouble: Trouble) -> Result<(), Trouble> {
        let Some(attempt) = self.list.iter_mut().find(|attempt| attempt.url == url) else {
            return Ok(());
        };
        attempt.tries += 1;
        attempt.come_again = None;
        match trouble {
            Trouble::Passing(why, come_again) => {
                attempt.why = Some(why);
                attempt.come_again = come_again;
            }
            Trouble::Lasting(why) => {
                attempt.why = Some(why);
                attempt.over = true;
            }
            Trouble::Mismatch(why, found) => {
                attempt.why = Some(match found {
                    Some(found) => format!("{why}, found {found}"),
                    None => why,
                });
                attempt.over = true;
                attempt.mismatch = true;
            }
            Trouble::Local(_) | Trouble::Stopped => return Err(trouble),
        }
        Ok(())
    }

    /// The longest wait that a server asked for.
    pub(super) fn come_again(&self) -> Option<Duration> {
        self.list
            .iter()
            .filter(|attempt| !attempt.over)
            .filter_map(|attempt| attempt.come_again)
            .max()
    }

    /// Some URL had other bytes than asked for.
    pub(super) fn any_mismatch(&self) -> bool {
        self.list.iter().any(|attempt| attempt.mismatch)
    }
}

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for attempt in &self.list {
            let why = attempt.why.as_deref().unwrap_or("not tried");
            write!(f, "\n    {}: {why}", attempt.url)?;
            if attempt.tries > 1 {
                write!(f, " (tried {} times)", attempt.tries)?;
            }
        }
        Ok(())
    }
}
