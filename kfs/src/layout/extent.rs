//! Nodes of extent trees: a header, then index or leaf entries, in blocks also a checksum.
//!
//! Kernel page: filesystems/ext4/ifork. The root lies in the 60 bytes of the inode and has no
//! checksum of its own.

use crate::checksum::crc32c;
use crate::ids::{BlockNr, LogicalBlock};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `eh_magic`.
pub const EXTENT_MAGIC: u16 = 0xf30a;
/// Depth that no valid tree exceeds.
pub const MAX_DEPTH: u16 = 5;
/// Blocks of the longest initialised extent.
pub const MAX_INIT_LEN: u32 = 32768;
/// Blocks of the longest unwritten extent.
pub const MAX_UNWRITTEN_LEN: u32 = 32767;
/// Bytes of a header, and of each entry.
pub const ENTRY_SIZE: usize = 12;
/// Entries of the root in an inode.
pub const ROOT_ENTRIES: u16 = 4;

/// Header of a node.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawExtentHeader {
    pub eh_magic: U16,
    pub eh_entries: U16,
    pub eh_max: U16,
    pub eh_depth: U16,
    pub eh_generation: U32,
}
const _: () = assert!(size_of::<RawExtentHeader>() == ENTRY_SIZE);

/// Entry of an inner node.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawExtentIndex {
    pub ei_block: U32,
    pub ei_leaf_lo: U32,
    pub ei_leaf_hi: U16,
    pub ei_unused: U16,
}
const _: () = assert!(size_of::<RawExtentIndex>() == ENTRY_SIZE);

/// Entry of a leaf.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawExtentLeaf {
    pub ee_block: U32,
    pub ee_len: U16,
    pub ee_start_hi: U16,
    pub ee_start_lo: U32,
}
const _: () = assert!(size_of::<RawExtentLeaf>() == ENTRY_SIZE);

/// Checksum behind the last possible entry of a node in a block.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawExtentTail {
    pub et_checksum: U32,
}
const _: () = assert!(size_of::<RawExtentTail>() == 4);

impl RawExtentHeader {
    /// Header of an empty node.
    #[must_use]
    pub fn new(max: u16, depth: u16) -> Self {
        Self {
            eh_magic: U16::new(EXTENT_MAGIC),
            eh_entries: U16::new(0),
            eh_max: U16::new(max),
            eh_depth: U16::new(depth),
            eh_generation: U32::new(0),
        }
    }

    /// Entries that fit a block; the tail fits behind them at every block size.
    #[must_use]
    pub fn block_entries(block_size: u32) -> u16 {
        ((block_size as usize - ENTRY_SIZE) / ENTRY_SIZE) as u16
    }
}

impl RawExtentIndex {
    /// An entry for the child that starts at `block`.
    #[must_use]
    pub fn new(block: LogicalBlock, child: BlockNr) -> Self {
        Self {
            ei_block: U32::new(block.0),
            ei_leaf_lo: U32::new(child.0 as u32),
            ei_leaf_hi: U16::new((child.0 >> 32) as u16),
            ei_unused: U16::new(0),
        }
    }

    /// First logical block below this entry.
    #[must_use]
    pub fn logical(&self) -> LogicalBlock {
        LogicalBlock(self.ei_block.get())
    }

    /// Block of the child node.
    #[must_use]
    pub fn child(&self) -> BlockNr {
        BlockNr(u64::from(self.ei_leaf_lo.get()) | u64::from(self.ei_leaf_hi.get()) << 32)
    }
}

impl RawExtentLeaf {
    /// An entry for a run of `len` blocks.
    ///
    /// # Panics
    /// When `len` is 0 or beyond what the kind of extent can hold.
    #[must_use]
    pub fn new(block: LogicalBlock, start: BlockNr, len: u32, unwritten: bool) -> Self {
        let limit = if unwritten {
            MAX_UNWRITTEN_LEN
        } else {
            MAX_INIT_LEN
        };
        assert!((1..=limit).contains(&len), "length of an extent");
        let stored = if unwritten { len + MAX_INIT_LEN } else { len };
        Self {
            ee_block: U32::new(block.0),
            ee_len: U16::new(stored as u16),
            ee_start_hi: U16::new((start.0 >> 32) as u16),
            ee_start_lo: U32::new(start.0 as u32),
        }
    }

    /// First logical block.
    #[must_use]
    pub fn logical(&self) -> LogicalBlock {
        LogicalBlock(self.ee_block.get())
    }

    /// First physical block.
    #[must_use]
    pub fn physical(&self) -> BlockNr {
        BlockNr(u64::from(self.ee_start_lo.get()) | u64::from(self.ee_start_hi.get()) << 32)
    }

    /// Length in blocks. 0 in damaged images only.
    #[must_use]
    pub fn len(&self) -> u32 {
        let stored = u32::from(self.ee_len.get());
        // 32768 itself is the longest initialised extent.
        if stored > MAX_INIT_LEN {
            stored - MAX_INIT_LEN
        } else {
            stored
        }
    }

    /// Whether the length is 0, which no valid entry has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ee_len.get() == 0
    }

    /// Whether the blocks are allocated but read as zeros.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        u32::from(self.ee_len.get()) > MAX_INIT_LEN
    }
}

/// Offset of the tail of a node in a block, `None` when the header leaves no room for one.
fn tail_offset(node: &[u8]) -> Option<usize> {
    let (header, _) = RawExtentHeader::ref_from_prefix(node).ok()?;
    let offset = ENTRY_SIZE + ENTRY_SIZE * usize::from(header.eh_max.get());
    (offset + size_of::<RawExtentTail>() <= node.len()).then_some(offset)
}

/// Whether the checksum of a node in a block is right. `seed` is the inode's
/// ([`Geometry::inode_seed`](super::Geometry::inode_seed)); without one there is no checksum.
#[must_use]
pub fn verify_checksum(seed: Option<u32>, node: &[u8]) -> bool {
    let Some(seed) = seed else { return true };
    let Some(offset) = tail_offset(node) else {
        return false;
    };
    let stored = U32::ref_from_prefix(&node[offset..])
        .expect("within the node")
        .0;
    stored.get() == crc32c(seed, &node[..offset])
}

/// Stores the checksum of a node in a block.
///
/// # Panics
/// When `eh_max` leaves no room for the checksum: the node was checked or made by us.
pub fn update_checksum(seed: Option<u32>, node: &mut [u8]) {
    let Some(seed) = seed else { return };
    let offset = tail_offset(node).expect("room for the checksum of an extent node");
    let value = crc32c(seed, &node[..offset]);
    node[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let at = |len, unwritten| {
            let leaf =
                RawExtentLeaf::new(LogicalBlock(1), BlockNr(0x1234_5678_9abc), len, unwritten);
            assert_eq!(leaf.physical(), BlockNr(0x1234_5678_9abc));
            (leaf.ee_len.get(), leaf.len(), leaf.is_unwritten())
        };
        assert_eq!(at(32768, false), (32768, 32768, false));
        assert_eq!(at(1, true), (32769, 1, true));
        assert_eq!(at(32767, true), (65535, 32767, true));
    }

    #[test]
    fn checksum_needs_room() {
        let mut node = vec![0u8; 1024];
        RawExtentHeader::new(RawExtentHeader::block_entries(1024), 0)
            .write_to_prefix(&mut node)
            .unwrap();
        update_checksum(Some(1), &mut node);
        assert!(verify_checksum(Some(1), &node));
        assert!(!verify_checksum(Some(2), &node));
        RawExtentHeader::new(u16::MAX, 0)
            .write_to_prefix(&mut node)
            .unwrap();
        assert!(!verify_checksum(Some(1), &node));
    }
}
