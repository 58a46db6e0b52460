//! As much of URLs (RFC 3986) as fetching needs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Whether the URL names a file of this host.
pub(super) fn is_file(url: &str) -> bool {
    scheme(url).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file"))
}

/// What stands before `:`.
pub(super) fn scheme(url: &str) -> Option<&str> {
    Some(url.split_once("://")?.0)
}

/// `host:port` as written, without user name and password.
pub(super) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// What stands behind the authority: empty, `/path`, `?query` or both.
pub(super) fn path_and_query(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#']).map_or("", |start| &rest[start..])
}

/// The host without the port, without the brackets of an IPv6 address.
pub(super) fn host(url: &str) -> &str {
    let authority = authority(url);
    if let Some(bracketed) = authority.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or(bracketed);
    }
    authority.split(':').next().unwrap_or(authority)
}

/// The URL for messages: no user name with a password, and nothing of a query, which may hold a token.
pub(super) fn shown(url: &str) -> String {
    let (scheme, rest) = url
        .split_once("://")
        .map_or(("", url), |(scheme, rest)| (scheme, rest));
    let separator = &url[scheme.len()..url.len() - rest.len()];
    let (written, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = match written.rsplit_once('@') {
        Some((_, host)) => format!("****@{host}"),
        None => written.to_owned(),
    };
    let (path, secret) = behind.split_at(behind.find(['?', '#']).unwrap_or(behind.len()));
    let query = if secret.starts_with('?') { "?****" } else { "" };
    format!("{scheme}{separator}{authority}{path}{query}")
}

/// `Basic ...` for the user name and password in the URL (RFC 7617).
pub(super) fn basic_credentials(url: &str) -> Option<String> {
    use base64::Engine;
    let (_, rest) = url.split_once("://")?;
    let (credentials, _) = rest.split(['/', '?', '#']).next()?.rsplit_once('@')?;
    let decoded = percent_decoded(credentials).ok()?;
    Some(format!(
        "Basic {}",
        base64::prelude::BASE64_STANDARD.encode(decoded)
    ))
}

/// The URL as it goes to the server.
pub(super) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    format!("{scheme}://{}{}", authority(url), &rest[authority_length..])
}

/// The path of a `file` URL (RFC 8089): `file:///path` or `file://localhost/path`.
pub(super) fn file_path(url: &str) -> Result<PathBuf, String> {
    let (_, rest) = url.split_once("://").ok_or("not a URL")?;
    let path = rest
        .strip_prefix("localhost")
        .filter(|path| path.starts_with('/'))
        .unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("a file URL has three slashes: file:///path".to_owned());
    }
    let decoded = percent_decoded(path)?;
    if decoded.contains(&0) {
        return Err("holds a NUL byte".to_owned());
    }
    Ok(PathBuf::from(OsString::from_vec(decoded)))
}

fn percent_decoded(text: &str) -> Result<Vec<u8>, String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|_| byte == b'%');
        match escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(crate::digest::unhex)
        {
            Some(value) => {
                decoded.extend(value);
                rest = &tail[2..];
            }
            None if byte == b'%' => return Err("`%` without two hexadecimal digits".to_owned()),
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    Ok(decoded)
}

/// Where a redirect from `base` to `location` leads (RFC 3986 section 5.2, without dot segments).
pub(super) fn join(base: &str, location: &str) -> String {
    if location
        .split(['/', '?', '#'])
        .next()
        .is_some_and(|first| first.contains(':'))
    {
        return location.to_owned();
    }
    let scheme_length = scheme(base).map_or(0, |scheme| scheme.len() + 3);
    if location.starts_with("//") {
        return format!("{}{}", &base[..scheme_length.saturating_sub(2)], location);
    }
    let base = base.split(['?', '#']).next().unwrap_or(base);
    let path = base[scheme_length..]
        .find('/')
        .map_or(base.len(), |slash| scheme_length + slash);
    if location.starts_with('/') {
        return format!("{}{location}", &base[..path]);
    }
    match base[path..].rfind('/') {
        Some(slash) => format!("{}{location}", &base[..=path + slash]),
        None => format!("{base}/{location}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_urls() {
        assert_eq!(host("http://u:p@[::1]:80/x"), "::1");
        assert_eq!(host("https://example.com:8443/x@y"), "example.com");
        assert_eq!(authority("http://example.com?x"), "example.com");
        assert!(is_file("FILE:///x") && !is_file("http://file:///"));
    }

    #[test]
    fn messages_hold_no_password() {
        assert_eq!(
            shown("https://user:secret@example.com/a@b"),
            "https://****@example.com/a@b"
        );
        assert_eq!(shown("https://example.com/a@b"), "https://example.com/a@b");
    }

    #[test]
    fn credentials_go_into_a_header() {
        // RFC 7617 section 2.
        let url = "http://Aladdin:open%20sesame@example.com:81/x?y";
        assert_eq!(
            basic_credentials(url).unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(without_credentials(url), "http://example.com:81/x?y");
        assert_eq!(without_credentials("http://example.com"), "http://example.com");
        assert_eq!(basic_credentials("http://example.com/a@b"), None);
    }

    #[test]
    fn file_urls_are_decoded_and_checked() {
        assert_eq!(file_path("file:///a%20b/c").unwrap(), PathBuf::from("/a b/c"));
        assert_eq!(file_path("file://localhost/a").unwrap(), PathBuf::from("/a"));
        for bad in [
            "file://a",
            "file://host/a",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%00",
        ] {
            assert!(file_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let base = "http://a:1/b/c?q";
        for (location, wanted) in [
            ("https://x/y", "https://x/y"),
            ("//x/y", "http://x/y"),
            ("/x", "http://a:1/x"),
            ("x/y:z", "http://a:1/b/x/y:z"),
        ] {
            assert_eq!(join(base, location), wanted);
        }
        assert_eq!(join("http://a", "x"), "http://a/x");
        assert_eq!(join("http://a", "/x"), "http://a/x");
    }
}
