//! A client that writes through the balancer every 100 ms by the machines' clock, and remembers what was acknowledged.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kimage_firstboot::kubernetes::Api;
use serde_json::json;

use crate::clock::Clock;
use crate::namespaces::network::Network;

const EVERY: Duration = Duration::from_millis(100);
pub(super) const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

/// The running client.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Receiver<()>,
    thread: JoinHandle<Result<Record>>,
}

/// What it did.
pub struct Record {
    /// Names of the objects whose creation was acknowledged.
    pub acknowledged: Vec<String>,
    /// How many were not.
    refused: usize,
    /// By the wall's clock.
    longest_gap: Duration,
    clock: Clock,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            acknowledged,
            refused,
            longest_gap,
            clock,
        } = self;
        let count = acknowledged.len();
        write!(
            f,
            "{count} writes acknowledged, {refused} not; longest gap {longest_gap:.1?}"
        )?;
        if clock.slowness() > 1 {
            write!(f, ", {:.1?} by the machines' clock", clock.own(*longest_gap))?;
        }
        Ok(())
    }
}

impl Writer {
    /// Writes on `api` from within the network called `network`, until it is told to stop.
    pub fn start(api: Api, network: &str, clock: Clock) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, acknowledged) = channel();
        let (stopped, network) = (Arc::clone(&stop), network.to_owned());
        let thread = std::thread::spawn(move || {
            Network::enter(&network)?;
            Ok(write(&api, clock, &stopped, &sender))
        });
        Ok(Self {
            stop,
            acknowledged,
            thread,
        })
    }

    /// Waits for so many more acknowledged writes.
    pub fn wait_for_writes(&self, count: usize, deadline: Duration) -> Result<()> {
        while self.acknowledged.try_recv().is_ok() {}
        let end = Instant::now() + deadline;
        for done in 0..count {
            let left = end.saturating_duration_since(Instant::now());
            if self.acknowledged.recv_timeout(left).is_err() {
                bail!("{done} of {count} writes within {deadline:?}");
            }
        }
        Ok(())
    }

    /// Stops it.
    ///
    /// # Errors
    ///
    /// It never began.
    pub fn finish(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(record) => record,
            Err(_) => bail!("the writer panicked"),
        }
    }
}

fn write(api: &Api, clock: Clock, stop: &AtomicBool, acknowledged: &Sender<()>) -> Record {
    let mut record = Record {
        acknowledged: Vec::new(),
        refused: 0,
        longest_gap: Duration::ZERO,
        clock,
    };
    let mut last = Instant::now();
    for number in 0u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("write-{number}");
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": name}});
        match api.create(COLLECTION, &object) {
            Ok(_) => {
                record.longest_gap = record.longest_gap.max(last.elapsed());
                last = Instant::now();
                record.acknowledged.push(name);
                let _ = acknowledged.send(());
            }
            Err(_) => record.refused += 1,
        }
        std::thread::sleep(clock.wall_time(EVERY));
    }
    record
}
