//! What the user sees while work goes on: bars on a terminal, plain lines otherwise, always on standard error.

mod lines;
mod text;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use lines::{Lines, Running};
pub(crate) use text::{bytes, duration};

/// No task runs longer than this without a word.
const SILENCE: Duration = Duration::from_secs(5);

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Warnings only.
    Quiet,
    /// Tasks and their durations.
    #[default]
    Normal,
    /// Details as well.
    Verbose,
}

/// What a task's numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as `12.3 MB` with a rate.
    Bytes,
    /// Files, steps, packages.
    Count,
}

/// Where progress goes. Cheap to clone; every stage gets one.
#[derive(Clone)]
pub struct Progress {
    output: Output,
    verbosity: Verbosity,
    begun: Instant,
}

#[derive(Clone)]
enum Output {
    Silent,
    Bars(MultiProgress),
    Lines(Arc<Lines>),
}

impl Progress {
    /// Says nothing: for tests.
    pub fn silent() -> Self {
        Self::with(Output::Silent, Verbosity::Quiet)
    }

    /// Bars where standard error is a terminal, lines where it is not.
    pub fn stderr(verbosity: Verbosity) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let output = if verbosity > Verbosity::Quiet && !dumb && std::io::stderr().is_terminal() {
            Output::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
        } else {
            Output::Lines(Lines::new(Box::new(std::io::stderr()), SILENCE))
        };
        Self::with(output, verbosity)
    }

    /// Plain lines to `writer`, at least one each `silence` while a task runs.
    pub fn lines(writer: Box<dyn std::io::Write + Send>, silence: Duration, verbosity: Verbosity) -> Self {
        Self::with(Output::Lines(Lines::new(writer, silence)), verbosity)
    }

    fn with(output: Output, verbosity: Verbosity) -> Self {
        Self {
            output,
            verbosity,
            begun: Instant::now(),
        }
    }

    /// Starts a task of `total` files or steps (`None` where unknown).
    pub fn task(&self, label: &str, total: Option<u64>) -> Task {
        self.start(label, total, Unit::Count)
    }

    /// Starts a task of `total` bytes (`None` where unknown).
    pub fn bytes(&self, label: &str, total: Option<u64>) -> Task {
        self.start(label, total, Unit::Bytes)
    }

    fn start(&self, label: &str, total: Option<u64>, unit: Unit) -> Task {
        let state = Arc::new(Running::new(label, total, unit));
        let display = match &self.output {
            _ if self.verbosity == Verbosity::Quiet => Display::None,
            Output::Silent => Display::None,
            Output::Bars(bars) => Display::Bar(bars.clone(), bar(bars, &state)),
            Output::Lines(lines) => {
                lines.begin(&state);
                Display::Line(Arc::clone(lines))
            }
        };
        Task { state, display }
    }

    /// Prints one line that stays, above any bars.
    pub fn line(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.print(text);
        }
    }

    /// Prints one line that stays, when the user asked for details (`-v`).
    pub fn detail(&self, text: &str) {
        if self.verbosity > Verbosity::Normal {
            self.print(text);
        }
    }

    /// Prints a warning that stays.
    pub fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
    }

    /// Prints how long it took since this `Progress` was made.
    pub fn total(&self, what: &str) {
        self.line(&format!("{what} in {}", duration(self.begun.elapsed())));
    }

    fn print(&self, text: &str) {
        match &self.output {
            Output::Silent => {}
            Output::Bars(bars) => print_above(bars, text),
            Output::Lines(lines) => lines.print(text),
        }
    }
}

/// `MultiProgress::println` draws nothing while there is no bar; `suspend` always lets us write.
fn print_above(bars: &MultiProgress, text: &str) {
    use std::io::Write;
    bars.suspend(|| {
        // A closed standard error is no reason to stop working.
        let _ = writeln!(std::io::stderr(), "{text}");
    });
}

fn bar(bars: &MultiProgress, state: &Running) -> ProgressBar {
    let template = match (state.unit, state.total) {
        (Unit::Bytes, Some(_)) => "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
        (Unit::Bytes, None) => "{prefix} {spinner} {bytes} {bytes_per_sec} {wide_msg}",
        (Unit::Count, Some(_)) => "{prefix} {wide_bar} {pos}/{len} {elapsed} {msg}",
        (Unit::Count, None) => "{prefix} {spinner} {elapsed} {wide_msg}",
    };
    let bar = bars.add(match state.total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    });
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(state.label.clone());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// One piece of work under way. Dropping it without [`Task::done`] removes its bar.
pub struct Task {
    state: Arc<Running>,
    display: Display,
}

enum Display {
    None,
    Bar(MultiProgress, ProgressBar),
    Line(Arc<Lines>),
}

impl Task {
    /// `count` more units are done.
    pub fn advance(&self, count: u64) {
        self.state.position.fetch_add(count, Ordering::Relaxed);
        if let Display::Bar(_, bar) = &self.display {
            bar.inc(count);
        }
    }

    /// `count` units must be done once more.
    pub fn rewind(&self, count: u64) {
        // Only ever what was advanced before, so it can't fall below zero.
        saturating_sub(&self.state.position, count);
        if let Display::Bar(_, bar) = &self.display {
            bar.set_position(self.state.position.load(Ordering::Relaxed));
        }
    }

    /// What is being worked on right now (a file name, a mirror).
    pub fn message(&self, text: &str) {
        match &self.display {
            Display::None => {}
            Display::Bar(_, bar) => bar.set_message(text.to_owned()),
            Display::Line(_) => self.state.set_message(text),
        }
    }

    /// The work is done; a line with its duration stays.
    pub fn done(self) {
        let summary = self.state.summary();
        match &self.display {
            Display::None => {}
            Display::Bar(bars, bar) => {
                bar.finish_and_clear();
                print_above(bars, &summary);
            }
            Display::Line(lines) => {
                lines.end(&self.state);
                lines.print(&summary);
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        match &self.display {
            Display::None => {}
            Display::Bar(bars, bar) => {
                bar.finish_and_clear();
                bars.remove(bar);
            }
            Display::Line(lines) => lines.end(&self.state),
        }
    }
}

fn saturating_sub(position: &AtomicU64, count: u64) {
    let _ = position.try_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
        Some(old.saturating_sub(count))
    });
}

#[cfg(test)]
mod tests;
