//! Package archives as Debian and Ubuntu run them: signed releases, indexes, relations, and the solver over them.

pub mod age;
pub mod index;
pub mod mirrors;
pub mod relation;
pub mod signed;
pub mod solver;
pub mod suites;
pub mod version;
