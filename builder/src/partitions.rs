//! The partitions of the disk: from the tree to the bytes of each filesystem and hash tree.

pub mod squashfs;
pub mod verity;
