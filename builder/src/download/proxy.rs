//! Proxies as `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` name them.

use std::net::IpAddr;

use super::url;

/// The way out for each scheme, and the hosts that are reached without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<String>,
    https: Option<String>,
    exceptions: Vec<String>,
}

impl Proxies {
    /// No proxy.
    pub fn none() -> Self {
        Self::default()
    }

    /// What this process's environment says.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// What the variables that `lookup` knows say. The lower-case name wins, as with curl and apt.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let either = |lower: &str| {
            let value = lookup(lower).or_else(|| lookup(&lower.to_ascii_uppercase()))?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let with_scheme = |value: String| {
            if value.contains("://") {
                value
            } else {
                format!("http://{value}")
            }
        };
        let proxy = |name| either(name).or_else(|| either("all_proxy")).map(with_scheme);
        let exceptions = either("no_proxy").unwrap_or_default();
        let exceptions = exceptions
            .split([',', ' '])
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        Self {
            http: proxy("http_proxy"),
            https: proxy("https_proxy"),
            exceptions: exceptions.map(str::to_ascii_lowercase).collect(),
        }
    }

    /// The proxy for `url`, if it is not reached directly.
    pub(super) fn for_url(&self, url: &str) -> Option<&str> {
        let proxy = match url::scheme(url)?.to_ascii_lowercase().as_str() {
            "http" => self.http.as_deref()?,
            "https" => self.https.as_deref()?,
            _ => return None,
        };
        let (host, authority) = (
            url::host(url).to_ascii_lowercase(),
            url::authority(url).to_ascii_lowercase(),
        );
        let direct = self
            .exceptions
            .iter()
            .any(|entry| excepts(entry, &host, &authority));
        (!direct).then_some(proxy)
    }
}

/// curl's reading of one `no_proxy` entry: `*`, a host and all below it (with or without a leading dot or `*.`),
/// `host:port`, an address, or a block of addresses in CIDR notation.
fn excepts(entry: &str, host: &str, authority: &str) -> bool {
    if entry == "*" || entry == authority {
        return true;
    }
    if let (Some((network, length)), Ok(address)) = (entry.split_once('/'), host.parse::<IpAddr>()) {
        return in_block(network, length, address);
    }
    let domain = entry.trim_start_matches('*').trim_start_matches('.');
    let domain = domain.trim_start_matches('[').trim_end_matches(']');
    !domain.is_empty()
        && host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn in_block(network: &str, length: &str, address: IpAddr) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) if length <= 32 => {
            let differing = u32::from(network) ^ u32::from(address);
            differing.checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) if length <= 128 => {
            let differing = u128::from(network) ^ u128::from(address);
            differing.checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = proxies(&[("http_proxy", "cache:3142"), ("HTTPS_PROXY", "https://gate:8443")]);
        assert_eq!(proxies.for_url("http://example.com/"), Some("http://cache:3142"));
        assert_eq!(proxies.for_url("https://example.com/"), Some("https://gate:8443"));
        assert_eq!(proxies.for_url("file:///x"), None);
    }

    #[test]
    fn exceptions_are_hosts_domains_addresses_and_blocks() {
        let exceptions = "localhost, .corp.example,*.dev,10.0.0.0/8,::1,fd00::/8,mirror:8080";
        let proxies = proxies(&[("all_proxy", "gate:1"), ("no_proxy", exceptions)]);
        for direct in [
            "http://localhost:5000/",
            "http://a.corp.example/",
            "http://Corp.Example/",
            "http://x.dev/",
            "http://10.1.2.3/",
            "http://[::1]/",
            "http://[fd12::1]:80/",
            "http://mirror:8080/",
        ] {
            assert_eq!(proxies.for_url(direct), None, "{direct}");
        }
        for proxied in [
            "http://notcorp.example/",
            "http://11.1.2.3/",
            "http://mirror:80/",
            "http://localhost.org/",
        ] {
            assert!(proxies.for_url(proxied).is_some(), "{proxied}");
        }
    }

    #[test]
    fn a_star_excepts_everything_and_nothing_excepts_nothing() {
        assert_eq!(
            proxies(&[("http_proxy", "a:1"), ("NO_PROXY", "*")]).for_url("http://x/"),
            None
        );
        assert_eq!(
            proxies(&[("http_proxy", "a:1"), ("no_proxy", "")]).for_url("http://x/"),
            Some("http://a:1")
        );
        assert_eq!(proxies(&[("http_proxy", "")]).for_url("http://x/"), None);
    }
}
