//! What a disk carries: the boot partition's files and filesystem, and the sealed root.

pub mod esp;
pub mod guid;
pub mod uki;
