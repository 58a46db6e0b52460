//! The image builder. Data flows one way, each module knows only what stands left of it:
//!
//! ```text
//! definition -> lock -> inputs -> components -> tree -> partitions -> sign -> disk -> release
//! ```
//!
//! Beside the flow stand the modules that every stage may use: [`digest`], [`failure`], [`progress`],
//! [`store`] and [`tool`]. Only [`pipeline`] and the commands see all stages.

pub mod archive;
pub mod components;
pub mod definition;
pub mod digest;
pub mod disk;
pub mod failure;
pub mod inputs;
pub mod lock;
pub mod partitions;
pub mod progress;
pub mod release;
pub mod sign;
pub mod store;
pub mod tool;
pub mod tree;
