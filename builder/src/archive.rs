//! Package archives as Debian and Ubuntu run them: signed releases, indexes, relations, and the solver over them.

pub mod index;
pub mod relation;
pub mod signed;
pub mod solver;
pub mod version;
