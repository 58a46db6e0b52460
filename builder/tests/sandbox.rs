//! The sandbox, from outside: each test runs real commands (busybox, or this test program itself) in it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the programs that they compare with"
)]

#[path = "sandbox/files.rs"]
mod files;
#[path = "sandbox/fixture.rs"]
mod fixture;
#[path = "sandbox/host.rs"]
mod host;
#[path = "sandbox/limits.rs"]
mod limits;
#[path = "sandbox/owners.rs"]
mod owners;
#[path = "sandbox/processes.rs"]
mod processes;
#[path = "sandbox/walls.rs"]
mod walls;
