//! All kimage code that runs inside a machine: stage 0 in the initrd, then first boot in the real root.

pub mod containers;
pub mod gpt;
mod host;
mod role;
pub mod selftest;
pub mod stage0;
pub mod state;
pub mod storage;
mod sysfs;
