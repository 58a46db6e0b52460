//! Bench A: machines in namespaces, at the processor's own speed. Each boots the root filesystem of a built image (the
//! very bytes of its root partition) with the image's own systemd, on a bridge with HAProxy in front. What is below
//! systemd (firmware, kernel, stage 0, disks) is bench B's matter: its virtual machines are plugged into the same network.

pub mod balancer;
pub mod cluster;
mod control_groups;
pub mod delay;
mod kernel;
pub mod leases;
pub mod loss;
pub mod machine;
pub mod metadata;
pub mod network;
