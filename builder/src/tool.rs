//! The one door for child processes: what ran is known, and an error carries the tail of what the child said.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Lines of a failed child's standard error that are worth repeating.
const TAIL_LINES: usize = 30;

/// A child process to be. It starts with an empty environment: what it may see is said explicitly.
pub struct Tool {
    command: Command,
}

impl Tool {
    /// A child that runs `program`.
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null());
        Self { command }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets one environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Hands on the named variables of this process, where they are set.
    pub fn inherit(mut self, names: &[&str]) -> Self {
        for name in names {
            if let Some(value) = std::env::var_os(name) {
                self.command.env(name, value);
            }
        }
        self
    }

    /// Runs in `directory`.
    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Lets the kernel kill the child when the thread that starts it ends, however it ends (`PR_SET_PDEATHSIG`,
    /// prctl(2)): not even `SIGKILL` leaves an orphan behind.
    pub fn dies_with_starter(mut self) -> Self {
        let starter = i32::try_from(std::process::id()).ok();
        let tie = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have ended before that call.
            if getppid().map(|parent| parent.as_raw_nonzero().get()) == starter {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::BrokenPipe))
            }
        };
        #[expect(
            unsafe_code,
            reason = "the signal is a property of the child, set between fork and exec"
        )]
        // SAFETY: the closure makes two system calls and neither allocates nor takes a lock.
        unsafe {
            self.command.pre_exec(tie);
        }
        self
    }

    /// The command line as a person would type it.
    pub fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs to the end and returns what the child printed, whatever its exit status.
    pub fn output(mut self) -> Result<Output> {
        let line = self.line();
        self.command.output().with_context(|| format!("start `{line}`"))
    }

    /// Runs to the end and returns standard output; a non-zero exit status is an error that ends with the last
    /// lines of standard error.
    pub fn run(self) -> Result<Vec<u8>> {
        let line = self.line();
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{line}` failed ({})\n{}", output.status, tail(&output.stderr));
        }
        Ok(output.stdout)
    }

    /// Runs to the end on this process's own standard input, output and error (a terminal, for one) and returns the
    /// exit status.
    pub fn status(mut self) -> Result<ExitStatus> {
        let line = self.line();
        self.command.stdin(Stdio::inherit());
        self.command.status().with_context(|| format!("start `{line}`"))
    }

    /// The prepared command, for the callers that must watch the child while it runs.
    pub fn into_command(self) -> Command {
        self.command
    }
}

/// The last lines of `text`, indented.
pub fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines[start..]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_child_says_what_ran_and_why_it_failed() {
        let error = Tool::new("/bin/sh")
            .args(["-c", "echo too hot >&2; exit 3"])
            .run()
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/bin/sh -c") && text.contains("exit status: 3") && text.contains("too hot"),
            "{text}"
        );
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let start = || {
            Tool::new("/bin/sleep")
                .arg("600")
                .dies_with_starter()
                .into_command()
                .spawn()
        };
        let mut child = std::thread::spawn(start).join().unwrap().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn a_child_sees_only_what_it_is_given() {
        let text = Tool::new("/usr/bin/env").env("ONLY", "this").run().unwrap();
        assert_eq!(text, b"ONLY=this\n");
    }
}
