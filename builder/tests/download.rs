//! Fetching against servers that stall, lie, cut, change and vanish.

#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

#[path = "download/fixture.rs"]
mod fixture;
#[path = "download/host.rs"]
mod host;
#[path = "download/mirrors.rs"]
mod mirrors;
#[path = "download/proxy.rs"]
mod proxy;
#[path = "download/resume.rs"]
mod resume;
#[path = "download/server.rs"]
mod server;
#[path = "download/store.rs"]
mod store;
