//! Small documents whose digest is not known beforehand.

use std::io::{self, Read};
use std::time::Instant;

use anyhow::{Result, bail};

use super::Address;
use super::attempts::{Attempts, Trouble};
use super::client::Client;
use super::policy::Policy;
use crate::failure::{ExitCode, Failure};
use crate::progress::Progress;

/// Fetches a small document whose digest is not known beforehand (an archive's InRelease), trying `urls` in order;
/// at most `limit` bytes. The caller must find out whether to trust it.
pub fn document(urls: &[Address], limit: u64, progress: &Progress) -> Result<Vec<u8>> {
    document_with(urls, limit, progress, &Policy::default())
}

/// [`document`] with other timeouts, retries and proxies than the usual ones.
pub fn document_with(urls: &[Address], limit: u64, progress: &Progress, policy: &Policy) -> Result<Vec<u8>> {
    let client = Client::new(policy);
    let mut attempts = Attempts::new(urls);
    let name = urls.first().map_or("document".to_owned(), Address::to_string);
    let task = progress.bytes(&format!("fetch {name}"), None);
    for round in 0..policy.rounds {
        for url in attempts.live() {
            match read(&client, url, limit, policy) {
                Ok(bytes) => {
                    task.advance(bytes.len() as u64);
                    task.done();
                    return Ok(bytes);
                }
                Err(Trouble::Local(error)) => return Err(error),
                // `record` hands back only what `read` can't bring about.
                Err(trouble) => attempts.record(url, trouble).unwrap_or_default(),
            }
        }
        if attempts.live().is_empty() {
            break;
        }
        if round + 1 < policy.rounds {
            client.back_off(round, attempts.come_again());
        }
    }
    let message = format!("{name}: could not be fetched:{attempts}");
    bail!(
        Failure::new(ExitCode::Fetch, message)
            .hint("check the network, or name another mirror with --mirror URL")
    )
}

fn read(client: &Client<'_>, url: &Address, limit: u64, policy: &Policy) -> Result<Vec<u8>, Trouble> {
    let answer = client.open(url)?;
    let too_long = || Trouble::Lasting(format!("longer than {limit} bytes"));
    if answer.total.is_some_and(|total| total > limit) {
        return Err(too_long());
    }
    let mut body = answer.body.take(limit.saturating_add(1));
    let mut document = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let (mut window, mut before) = (Instant::now(), 0);
    loop {
        match body.read(&mut buffer) {
            Ok(0) if answer.total.is_some_and(|total| total != document.len() as u64) => {
                let why = format!("the connection ended after {} bytes", document.len());
                return Err(Trouble::Passing(why, None));
            }
            Ok(0) => return Ok(document),
            Ok(count) => document.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(client.read_trouble(error)),
        }
        if document.len() as u64 > limit {
            return Err(too_long());
        }
        if window.elapsed() >= policy.window {
            let rate = (document.len() - before) as f64 / window.elapsed().as_secs_f64();
            if (rate as u64) < policy.minimum_rate / 16 {
                return Err(Trouble::Passing("too slow".to_owned(), None));
            }
            (window, before) = (Instant::now(), document.len());
        }
    }
}
