//! The partitions' contents.

pub mod initrd;
