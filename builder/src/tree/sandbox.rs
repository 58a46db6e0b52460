//! The rootless sandbox in which packages are configured: any user's process becomes "root" of a user namespace
//! with a single mapped id, sees only the image's root filesystem, has no network and no host files, and what it
//! may not do for real (give files away, make device nodes, set file capabilities) is recorded instead.
//!
//! What a package's script does is not trusted: it may break the image that it is part of and nothing else. A filter
//! leaves it the system calls that packages need ([`filter`]), it has few capabilities even in its own namespace
//! (`privileges`), `/proc` is read-only, and memory, processes and files in memory are limited ([`Limits`]).
//!
//! ```text
//! kimage (many threads)          reads the log and the reply
//!   └─ kimage __sandbox          new namespaces; waits            inside::child_main
//!        └─ kimage __sandbox     PID 1: mounts, answers system    inside::run, supervisor
//!             │                  calls, reaps, collects owners
//!             └─ the command     under a seccomp filter           filter
//! ```
//!
//! A process that has threads can't enter a new user namespace, therefore the program runs itself again with the
//! hidden argument [`ARGUMENT`]; `main` must call [`child_main`] before anything else. The request and the reply are
//! JSON over a socket that the child finds as its standard input. Everything dies with the caller: each process
//! carries a parent-death signal, and the kernel kills a PID namespace with its first process.

mod call;
mod children;
pub mod delta;
mod filter;
mod inside;
mod limits;
mod mounts;
mod owners;
mod parent;
mod privileges;
mod probe;
mod record;
mod request;
mod supervisor;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use inside::child_main;
pub use limits::{Exceeded, Limits};
pub use owners::{Device, Owner, Owners};
pub use probe::{Capabilities, probe, probe_by};
use request::{Bind, Request, Root};
pub use request::{Counts, Ending};

/// The hidden first argument that makes this program the inside of a sandbox.
pub const ARGUMENT: &str = "__sandbox";

/// The extended attribute in which an inode of the build root carries its recorded [`Owner`]. Whoever reads the
/// root must not hand it on.
pub const OWNER_XATTR: &str = "user.kimage.owner";

/// Prefix of the attributes with which overlayfs marks an upper directory made in a user namespace.
pub const OVERLAY_XATTR_PREFIX: &str = "user.overlay.";

/// What every process in the sandbox finds in its environment; nothing of the host's comes in.
const ENVIRONMENT: [(&str, &str); 8] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("DPKG_FORCE", "unsafe-io"),
    ("INITRD", "No"),
];

/// A root filesystem and what else the commands run in it may see.
#[derive(Debug, Clone)]
pub struct Sandbox {
    program: PathBuf,
    root: Root,
    binds: Vec<Bind>,
    environment: Vec<(OsString, OsString)>,
    owners: Owners,
    limits: Limits,
}

/// How a command in the sandbox ended and what it left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status or signal of the command.
    pub ending: Ending,
    /// Every path of the root (in an overlay: of the merged root) that is not simply root's, now.
    pub owners: Owners,
    /// How many system calls were answered by the supervisor.
    pub counts: Counts,
}

impl Sandbox {
    /// A sandbox whose root is the directory `root`, changed in place. `dev`, `proc`, `run`, `sys` and `tmp` are
    /// made there if absent; what commands write below them vanishes with each run.
    pub fn directory(root: &Path) -> Self {
        Self::over(Root::Directory(root.into()))
    }

    /// A sandbox whose root is the directory `root`, which nothing inside can change. `root` holds the folders `dev`,
    /// `proc`, `run`, `sys`, `tmp` and the targets of all binds, or they are made.
    pub fn read_only(root: &Path) -> Self {
        Self::over(Root::ReadOnly(root.into()))
    }

    /// A sandbox whose root is `lower` (topmost first), never changed, with `upper` collecting the differences;
    /// `upper` and `work` are empty directories of one filesystem. Not every host can do it
    /// ([`Capabilities::overlay`]). [`delta::delta`] reads `upper`.
    pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> Self {
        let lower = lower.iter().map(|path| path.as_os_str().to_owned()).collect();
        Self::over(Root::Overlay {
            lower,
            upper: upper.into(),
            work: work.into(),
        })
    }

    fn over(root: Root) -> Self {
        let environment = ENVIRONMENT
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec();
        let program = PathBuf::from("/proc/self/exe");
        Self {
            program,
            root,
            binds: Vec::new(),
            environment,
            owners: Owners::default(),
            limits: Limits::default(),
        }
    }

    /// Allows the commands so much memory and so many processes, instead of the default.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Uses another program than the running one as the inside (`kimage` itself, when the caller is a test).
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Shows the host's file or directory `host` read-only at the absolute path `inside`. The target is made if
    /// absent: choose one below `/run` or `/tmp` and the root stays clean.
    #[must_use]
    pub fn bind(mut self, host: &Path, inside: &Path) -> Self {
        self.binds.push(Bind {
            host: host.into(),
            inside: inside.into(),
            writable: false,
        });
        self
    }

    /// The same, writable.
    #[must_use]
    pub fn bind_writable(mut self, host: &Path, inside: &Path) -> Self {
        self.binds.push(Bind {
            host: host.into(),
            inside: inside.into(),
            writable: true,
        });
        self
    }

    /// Sets one environment variable, replacing a fixed one of the same name.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let (name, value) = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value));
        self
    }

    /// Starts from owners recorded by an earlier sandbox over the same files. Those of files and directories are
    /// in the inodes anyway; this keeps the ones of symbolic links and of filesystems without `user.` attributes.
    #[must_use]
    pub fn owners(mut self, owners: &Owners) -> Self {
        self.owners = owners.clone();
        self
    }

    /// Runs `arguments` (the first is looked up in the sandbox's `PATH`) with `/` as working directory and no
    /// input, until it ends; what it started and left running is killed. `log` gets each line of standard output
    /// and standard error, without the line feed; a line longer than 64 KiB comes in pieces.
    ///
    /// # Errors
    /// When the sandbox can't be set up: a [`crate::failure::Failure`] with exit code 6 and the remedy. A command
    /// that fails is not an error: see [`Outcome::ending`].
    pub fn run<A: AsRef<OsStr>>(
        &mut self,
        arguments: impl IntoIterator<Item = A>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        let arguments: Vec<OsString> = arguments
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        let shown = arguments
            .first()
            .map(|word| word.to_string_lossy().into_owned())
            .context("empty command")?;
        let request = Request {
            parent: std::process::id(),
            root: self.root.clone(),
            binds: self.binds.clone(),
            environment: self.environment.clone(),
            arguments,
            owners: self.owners.clone(),
            limits: self.limits,
        };
        let outcome = parent::run(&self.program, &request, log)
            .with_context(|| format!("run `{shown}` in the sandbox"))?;
        self.owners = outcome.owners.clone();
        Ok(outcome)
    }
}
