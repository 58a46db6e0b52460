//! What the user sees while work goes on: bars on a terminal, plain lines otherwise, always on standard error.

/// Where progress goes. Cheap to clone; every stage gets one.
#[derive(Clone)]
pub struct Progress {}

impl Progress {
    /// Says nothing: for tests.
    pub fn silent() -> Self {
        Self {}
    }

    /// Starts a task of `total` units (bytes, files or steps; `None` where unknown).
    pub fn task(&self, _label: &str, _total: Option<u64>) -> Task {
        Task {}
    }

    /// Prints one line that stays, above any bars.
    pub fn line(&self, _text: &str) {}

    /// Prints a warning that stays.
    pub fn warn(&self, _text: &str) {}
}

/// One piece of work under way. Dropping it without [`Task::done`] removes its bar.
pub struct Task {}

impl Task {
    /// `count` more units are done.
    pub fn advance(&self, _count: u64) {}

    /// What is being worked on right now (a file name, a mirror).
    pub fn message(&self, _text: &str) {}

    /// The work is done; a line with its duration stays.
    pub fn done(self) {}
}
