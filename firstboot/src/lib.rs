//! All kimage code that runs inside a machine: stage 0 in the initrd, then first boot in the real root.

pub mod backoff;
pub mod etcd;
pub mod failure;
pub mod gpt;
pub mod host;
pub mod http;
pub mod inventory;
pub mod join;
pub mod kubernetes;
pub mod ledger;
pub mod metadata;
pub mod platform;
pub mod record;
pub mod report;
pub mod selftest;
pub mod stage0;
pub mod state;
pub mod storage;
mod sysfs;
