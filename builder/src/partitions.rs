//! The partitions of the disk: from the tree to the bytes of each filesystem and hash tree.

pub mod boot;
pub mod esp;
pub mod guid;
pub mod initrd;
pub mod root;
pub mod squashfs;
pub mod uki;
pub mod verity;
