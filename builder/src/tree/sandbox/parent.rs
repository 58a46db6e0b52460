//! The caller's side: starts the inside, hands it the request, reads log and reply.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};

use super::request::{Reply, Request, Root};
use super::{ARGUMENT, Outcome, probe};
use crate::tool::Tool;

/// Longest piece of output that is handed on as one line, in bytes.
const LINE_LIMIT: usize = 64 * 1024;

/// Runs `request` in a child that is `program`. Blocks; the child is tied to this thread's life.
pub(super) fn run(program: &Path, request: &Request, log: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
    let (ours, theirs) = UnixStream::pair().context("make a socket pair")?;
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let child = {
        let mut command = Tool::new(program).arg(ARGUMENT).into_command();
        // The child works on paths of the request only, but a relative one must mean what it means here, so the
        // working directory stays. Dropping `command` closes our copies of the child's ends.
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command
            .stdout(writer.try_clone().context("duplicate a pipe")?)
            .stderr(writer);
        Tied(
            command
                .spawn()
                .with_context(|| format!("start {}", program.display()))?,
        )
    };
    // On an error the guard ends the child.
    let reply = converse(ours, OwnedFd::from(reader).into(), request, log)?;
    let status = child.wait();
    if let Root::Overlay { work, .. } = &request.root {
        // overlayfs leaves `work/work` with mode 0, which an ordinary user can't list and so can't remove.
        let _ = std::fs::remove_dir(Path::new(work).join("work"));
    }
    if reply.is_empty() {
        bail!(
            "the sandbox ended without a reply ({})",
            status.context("wait for the sandbox")?
        );
    }
    match serde_json::from_slice(&reply).context("read the sandbox's reply")? {
        Reply::Finished {
            ending,
            owners,
            counts,
        } => Ok(Outcome {
            ending,
            owners,
            counts,
        }),
        Reply::Failed { step, detail, errno } => Err(probe::explain(step, &detail, errno)),
    }
}

/// Sends the request, then reads log and reply until both are closed, whichever speaks first.
fn converse(
    mut socket: UnixStream,
    mut output: std::fs::File,
    request: &Request,
    log: &mut dyn FnMut(&[u8]),
) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(request).context("write the sandbox's request")?;
    // A child that died early shows as a broken pipe here; the missing reply tells it better.
    let sent = socket
        .write_all(&text)
        .and_then(|()| socket.shutdown(Shutdown::Write));
    let mut lines = Lines::default();
    let mut reply = Vec::new();
    let (mut output_open, mut socket_open) = (true, sent.is_ok());
    let mut buffer = vec![0; 64 * 1024];
    while output_open || socket_open {
        let (mut output_ready, mut socket_ready) = (false, false);
        {
            let mut polled = Vec::with_capacity(2);
            if output_open {
                polled.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
            }
            if socket_open {
                polled.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
            }
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.context("wait for the sandbox")?,
            };
            let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
            if output_open {
                output_ready = ready.next().unwrap_or(false);
            }
            if socket_open {
                socket_ready = ready.next().unwrap_or(false);
            }
        }
        if output_ready {
            match read(&mut output, &mut buffer).context("read the sandbox's output")? {
                0 => output_open = false,
                count => lines.feed(&buffer[..count], log),
            }
        }
        if socket_ready {
            match read(&mut socket, &mut buffer) {
                // A reset means that the child died: the missing reply says so.
                Ok(0) | Err(_) => socket_open = false,
                Ok(count) => reply.extend_from_slice(&buffer[..count]),
            }
        }
    }
    lines.finish(log);
    Ok(reply)
}

fn read(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A child that does not outlive its guard.
struct Tied(Child);

impl Tied {
    fn wait(mut self) -> io::Result<std::process::ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // After `wait` both are without effect.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], log: &mut dyn FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                log(&self.partial);
                self.partial.clear();
            } else if self.partial.len() >= LINE_LIMIT {
                self.finish(log);
            }
        }
    }

    fn finish(&mut self, log: &mut dyn FnMut(&[u8])) {
        if !self.partial.is_empty() {
            log(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_line_by_line_however_it_was_written() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for piece in [&b"on"[..], b"e\ntwo\n\nth", b"ree"] {
            lines.feed(piece, &mut |line| {
                seen.push(String::from_utf8_lossy(line).into_owned())
            });
        }
        lines.finish(&mut |line| seen.push(String::from_utf8_lossy(line).into_owned()));
        assert_eq!(seen, ["one", "two", "", "three"]);
    }

    #[test]
    fn an_endless_line_does_not_grow_without_bound() {
        let mut lines = Lines::default();
        let mut longest = 0;
        for _ in 0..100 {
            lines.feed(&[b'x'; 4096], &mut |line| longest = longest.max(line.len()));
        }
        assert_eq!(longest, LINE_LIMIT);
    }
}
