//! A slot: the two partitions that hold one version of an image. An image's file has one slot, no larger than need
//! be; first boot makes a second one and lets the first grow, so that a later version with a larger root fits in
//! either. The hash partition lies before the root and can't grow: the builder gives it its final size.

/// Partitions are multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;

/// Least and greatest size of a root partition that a role may declare, in MiB.
pub const DECLARED_MIB: std::ops::RangeInclusive<u32> = 64..=65_536;

/// What a slot's size is a multiple of, unless it is declared.
const STEP: u64 = 64 << 20;

/// dm-verity with SHA-256: blocks of this many bytes, and digests in one of them.
const BLOCK: u64 = 4096;
const DIGESTS: u64 = 128;

/// Sizes of a slot's partitions in bytes, multiples of [`ALIGNMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The root partition.
    pub root: u64,
    /// The partition of its hash tree.
    pub hashes: u64,
}

impl Slot {
    /// The slot for a root filesystem of `root` bytes: as large as the role declares (in MiB), else with half as
    /// much again for later versions. Never smaller than the root.
    pub fn new(root: u64, declared_mib: Option<u32>) -> Self {
        let root = root.max(1).next_multiple_of(ALIGNMENT);
        let root = match declared_mib {
            Some(mib) => root.max(u64::from(mib) << 20),
            None => (root + root / 2).next_multiple_of(STEP),
        };
        Self {
            root,
            hashes: hash_tree(root).next_multiple_of(ALIGNMENT),
        }
    }
}

/// Bytes of superblock and hash tree for `root` bytes of data.
fn hash_tree(root: u64) -> u64 {
    let mut level = root.div_ceil(BLOCK);
    let mut blocks = 1;
    while level > 1 {
        level = level.div_ceil(DIGESTS);
        blocks += level;
    }
    blocks * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn half_as_much_again_is_left_for_later_versions() {
        assert_eq!(Slot::new(188 * MIB - 5, None).root, 320 * MIB);
        assert_eq!(Slot::new(1, None).root, 64 * MIB);
        // What the builder computes from the filesystem, the machine computes from its partition.
        assert_eq!(Slot::new(187 * MIB + 1, None), Slot::new(188 * MIB, None));
    }

    #[test]
    fn a_declared_size_counts_but_for_a_larger_root() {
        assert_eq!(Slot::new(188 * MIB, Some(500)).root, 500 * MIB);
        assert_eq!(Slot::new(188 * MIB, Some(100)).root, 188 * MIB);
    }

    #[test]
    fn hash_trees_have_veritysetups_size() {
        // `veritysetup format` of 1 block, 128, 129 and 81 920 blocks (320 MiB).
        for (blocks, bytes) in [(1, 4096), (128, 8192), (129, 16_384), (81_920, 2_650_112)] {
            assert_eq!(hash_tree(blocks * BLOCK), bytes, "{blocks}");
        }
        assert_eq!(Slot::new(188 * MIB, None).hashes, 3 * MIB);
    }
}
