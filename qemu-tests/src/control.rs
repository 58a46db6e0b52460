//! QEMU's control socket (QMP, docs/interop/qmp-spec.rst): one JSON object per line, commands with an id, events in
//! between. Unknown events are kept as they are, and a late answer hurts nobody.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers in milliseconds; under emulation on a busy host a big machine can take seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to a running QEMU.
pub struct Control {
    stream: UnixStream,
    shared: Arc<Shared>,
    next_id: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    answers: BTreeMap<u64, Value>,
    events: Vec<Value>,
    ended: bool,
}

impl Control {
    /// Greets QEMU on `stream`.
    pub(crate) fn connect(stream: UnixStream) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let reader = BufReader::new(stream.try_clone().context("copy control socket")?);
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                theirs.take(&line);
            }
            theirs.lock().ended = true;
            theirs.changed.notify_all();
        });
        let mut control = Self {
            stream,
            shared,
            next_id: 0,
        };
        control.execute("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    /// Runs one command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let line = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments, "id": id })
        );
        self.stream
            .write_all(line.as_bytes())
            .with_context(|| format!("send {command}"))?;
        let answer = self.shared.wait(ANSWER, |state| state.answers.remove(&id));
        let mut answer = answer.with_context(|| format!("no answer to {command}"))?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => bail!(
                "{command}: {}",
                answer["error"]["desc"].as_str().unwrap_or("no reason given")
            ),
        }
    }

    /// Waits for the event `name` (`SHUTDOWN`, `GUEST_PANICKED`), also one that has come already; each is seen once.
    pub fn wait_for_event(&mut self, name: &str, deadline: Duration) -> Result<Value> {
        let take = |state: &mut State| {
            let position = state.events.iter().position(|event| event["event"] == name)?;
            Some(state.events.remove(position))
        };
        self.shared
            .wait(deadline, take)
            .with_context(|| format!("no event {name}"))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let mut state = self.lock();
        if let Some(id) = value["id"].as_u64() {
            state.answers.insert(id, value);
        } else if value.get("event").is_some() {
            state.events.push(value);
        }
        self.changed.notify_all();
    }

    fn wait<T>(&self, deadline: Duration, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut state = self.lock();
        loop {
            if let Some(value) = take(&mut state) {
                return Ok(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended {
                bail!("QEMU has ended");
            }
            if left.is_zero() {
                bail!("{deadline:?} passed");
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that answers like QEMU, after `before` each time.
    fn fake(before: &'static str, answer: &'static str) -> Control {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            writer.write_all(b"{\"QMP\": {}}\n").unwrap();
            for line in BufReader::new(theirs).lines().map_while(Result::ok) {
                let command: Value = serde_json::from_str(&line).unwrap();
                let id = &command["id"];
                let answer = if command["execute"] == "qmp_capabilities" {
                    "\"return\": {}"
                } else {
                    answer
                };
                writeln!(writer, "{before}\n{{{answer}, \"id\": {id}}}").unwrap();
            }
        });
        Control::connect(ours).unwrap()
    }

    #[test]
    fn an_unknown_event_and_noise_do_not_disturb_an_answer() {
        let mut control = fake(
            "{\"event\": \"FROM_THE_FUTURE\", \"data\": 1}\nnoise",
            "\"return\": {\"status\": \"running\"}",
        );
        assert_eq!(
            control.execute("query-status", json!({})).unwrap()["status"],
            "running"
        );
        assert_eq!(
            control.wait_for_event("FROM_THE_FUTURE", ANSWER).unwrap()["data"],
            1
        );
    }

    #[test]
    fn a_refused_command_says_why() {
        let mut control = fake("", "\"error\": {\"desc\": \"no such device\"}");
        assert!(
            control
                .execute("x", json!({}))
                .unwrap_err()
                .to_string()
                .contains("no such device")
        );
    }
}
