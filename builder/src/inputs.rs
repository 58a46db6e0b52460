//! Lock in, verified blobs out: the only network code for build inputs. (Skeleton: see the signatures.)

use anyhow::Result;

use crate::digest::Digest;
use crate::progress::Progress;
use crate::store::Store;

/// One blob to have in the store.
#[derive(Debug, Clone)]
pub struct Request {
    /// What a person calls it ("systemd 255.4-1ubuntu8.18").
    pub name: String,
    /// Where it may be had, in order of preference.
    pub urls: Vec<String>,
    /// What its bytes must hash to.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// How inputs may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Fetch what the store lacks.
    Online,
    /// Never touch the network; what the store lacks is an error.
    Offline,
}

/// Fetches what the store lacks, several at a time, and returns when all of it is there and verified.
pub fn fetch(_requests: &[Request], _store: &Store, _network: Network, _progress: &Progress) -> Result<()> {
    anyhow::bail!("skeleton")
}

/// Fetches a small document whose digest is not known beforehand (an archive's InRelease), trying `urls` in order;
/// at most `limit` bytes.
pub fn document(_urls: &[String], _limit: u64, _progress: &Progress) -> Result<Vec<u8>> {
    anyhow::bail!("skeleton")
}
