//! (to come)

pub mod pcr;
