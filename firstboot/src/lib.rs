//! All kimage code that runs inside a machine: stage 0 in the initrd, then first boot in the real root.

pub mod gpt;
pub mod stage0;
pub mod storage;
