//! Runs a compiler that may stay silent for minutes, and shows that it lives.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::progress::Task;
use crate::tool::Tool;

/// After this long without a line, the task's message counts the seconds since.
const SILENCE: Duration = Duration::from_secs(2);
/// Lines of standard error that are kept for the error message.
const KEPT_LINES: usize = 200;
/// Bytes of one line that are kept.
const LONGEST_LINE: usize = 4096;

/// What a finished child left.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// The last lines of standard error.
    pub(super) stderr: String,
}

/// A child that is killed when its watcher gives up.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `tool` to its end. Each line of its standard error goes to `line`, which returns what the tool is at now,
/// if the line says so; `task` shows that, with the seconds it takes.
pub(super) fn run(tool: Tool, task: &Task, mut line: impl FnMut(&str) -> Option<String>) -> Result<Finished> {
    let shown = tool.line();
    let mut command = tool.into_command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().with_context(|| format!("start `{shown}`"))?);
    let (Some(mut stdout), Some(stderr)) = (child.0.stdout.take(), child.0.stderr.take()) else {
        anyhow::bail!("`{shown}` has no output pipes");
    };
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let output = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        scope.spawn(move || {
            for line in Lines(BufReader::new(stderr)) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut kept = VecDeque::new();
        let (mut doing, mut since) = (String::new(), Instant::now());
        loop {
            match receiver.recv_timeout(SILENCE) {
                Ok(text) => {
                    if let Some(now) = line(&text) {
                        task.message(&now);
                        (doing, since) = (now, Instant::now());
                    }
                    kept.push_back(text);
                    if kept.len() > KEPT_LINES {
                        kept.pop_front();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !doing.is_empty() {
                        task.message(&format!("{doing} ({} s)", since.elapsed().as_secs()));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = child.0.wait().with_context(|| format!("wait for `{shown}`"))?;
        let stdout = output
            .join()
            .map_err(|_| anyhow::anyhow!("reading `{shown}` panicked"))?;
        let stdout = stdout.with_context(|| format!("read from `{shown}`"))?;
        let stderr = kept.into_iter().map(|line| line + "\n").collect();
        Ok(Finished {
            status,
            stdout,
            stderr,
        })
    })
}

/// Lines as text, each cut at [`LONGEST_LINE`]; ends at the end of the stream or the first error.
struct Lines<R>(BufReader<R>);

impl<R: Read> Iterator for Lines<R> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        let count = self
            .0
            .by_ref()
            .take(LONGEST_LINE as u64)
            .read_until(b'\n', &mut bytes)
            .ok()?;
        (count > 0).then(|| String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn lines_and_output_arrive_and_the_status_is_told() {
        let script = "echo out; echo one >&2; printf two >&2; exit 3";
        let mut seen = Vec::new();
        let task = Progress::silent().task("test", None);
        let finished = run(Tool::new("/bin/sh").args(["-c", script]), &task, |line| {
            seen.push(line.to_owned());
            None
        })
        .unwrap();
        assert_eq!(
            (finished.status.code(), finished.stdout.as_slice()),
            (Some(3), &b"out\n"[..])
        );
        assert_eq!(
            (seen.join(","), finished.stderr.as_str()),
            ("one,two".into(), "one\ntwo\n")
        );
    }

    #[test]
    fn an_endless_line_is_cut() {
        let script = "head -c 100000 /dev/zero >&2";
        let task = Progress::silent().task("test", None);
        let tool = Tool::new("/bin/sh").args(["-c", script]).inherit(&["PATH"]);
        let mut longest = 0;
        run(tool, &task, |line| {
            longest = longest.max(line.len());
            None
        })
        .unwrap();
        assert_eq!(longest, LONGEST_LINE);
    }
}
