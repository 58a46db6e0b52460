//! The contract between the image builder and the code that runs inside the image: the types of the files that one
//! side writes and the other reads.

pub mod containers;
pub mod role;
pub mod slot;
pub mod stage0;
