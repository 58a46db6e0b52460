//! What crosses the socket between the caller and the inside of the sandbox.

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::{Exceeded, Limits};
use super::owners::Owners;

/// All that the inside needs to know. Paths are `OsString`s because those survive JSON whatever their bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Process id of the caller, to notice its death before the parent-death signal was armed.
    pub(super) parent: u32,
    pub(super) root: Root,
    pub(super) binds: Vec<Bind>,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// The command; empty for the probe, which tests itself instead.
    pub(super) arguments: Vec<OsString>,
    pub(super) owners: Owners,
    pub(super) limits: Limits,
}

/// What becomes `/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Root {
    Directory(OsString),
    /// The same, read-only once everything is mounted.
    ReadOnly(OsString),
    Overlay {
        lower: Vec<OsString>,
        upper: OsString,
        work: OsString,
    },
}

/// A host path shown inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Bind {
    pub(super) host: OsString,
    pub(super) inside: OsString,
    pub(super) writable: bool,
}

/// The only message back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Finished {
        ending: Ending,
        owners: Owners,
        counts: Counts,
    },
    Failed {
        step: Step,
        detail: String,
        errno: i32,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// With all that it had started, for using more than [`Limits`] allow.
    Exceeded(Exceeded),
}

impl Ending {
    /// Whether the command ended with exit status 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::Exceeded(limit) => write!(f, "stopped: it used more than {limit}"),
        }
    }
}

/// How many system calls the supervisor answered, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// `chown` and its relatives.
    pub chown: u64,
    /// `mknod` and `mknodat`.
    pub mknod: u64,
    /// `setuid` and its relatives.
    pub identity: u64,
    /// `setxattr`, `removexattr` and their relatives.
    pub xattr: u64,
    /// `rename` and its relatives.
    pub rename: u64,
}

/// The step of setting up that failed: decides the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    Namespaces,
    IdMap,
    Root,
    Overlay,
    Proc,
    Mounts,
    Filter,
    Command,
    Other,
}

/// A failed step on its way to a [`Reply::Failed`].
#[derive(Debug)]
pub(super) struct SetupError {
    pub(super) step: Step,
    pub(super) detail: String,
    pub(super) errno: i32,
}

/// Says which step an input/output error belongs to.
pub(super) trait At<T> {
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, SetupError>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, SetupError> {
        self.map_err(|error| {
            let errno = error.into().raw_os_error().unwrap_or(0);
            SetupError {
                step,
                detail: detail.into(),
                errno,
            }
        })
    }
}
