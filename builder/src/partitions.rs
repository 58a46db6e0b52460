//! The partitions of the disk: from the tree to the bytes of each filesystem and hash tree.

pub mod esp;
pub mod guid;
pub mod initrd;
pub mod squashfs;
pub mod uki;
pub mod verity;
