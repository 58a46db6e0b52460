//! The tree stage on real packages: what dpkg itself would have made, the same on every host, in two layers.
//! The packages are those that the lock of ubuntu-24.04 names for the worker. Run as root: the real dpkg needs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "tree/content.rs"]
mod content;
#[path = "tree/dpkg.rs"]
mod dpkg;
#[path = "tree/fixture.rs"]
mod fixture;
#[path = "tree/same.rs"]
mod same;
