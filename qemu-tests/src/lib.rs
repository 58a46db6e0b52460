//! The bench on which images boot: a [`machine::Machine`] is one QEMU process with its console and its control
//! socket. The claims about images are in `tests/`.

pub mod accelerator;
pub mod console;
pub mod control;
pub mod images;
pub mod machine;
