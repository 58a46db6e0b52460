//! Bootstrap tokens: what machines join a cluster with.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use kimage_roles::node_config::BootstrapToken;
use kimage_roles::secret::Secret;

use super::random;
use crate::failure::{ExitCode, Failure};

/// Letters of bootstrap tokens.
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// How long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLife {
    /// Until it is deleted.
    Endless,
    /// It has an end to come.
    Limited,
    /// It has ended.
    Over,
}

/// How long `token` lives, seen at `now`.
pub fn token_life(token: &BootstrapToken, now: SystemTime) -> Result<TokenLife> {
    let Some(expires) = &token.expires else {
        return Ok(TokenLife::Endless);
    };
    let end: jiff::Timestamp = expires.parse().map_err(|_| {
        let message = format!("bootstrap-tokens.json: `{expires}` is no time of RFC 3339");
        Failure::new(ExitCode::Usage, message).hint("write it as 2027-01-31T12:00:00Z")
    })?;
    Ok(if SystemTime::from(end) > now {
        TokenLife::Limited
    } else {
        TokenLife::Over
    })
}

/// A token of kubeadm's form, every letter equally likely.
pub(super) fn new() -> Result<Secret> {
    let mut letters = Vec::new();
    while letters.len() < 22 {
        let mut bytes = [0; 64];
        random(&mut bytes)?;
        // 252 is the largest multiple of 36 in a byte.
        let fair = bytes.iter().filter(|byte| **byte < 252);
        letters.extend(fair.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])));
    }
    let text = |letters: &[char]| letters.iter().collect::<String>();
    Ok(Secret::new(format!(
        "{}.{}",
        text(&letters[..6]),
        text(&letters[6..22])
    )))
}

/// RFC 3339, whole seconds.
pub(super) fn expiry(now: SystemTime, lifetime: Duration) -> Result<String> {
    let moment = now
        .checked_add(lifetime)
        .context("the token's lifetime is too long")?;
    let since = moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    let seconds = i64::try_from(since.as_secs()).context("the token's lifetime is too long")?;
    let time = jiff::Timestamp::from_second(seconds).context("the token's lifetime is too long")?;
    Ok(time.to_string())
}

#[cfg(test)]
mod tests {
    use kimage_roles::node_config::is_token;

    use super::*;

    #[test]
    fn tokens_have_kubeadms_form_and_differ() {
        let tokens: Vec<Secret> = (0..50).map(|_| new().unwrap()).collect();
        assert!(tokens.iter().all(|token| is_token(token.reveal())));
        assert!(tokens[1..].iter().all(|token| token != &tokens[0]));
    }

    #[test]
    fn an_expiry_is_rfc_3339() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        assert_eq!(
            expiry(now, Duration::from_secs(86_400)).unwrap(),
            "2026-11-19T11:06:40Z"
        );
        assert!(expiry(now, Duration::MAX).is_err());
    }

    #[test]
    fn a_token_lives_until_the_moment_it_names() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let life = |expires: Option<&str>| {
            let token = BootstrapToken {
                token: new().unwrap(),
                expires: expires.map(str::to_owned),
            };
            token_life(&token, now)
        };
        assert_eq!(life(None).unwrap(), TokenLife::Endless);
        assert_eq!(life(Some("2026-11-18T11:06:41Z")).unwrap(), TokenLife::Limited);
        assert_eq!(life(Some("2026-11-18T11:06:40Z")).unwrap(), TokenLife::Over);
        for wrong in ["", "soon", "2026-11-18"] {
            assert!(life(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
