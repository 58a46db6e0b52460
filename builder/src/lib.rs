//! The image builder. Data flows one way, each module knows only what stands left of it:
//!
//! ```text
//! definition -> archive -> lock -> inputs -> tree -> components -> partitions -> sign -> disk -> release
//! ```
//!
//! Beside the flow stand the modules that every stage may use: [`digest`], [`failure`], [`progress`],
//! [`store`], [`tool`], [`download`], [`qemu`], [`private`] and [`obstacle`]. Only the [`commands`] see all stages.
//! [`cli`] is what can be said on the command line, [`doctor`] what a host must offer. [`cluster`] stands outside of
//! the flow: it makes the secrets and documents of a cluster, and knows nothing of images. [`explain`] reads the console
//! of a machine, [`playground`] runs a cluster of them on this host.

pub mod archive;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod components;
pub mod definition;
pub mod digest;
pub mod disk;
pub mod doctor;
pub mod download;
pub mod explain;
pub mod failure;
pub mod inputs;
pub mod lock;
pub mod obstacle;
pub mod partitions;
pub mod pipeline;
pub mod playground;
pub mod private;
pub mod progress;
pub mod qemu;
pub mod release;
pub mod sign;
pub mod store;
pub mod tool;
pub mod tree;
