//! What a machine prints on its serial port, kept whole, and waiting for words in it.

use std::io::{Read, Write};
use std::process::ChildStdin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Lines of the transcript that a failed wait repeats.
const TAIL_LINES: usize = 40;

/// A serial console.
pub struct Console {
    shared: Arc<Shared>,
    input: Option<ChildStdin>,
    /// Everything before was waited for already.
    position: usize,
}

#[derive(Default)]
struct Shared {
    transcript: Mutex<Transcript>,
    changed: Condvar,
}

#[derive(Default)]
struct Transcript {
    text: Vec<u8>,
    /// How much text there was, and when.
    arrivals: Vec<(usize, Instant)>,
    ended: bool,
}

impl Console {
    /// A console that prints to `output` and is typed into through `input`.
    pub(crate) fn attach(mut output: impl Read + Send + 'static, input: Option<ChildStdin>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let length = output.read(&mut buffer).unwrap_or(0);
                let mut transcript = theirs.lock();
                transcript.text.extend_from_slice(&buffer[..length]);
                let arrived = transcript.text.len();
                transcript.arrivals.push((arrived, Instant::now()));
                transcript.ended = length == 0;
                theirs.changed.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
        Self {
            shared,
            input,
            position: 0,
        }
    }

    /// Waits for `pattern` after what was last waited for, and returns the line it stands in, complete.
    ///
    /// # Errors
    ///
    /// It did not come within `deadline`, or the machine ended; with the end of the transcript.
    pub fn wait_for(&mut self, pattern: &str, deadline: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], deadline).map(|(_, line)| line)
    }

    /// Waits for the first of `patterns` to appear in a complete line; returns which one it was and its line. A failure
    /// that announces itself (`Kernel panic`) need not be waited out.
    pub fn wait_for_any(&mut self, patterns: &[&str], deadline: Duration) -> Result<(usize, String)> {
        self.wait_until(&format!("{patterns:?}"), deadline, |transcript, position| {
            complete_line(transcript, position, patterns)
        })
    }

    /// Waits until `prompt` is the end of what was printed, without a line's end. One of `failures` in a line before it is
    /// an error.
    pub fn wait_for_prompt(&mut self, prompt: &str, failures: &[&str], deadline: Duration) -> Result<()> {
        let (failed, line) = self.wait_until(&format!("{prompt:?}"), deadline, |transcript, position| {
            if let Some((_, line, next)) = complete_line(transcript, position, failures) {
                return Some((true, line, next));
            }
            let rest = &transcript.text[position..];
            rest.ends_with(prompt.as_bytes())
                .then(|| (false, String::new(), transcript.text.len()))
        })?;
        ensure!(!failed, "{line}");
        Ok(())
    }

    /// Waits until `look`, given the transcript and where to begin, finds something that ends at a place.
    fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        look: impl Fn(&Transcript, usize) -> Option<(T, String, usize)>,
    ) -> Result<(T, String)> {
        let end = Instant::now() + deadline;
        let shared = Arc::clone(&self.shared);
        let mut transcript = shared.lock();
        loop {
            if let Some((found, line, next)) = look(&transcript, self.position) {
                self.position = next;
                return Ok((found, line));
            }
            let left = end.saturating_duration_since(Instant::now());
            if transcript.ended || left.is_zero() {
                let why = if transcript.ended {
                    "the machine ended".to_owned()
                } else {
                    format!("{deadline:?} passed")
                };
                bail!(
                    "{why} before {what} appeared on the console, which ends with:\n{}",
                    tail(&transcript.text)
                );
            }
            let waited = shared.changed.wait_timeout(transcript, left);
            transcript = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types `text`.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("this console takes no input")?;
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .context("type on the console")
    }

    /// When the first line with `pattern` was complete.
    pub fn time_of(&self, pattern: &str) -> Option<Instant> {
        let transcript = self.shared.lock();
        let text = String::from_utf8_lossy(&transcript.text);
        // Lossy text is never shorter than what it came from, so that lengths are looked up in the bytes.
        let line = text.lines().find(|line| line.contains(pattern))?.as_bytes();
        let start = transcript
            .text
            .windows(line.len())
            .position(|window| window == line)?;
        let end = start + line.len();
        let arrival = transcript.arrivals.iter().find(|(length, _)| *length >= end);
        arrival.map(|(_, time)| *time)
    }

    /// Everything printed so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().text).into_owned()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.transcript.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first complete line from `position` on that holds a pattern, and where the text after it starts.
fn complete_line(
    transcript: &Transcript,
    position: usize,
    patterns: &[&str],
) -> Option<(usize, String, usize)> {
    let mut start = position;
    while start < transcript.text.len() {
        let rest = &transcript.text[start..];
        let length = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if transcript.ended => rest.len(),
            None => return None,
        };
        let line = String::from_utf8_lossy(&rest[..length]);
        if let Some(which) = patterns.iter().position(|pattern| line.contains(pattern)) {
            return Some((which, line.trim_end().to_owned(), start + length));
        }
        start += length;
    }
    None
}

/// The last lines of a transcript, without the terminal's control characters.
pub fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    let visible = |line: &&str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let last = lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(visible);
    last.map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &'static str) -> Console {
        Console::attach(text.as_bytes(), None)
    }

    #[test]
    fn each_line_is_found_once() {
        let mut console = console("one a\ntwo b\none c\n");
        assert_eq!(console.wait_for("one", Duration::from_secs(5)).unwrap(), "one a");
        assert_eq!(
            console
                .wait_for_any(&["zero", "one"], Duration::from_secs(5))
                .unwrap(),
            (1, "one c".to_owned())
        );
        assert!(console.wait_for("one", Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_machine_that_ends_is_not_waited_for() {
        let start = Instant::now();
        let error = console("Kernel panic\n")
            .wait_for("login:", Duration::from_secs(60))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ended") && error.contains("Kernel panic"),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_prompt_without_a_line_end_is_found_and_a_failure_before_it_too() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"sad\nhost login: ").unwrap();
        let mut console = Console::attach(reader, None);
        console
            .wait_for_prompt("login: ", &["happy"], Duration::from_secs(5))
            .unwrap();
        console.position = 0;
        let error = console.wait_for_prompt("login: ", &["sad"], Duration::from_secs(5));
        assert_eq!(error.unwrap_err().to_string(), "sad");
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_found_once_it_is_whole() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut console = Console::attach(reader, None);
        writer.write_all(b"kimage-status: ").unwrap();
        let early = console.wait_for("kimage-status: ", Duration::from_millis(50));
        assert!(early.is_err(), "{early:?}");
        writer.write_all(b"{}\n").unwrap();
        assert_eq!(
            console
                .wait_for("kimage-status: ", Duration::from_secs(5))
                .unwrap(),
            "kimage-status: {}"
        );
    }
}
