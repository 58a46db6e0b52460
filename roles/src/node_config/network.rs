//! Values of a NodeConfig that name places in a network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host and a port: `lb.example.com:6443`, `10.0.0.5:6443`, `[fd00::5]:6443`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host, when it is an address.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// `https://host:port`.
    pub fn url(&self) -> String {
        format!("https://{self}")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(shape)?;
        let port: u16 = port.parse().map_err(|_| shape())?;
        if port == 0 {
            return Err(shape());
        }
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().map_err(|_| shape())?.to_string(),
            None if is_dns_name(host) => host.to_owned(),
            None => return Err(shape()),
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

/// Whether this is a name of DNS (RFC 1123): labels of letters, digits and inner dashes, lower case.
pub fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether this is one label of DNS: 1 to 63 lower-case letters, digits and inner dashes.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A range of addresses: `10.96.0.0/12`. Bits behind the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The default for Services: 10.96.0.0/12.
    pub fn services() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)),
            prefix: 12,
        }
    }

    /// The default for pods: 10.244.0.0/16.
    pub fn pods() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)),
            prefix: 16,
        }
    }

    /// The first address.
    pub fn network(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The `index`-th address, counted from the first; `None` outside the range.
    pub fn nth(&self, index: u32) -> Option<IpAddr> {
        let address = match self.address {
            IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(index)?.into()),
            IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(index.into())?.into()),
        };
        self.contains(address).then_some(address)
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address, self.prefix) == Some(self.address)
    }

    /// Whether two ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

/// `address` with all bits behind `prefix` cleared; `None` when the prefix is longer than the address.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let shift = |width: u32| width.checked_sub(prefix.into());
    Some(match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(shift(32)?).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(shift(128)?).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    })
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not a range like 10.96.0.0/12");
        let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
        let address: IpAddr = address.parse().map_err(|_| shape())?;
        let prefix: u8 = prefix.parse().map_err(|_| shape())?;
        match masked(address, prefix) {
            None => Err(shape()),
            Some(first) if first == address => Ok(Self { address, prefix }),
            Some(first) => Err(format!(
                "`{text}` has bits behind its prefix: {first}/{prefix} is meant?"
            )),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_and_bad_ones_are_refused() {
        for text in ["lb.example.com:6443", "10.0.0.5:6443", "[fd00::5]:6443"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "lb.example.com",
            "lb:0",
            "lb:65536",
            ":6443",
            "fd00::5:6443",
            "LB:1",
            "a b:1",
            "https://lb:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_know_their_addresses() {
        let services = Cidr::services();
        assert_eq!(services.nth(1).unwrap().to_string(), "10.96.0.1");
        assert_eq!(services.nth(10).unwrap().to_string(), "10.96.0.10");
        let small: Cidr = "10.0.0.0/30".parse().unwrap();
        assert_eq!(small.nth(4), None);
        assert!(!services.overlaps(&Cidr::pods()));
        assert!("10.0.0.0/8".parse::<Cidr>().unwrap().overlaps(&services));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for text in [
            "10.96.0.1/12",
            "10.0.0.0/33",
            "10.0.0.0",
            "fd00::/129",
            "x/1",
            "10.0.0.0/-1",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
