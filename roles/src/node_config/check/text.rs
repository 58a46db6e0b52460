//! Forms of single values.

use crate::node_config::Endpoint;

/// Whether this is a bootstrap token: `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn is_token(text: &str) -> bool {
    let plain = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.split_once('.')
        .is_some_and(|(id, secret)| id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret))
}

/// Whether this is a URL that a machine can ask: http or https, a host, no user, no blank, no fragment.
pub fn is_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest.filter(|_| is_plain(text, 4096)) else {
        return false;
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let has_port = !authority.ends_with(']') && authority.contains(':');
    let endpoint = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:443")
    };
    endpoint.parse::<Endpoint>().is_ok() && !text.contains('#')
}

/// Whether this is 1 to `longest` visible ASCII characters without blanks.
pub(super) fn is_plain(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_recognised() {
        assert!(is_token("abcdef.0123456789abcdef"));
        for bad in [
            "",
            "abcdef",
            "abcdef.",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "abcdef.0123456789abcdef.",
            "äbcde.0123456789abcdef",
        ] {
            assert!(!is_token(bad), "{bad}");
        }
        for good in [
            "https://s3.eu-central-1.amazonaws.com",
            "http://10.0.0.5:9000/a?b=c",
            "https://[fd00::5]:2379",
            "https://[fd00::5]/x",
        ] {
            assert!(is_url(good), "{good}");
        }
        for bad in [
            "",
            "https://",
            "ftp://x",
            "https://user:pw@host/",
            "https://a b",
            "https://host:0",
            "https://host#x",
            "HTTPS://host",
            "https://host:99999",
        ] {
            assert!(!is_url(bad), "{bad}");
        }
    }
}
