//! Locked packages and components in, a root filesystem out.
//!
//! ```text
//! .debs -> unpack -> dpkg database -> configure (sandbox) -> scan -> layer (cached)
//! layers -> kernel taken out -> leave-outs -> normalise -> files -> units -> Tree
//! ```

mod assemble;
pub mod compile_root;
pub mod configure;
pub(crate) mod console;
pub mod containerd;
pub mod control;
pub mod deb;
pub mod dpkg;
pub mod index;
pub mod kernel;
pub mod layer;
pub mod leave_out;
pub mod normalise;
pub mod sandbox;
pub mod scan;
pub mod units;
pub mod unpack;
pub mod users;
mod value;

pub use assemble::{Assembled, Baked, InstalledPackage, Options, assemble, definition_folders, fingerprint};
pub use kernel::Kernel;
pub use layer::{Foreseen, Workshop};
pub use value::{Content, Entry, Kind, Tree, TreePath};
