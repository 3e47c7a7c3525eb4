//! Hash trees of directories: what index blocks hold.
//!
//! The root is block 0 of the directory: entries for `.` and `..`, of which the second spans the
//! rest of the block, then [`RawDxRootInfo`] and the entries. An inner node starts with an unused
//! entry that spans the block. The first index entry has no hash; its place holds limit and count.
//! Kernel page: filesystems/ext4/directory, "Hash Tree Directories".

use crate::checksum::crc32c;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `hash_version`: the old hash of ext2, signed characters.
pub const HASH_LEGACY: u8 = 0;
/// `hash_version`: half MD4, signed.
pub const HASH_HALF_MD4: u8 = 1;
/// `hash_version`: TEA, signed.
pub const HASH_TEA: u8 = 2;
/// Added to a version where characters are unsigned; only in memory.
pub const HASH_UNSIGNED: u8 = 3;
/// `info_length`.
pub const ROOT_INFO_SIZE: u8 = 8;
/// Offset of the root's info: after `.` and `..`.
pub const ROOT_INFO_OFFSET: usize = 24;
/// Offset of the entries in the root.
pub const ROOT_ENTRIES_OFFSET: usize = 32;
/// Offset of the entries in an inner node.
pub const NODE_ENTRIES_OFFSET: usize = 8;
/// Bytes of an entry.
pub const DX_ENTRY_SIZE: usize = 8;
/// Deepest tree (`indirect_levels`) without large_dir.
pub const MAX_LEVELS: u8 = 1;
/// Deepest tree with large_dir.
pub const MAX_LEVELS_LARGE: u8 = 2;

/// What the root knows of the tree.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDxRootInfo {
    pub reserved_zero: U32,
    pub hash_version: u8,
    pub info_length: u8,
    pub indirect_levels: u8,
    pub unused_flags: u8,
}
const _: () = assert!(size_of::<RawDxRootInfo>() == ROOT_INFO_SIZE as usize);

/// Limit and count of the entries, in the place of the first one's hash.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDxCountLimit {
    pub limit: U16,
    pub count: U16,
}
const _: () = assert!(size_of::<RawDxCountLimit>() == 4);

/// Entry: the lowest hash in a block (bit 0: a collision continues there), and the block.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDxEntry {
    pub hash: U32,
    pub block: U32,
}
const _: () = assert!(size_of::<RawDxEntry>() == DX_ENTRY_SIZE);

/// Checksum behind the last possible entry.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDxTail {
    pub dt_reserved: U32,
    pub dt_checksum: U32,
}
const _: () = assert!(size_of::<RawDxTail>() == 8);

/// Entries that fit an index block whose entries start at `entries_offset`.
#[must_use]
pub fn entry_limit(block_size: u32, entries_offset: usize, has_checksum: bool) -> u16 {
    let tail = if has_checksum {
        size_of::<RawDxTail>()
    } else {
        0
    };
    ((block_size as usize - entries_offset - tail) / DX_ENTRY_SIZE) as u16
}

/// Bytes in use and offset of the tail; `None` where the counts do not fit the block.
fn extent_of(block: &[u8], entries_offset: usize) -> Option<(usize, usize)> {
    let (counts, _) = RawDxCountLimit::ref_from_prefix(block.get(entries_offset..)?).ok()?;
    let (limit, count) = (
        usize::from(counts.limit.get()),
        usize::from(counts.count.get()),
    );
    let tail = entries_offset + limit * DX_ENTRY_SIZE;
    let ok = count <= limit && tail + size_of::<RawDxTail>() <= block.len();
    ok.then_some((entries_offset + count * DX_ENTRY_SIZE, tail))
}

fn checksum(seed: u32, block: &[u8], used: usize, tail: usize) -> u32 {
    let value = crc32c(seed, &block[..used]);
    let value = crc32c(value, &block[tail..tail + 4]);
    crc32c(value, &[0; 4])
}

/// Whether the checksum of an index block is right. `entries_offset` tells root and inner node
/// apart; `seed` is the directory inode's, without one there is no checksum.
#[must_use]
pub fn verify_checksum(seed: Option<u32>, block: &[u8], entries_offset: usize) -> bool {
    let Some(seed) = seed else { return true };
    let Some((used, tail)) = extent_of(block, entries_offset) else {
        return false;
    };
    let (stored, _) = RawDxTail::ref_from_prefix(&block[tail..]).expect("within the block");
    stored.dt_checksum.get() == checksum(seed, block, used, tail)
}

/// Stores the checksum of an index block.
///
/// # Panics
/// When limit and count do not fit the block: it was checked or made by us.
pub fn update_checksum(seed: Option<u32>, block: &mut [u8], entries_offset: usize) {
    let Some(seed) = seed else { return };
    let (used, tail) = extent_of(block, entries_offset).expect("counts of an index block");
    let value = checksum(seed, block, used, tail);
    block[tail + 4..tail + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(entry_limit(4096, ROOT_ENTRIES_OFFSET, false), 508);
        assert_eq!(entry_limit(4096, ROOT_ENTRIES_OFFSET, true), 507);
        assert_eq!(entry_limit(4096, NODE_ENTRIES_OFFSET, true), 510);
    }

    #[test]
    fn checksum_refuses_impossible_counts() {
        let mut block = vec![0u8; 1024];
        block[32..36].copy_from_slice(&[123, 0, 2, 0]);
        update_checksum(Some(9), &mut block, ROOT_ENTRIES_OFFSET);
        assert!(verify_checksum(Some(9), &block, ROOT_ENTRIES_OFFSET));
        block[34] = 124;
        assert!(!verify_checksum(Some(9), &block, ROOT_ENTRIES_OFFSET));
    }
}
