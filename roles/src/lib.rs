//! The contract between the image builder and the code that runs inside the image: the types of the files that one
//! side writes and the other reads.

pub mod cause;
pub mod certificate;
pub mod containers;
pub mod inventory;
pub mod node_config;
pub mod pem;
pub mod role;
pub mod secret;
pub mod slot;
pub mod stage0;
pub mod status;
