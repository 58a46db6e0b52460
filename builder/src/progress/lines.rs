//! Progress as plain lines, for logs: a line when a task begins and ends, and one whenever nothing was said for a
//! while, so that nobody (and no CI runner) takes a long step for a hang.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::Unit;
use super::text::{bytes, duration};

/// A task's numbers.
pub(super) struct Running {
    pub(super) label: String,
    pub(super) total: Option<u64>,
    pub(super) unit: Unit,
    pub(super) position: AtomicU64,
    message: Mutex<String>,
    begun: Instant,
}

impl Running {
    pub(super) fn new(label: &str, total: Option<u64>, unit: Unit) -> Self {
        let begun = Instant::now();
        Self {
            label: label.to_owned(),
            total,
            unit,
            position: AtomicU64::new(0),
            message: Mutex::default(),
            begun,
        }
    }

    pub(super) fn set_message(&self, text: &str) {
        text.clone_into(&mut self.message.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn amount(&self, count: u64) -> String {
        match self.unit {
            Unit::Bytes => bytes(count),
            Unit::Count => count.to_string(),
        }
    }

    /// `fetch: 45%, 12.3 MB of 27.0 MB, 2.1 MB/s, systemd`.
    fn status(&self) -> String {
        let position = self.position.load(Ordering::Relaxed);
        let elapsed = self.begun.elapsed();
        let mut parts = Vec::new();
        match self.total {
            Some(total) => {
                let percent = u128::from(position) * 100 / u128::from(total.max(1));
                parts.push(format!(
                    "{percent}%, {} of {}",
                    self.amount(position),
                    self.amount(total)
                ));
            }
            None if position > 0 => parts.push(self.amount(position)),
            None => {}
        }
        if self.unit == Unit::Bytes {
            let rate = position as f64 / elapsed.as_secs_f64().max(0.001);
            parts.push(format!("{}/s", bytes(rate as u64)));
        }
        parts.push(format!("for {}", duration(elapsed)));
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if !message.is_empty() {
            parts.push(message.clone());
        }
        format!("{}: {}", self.label, parts.join(", "))
    }

    /// `fetch: 27.0 MB in 12.9 s`.
    pub(super) fn summary(&self) -> String {
        let position = self.position.load(Ordering::Relaxed);
        let time = duration(self.begun.elapsed());
        match position {
            0 => format!("{}: {time}", self.label),
            _ => format!("{}: {} in {time}", self.label, self.amount(position)),
        }
    }
}

/// The writer, what runs, and when something was last said.
pub(super) struct Lines {
    state: Mutex<State>,
    changed: Condvar,
    silence: Duration,
}

struct State {
    writer: Box<dyn Write + Send>,
    running: Vec<Arc<Running>>,
    spoke: Instant,
    ticking: bool,
}

impl Lines {
    pub(super) fn new(writer: Box<dyn Write + Send>, silence: Duration) -> Arc<Self> {
        let state = State {
            writer,
            running: Vec::new(),
            spoke: Instant::now(),
            ticking: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            silence,
        })
    }

    pub(super) fn print(&self, text: &str) {
        self.lock().say(text);
    }

    pub(super) fn begin(self: &Arc<Self>, task: &Arc<Running>) {
        let mut state = self.lock();
        state.say(&format!("{} ...", task.label));
        state.running.push(Arc::clone(task));
        if !state.ticking {
            let lines = Arc::downgrade(self);
            // Without a thread there are fewer lines, nothing worse.
            state.ticking = thread::Builder::new()
                .name("progress".into())
                .spawn(move || tick(&lines))
                .is_ok();
        }
        self.changed.notify_all();
    }

    pub(super) fn end(&self, task: &Arc<Running>) {
        self.lock().running.retain(|running| !Arc::ptr_eq(running, task));
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn say(&mut self, text: &str) {
        // A closed standard error is no reason to stop working.
        let line = format!("{text}\n");
        let _ = self
            .writer
            .write_all(line.as_bytes())
            .and_then(|()| self.writer.flush());
        self.spoke = Instant::now();
    }
}

/// Speaks up whenever nothing was said for nearly `silence`. Ends when no task runs.
fn tick(lines: &Weak<Lines>) {
    let Some(lines) = lines.upgrade() else { return };
    // A little early, since the promise is "no silence longer than".
    let patience = lines.silence.mul_f64(0.9);
    let mut state = lines.lock();
    while !state.running.is_empty() {
        let quiet = state.spoke.elapsed();
        if quiet >= patience {
            // The innermost tasks are the ones that move.
            let recent: Vec<String> = state
                .running
                .iter()
                .rev()
                .take(3)
                .map(|task| task.status())
                .collect();
            for status in recent.iter().rev() {
                state.say(status);
            }
            continue;
        }
        let (next, _) = lines
            .changed
            .wait_timeout(state, patience - quiet)
            .unwrap_or_else(PoisonError::into_inner);
        state = next;
    }
    state.ticking = false;
}
