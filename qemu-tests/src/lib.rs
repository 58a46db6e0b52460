//! The bench on which images boot: a [`machine::Machine`] is one QEMU process with its console and its control
//! socket, and lives by a [`clock::Clock`]; a [`cluster::Cluster`] is made of machines in namespaces or of virtual ones.
//! [`packages`], [`programs`] and [`small_image`] are what tests work on, [`processes`] starts what must not outlive them and tells when
//! somebody else's have ended. The claims about images are in `tests/`.

pub mod accelerator;
pub mod clock;
pub mod cluster;
pub mod components;
pub mod console;
pub mod control;
pub mod images;
pub mod kubeadm;
pub mod machine;
pub mod namespaces;
pub mod packages;
pub mod processes;
pub mod programs;
mod random;
pub mod shipped;
pub mod small_image;
