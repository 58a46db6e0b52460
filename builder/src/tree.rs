//! Locked packages and components in, a root filesystem out.

pub mod configure;
pub mod control;
pub mod deb;
pub mod dpkg;
pub mod index;
pub mod layer;
pub mod leave_out;
pub mod sandbox;
pub mod scan;
pub mod unpack;
pub mod users;
mod value;

pub use value::{Content, Entry, Kind, Tree, TreePath};
