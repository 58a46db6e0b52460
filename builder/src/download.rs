//! Fetches blobs by digest and small documents by name: the only network code, beside the flow of stages.
//!
//! Each blob has several URLs. A URL that fails in passing (no answer, a stall, a server error, a cut connection) is
//! tried again in later rounds, one that is wrong for good (not found, other bytes) is not. What was received stays
//! in the store's `partial/` and is continued, also from another mirror: the digest decides in the end.

mod address;
mod attempts;
mod client;
mod document;
mod forward;
mod policy;
mod proxy;
mod transfer;
mod url;
pub mod vendor;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};
use crate::progress::{Progress, bytes};
use crate::store::Store;

use client::Client;
use transfer::{Download, Outcome};

pub use address::Address;
pub use document::{document, document_with};
pub use policy::Policy;
pub use proxy::Proxies;

/// So many missing inputs are listed by name.
const NAMED: usize = 10;

/// So many inputs that are wrong for good are collected before the fetch gives up: enough to see the pattern.
const MAX_FAILURES: usize = 20;

/// One blob to have in the store.
#[derive(Debug, Clone)]
pub struct Request {
    /// What a person calls it ("systemd 255.4-1ubuntu8.18").
    pub name: String,
    /// Where it may be had, in order of preference: `http`, `https` and `file` URLs.
    pub urls: Vec<Address>,
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
    /// Never touch the network; what neither the store nor a `file://` URL has is an error.
    Offline,
}

/// Fetches what the store lacks, several at a time, and returns when all of it is there and verified.
///
/// Fails with [`ExitCode::Fetch`] when a blob can't be had, with [`ExitCode::Mismatch`] when all that could be had
/// under its name has other bytes.
pub fn fetch(requests: &[Request], store: &Store, network: Network, progress: &Progress) -> Result<()> {
    fetch_with(requests, store, network, progress, &Policy::default())
}

/// [`fetch`] with other timeouts, retries and proxies than the usual ones.
pub fn fetch_with(
    requests: &[Request],
    store: &Store,
    network: Network,
    progress: &Progress,
    policy: &Policy,
) -> Result<()> {
    let requests = merged(requests)?;
    let store = store.with_progress(progress);
    let mut missing = absent(&requests, &store, policy)?;
    if missing.is_empty() {
        return Ok(());
    }
    if network == Network::Offline {
        refuse_network(&mut missing)?;
    }
    // Large ones first, so that the end is not one connection with all others idle.
    missing.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
    let total = missing.iter().map(|request| request.size).sum();
    check_space(total, &store)?;

    let client = Client::new(policy);
    let task = progress.bytes(&format!("fetch {} inputs", missing.len()), Some(total));
    let failures = Mutex::new(Vec::new());
    in_parallel(&missing, policy.parallel, |request| {
        if client.stopped() {
            return;
        }
        let outcome = Download {
            request,
            store: &store,
            client: &client,
            policy,
            progress,
            task: &task,
        }
        .run();
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Outcome::Done => {}
            // Every other blob would meet the same dead network or full disk.
            Outcome::Transient(error) | Outcome::Local(error) => {
                client.stop();
                failures.push((request.name.clone(), error));
            }
            Outcome::Permanent(error) => {
                failures.push((request.name.clone(), error));
                if failures.len() >= MAX_FAILURES {
                    client.stop();
                }
            }
            Outcome::Stopped => {}
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() {
        // Once for all: a call per blob waits for the disk each time.
        store.sync()?;
        task.done();
        return Ok(());
    }
    drop(task);
    Err(report(failures, progress))
}

/// The first failure by name is the error; the others are told before it.
fn report(mut failures: Vec<(String, anyhow::Error)>, progress: &Progress) -> anyhow::Error {
    // A mismatch is the gravest: it must decide the exit code.
    let gravity = |error: &anyhow::Error| crate::failure::exit_code(error) != ExitCode::Mismatch;
    failures.sort_by(|(a, a_error), (b, b_error)| (gravity(a_error), a).cmp(&(gravity(b_error), b)));
    let mut failures = failures.into_iter();
    let first = failures.next();
    for (_, error) in failures {
        progress.warn(&format!("{error:#}"));
    }
    first.map_or_else(|| anyhow::anyhow!("fetch failed"), |(_, error)| error)
}

/// One request per digest, with the URLs of all.
fn merged(requests: &[Request]) -> Result<Vec<Request>> {
    let mut merged: BTreeMap<Digest, Request> = BTreeMap::new();
    for request in requests {
        let Some(known) = merged.get_mut(&request.digest) else {
            merged.insert(request.digest, request.clone());
            continue;
        };
        if known.size != request.size {
            let (digest, a, b) = (request.digest, known.size, request.size);
            let (first, second) = (&known.name, &request.name);
            bail!("{first} and {second} share the digest {digest}, but one has {a} bytes and the other {b}");
        }
        for url in &request.urls {
            if !known.urls.contains(url) {
                known.urls.push(url.clone());
            }
        }
    }
    Ok(merged.into_values().collect())
}

/// The requests whose blobs the store lacks.
fn absent(requests: &[Request], store: &Store, policy: &Policy) -> Result<Vec<Request>> {
    let results = Mutex::new(Vec::new());
    in_parallel(requests, policy.parallel, |request| {
        let present = store.blob(&request.digest).map(|path| path.is_some());
        results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((request, present));
    });
    let mut absent = Vec::new();
    for (request, present) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let present = present.with_context(|| format!("look for {} in the store", request.name))?;
        if !present {
            absent.push(request.clone());
        }
    }
    Ok(absent)
}

/// Leaves only URLs that need no network; fails when that leaves a blob without any.
fn refuse_network(missing: &mut [Request]) -> Result<()> {
    for request in missing.iter_mut() {
        request.urls.retain(Address::is_file);
    }
    let mut names: Vec<&str> = missing
        .iter()
        .filter(|request| request.urls.is_empty())
        .map(|request| request.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    names.sort_unstable();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = names[..names.len().min(NAMED)].join(", ");
    let message = format!(
        "{} inputs are not in the store and the network is off: {shown}{more}",
        names.len()
    );
    bail!(
        Failure::new(ExitCode::Fetch, message)
            .hint("drop --offline, or run `kimage vendor FILE` where there is a network and `kimage vendor --import FILE` here")
    )
}

fn check_space(wanted: u64, store: &Store) -> Result<()> {
    let free = store.free_space()?;
    if free < wanted {
        let root = store.root().display();
        let message = format!(
            "store `{root}` has {} free, but {} are to be fetched",
            bytes(free),
            bytes(wanted)
        );
        bail!(
            Failure::new(ExitCode::Failed, message)
                .hint("free some space there, or name a folder on another disk with --store DIR")
        );
    }
    Ok(())
}

/// Calls `work` for each item, `threads` at a time, in order of their start.
fn in_parallel<'a, T: Sync>(items: &'a [T], threads: usize, work: impl Fn(&'a T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}
