//! All kimage code that runs inside a machine: stage 0 in the initrd, then first boot in the real root.

pub mod arguments;
pub mod control_plane;
pub mod gpt;
pub mod host;
pub mod kubelet;
pub mod layout;
pub mod machine;
pub mod objects;
pub mod pod_network;
pub mod rendered;
pub mod selftest;
pub mod stage0;
pub mod state;
pub mod storage;
mod sysfs;
pub mod tls;
