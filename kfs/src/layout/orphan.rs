//! Orphans: inodes without a name that are still open, or whose truncation is not finished.
//!
//! Two forms. The *list* starts at `s_last_orphan`; each inode's `i_dtime` is the next, 0 ends it.
//! The *orphan file* (feature orphan_file) has blocks full of inode numbers, 0 for a free place, and
//! a tail; `orphan_present` says that it may have entries. Kernel page: filesystems/ext4/orphan.

use crate::checksum::crc32c;
use crate::ids::BlockNr;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `ob_magic`.
pub const ORPHAN_MAGIC: u32 = 0x0b10_ca04;

/// End of each block of the orphan file.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawOrphanTail {
    pub ob_magic: U32,
    pub ob_checksum: U32,
}
/// Bytes of a [`RawOrphanTail`].
pub const ORPHAN_TAIL_SIZE: usize = 8;
const _: () = assert!(size_of::<RawOrphanTail>() == ORPHAN_TAIL_SIZE);

/// Inode numbers in one block.
#[must_use]
pub fn entries_per_block(block_size: u32) -> usize {
    (block_size as usize - ORPHAN_TAIL_SIZE) / 4
}

fn checksum(seed: u32, nr: BlockNr, block: &[u8]) -> u32 {
    let entries = entries_per_block(block.len() as u32) * 4;
    crc32c(crc32c(seed, &nr.0.to_le_bytes()), &block[..entries])
}

/// The tail of a block.
fn tail(block: &[u8]) -> Option<&RawOrphanTail> {
    RawOrphanTail::ref_from_suffix(block).ok().map(|t| t.1)
}

/// Whether the block ends with the magic.
#[must_use]
pub fn has_magic(block: &[u8]) -> bool {
    tail(block).is_some_and(|t| t.ob_magic.get() == ORPHAN_MAGIC)
}

/// Whether the checksum is right. `seed` is that of the orphan file's inode, `nr` the physical
/// block; without a seed there is no checksum.
#[must_use]
pub fn verify_checksum(seed: Option<u32>, nr: BlockNr, block: &[u8]) -> bool {
    let Some(seed) = seed else { return true };
    tail(block).is_some_and(|t| t.ob_checksum.get() == checksum(seed, nr, block))
}

/// Writes the tail: magic and, where metadata has them, the checksum.
///
/// # Panics
/// When the block is shorter than a tail.
pub fn update_tail(seed: Option<u32>, nr: BlockNr, block: &mut [u8]) {
    let value = seed.map_or(0, |seed| checksum(seed, nr, block));
    let (_, tail) = RawOrphanTail::mut_from_suffix(block).expect("size of an orphan block");
    tail.ob_magic = U32::new(ORPHAN_MAGIC);
    tail.ob_checksum = U32::new(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        let mut block = vec![0u8; 1024];
        assert!(!has_magic(&block));
        block[0] = 12;
        update_tail(Some(5), BlockNr(9), &mut block);
        assert!(has_magic(&block) && verify_checksum(Some(5), BlockNr(9), &block));
        assert!(!verify_checksum(Some(5), BlockNr(10), &block));
        assert_eq!(entries_per_block(4096), 1022);
    }
}
