//! How patient fetching is.

use std::time::Duration;

use super::proxy::Proxies;

/// Timeouts, retries and proxies of a fetch.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Blobs fetched at the same time.
    pub parallel: usize,
    /// Longest wait for a name lookup, and again for a connection.
    pub connect: Duration,
    /// Longest wait for the next byte, from the request on.
    pub stall: Duration,
    /// The stretch of time over which [`Policy::minimum_rate`] must be kept.
    pub window: Duration,
    /// Bytes per second below which another mirror is tried. The last mirror may have a sixteenth of it.
    pub minimum_rate: u64,
    /// How often all URLs of a blob are tried. A try that brought the blob forward does not count.
    pub rounds: u32,
    /// The wait before the second round; it doubles with each further one and is shortened by chance.
    pub backoff: Duration,
    /// The longest wait, also when a server asks for more.
    pub backoff_limit: Duration,
    /// The way out.
    pub proxies: Proxies,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            parallel: 8,
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(20),
            window: Duration::from_secs(20),
            minimum_rate: 10_000,
            rounds: 4,
            backoff: Duration::from_secs(1),
            backoff_limit: Duration::from_secs(30),
            proxies: Proxies::from_environment(),
        }
    }
}
