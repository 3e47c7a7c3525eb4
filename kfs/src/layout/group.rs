//! Group descriptors, in the form of 32 bytes and that of 64.
//!
//! In memory a descriptor always has 64 bytes; the upper half is zero where the volume has the
//! short form. Kernel page: filesystems/ext4/group_descr.

use super::geometry::Geometry;
use crate::checksum::{crc16, crc32c};
use crate::ids::{BlockNr, GroupNr};
use bitflags::bitflags;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags! {
    /// State of a group's bitmaps and table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GroupFlags: u16 {
        /// No inode is used; the inode bitmap on disk is not valid.
        const INODE_UNINIT = 1;
        /// Only fixed metadata is used; the block bitmap on disk is not valid.
        const BLOCK_UNINIT = 2;
        /// The unused part of the inode table reads as zeros.
        const INODE_ZEROED = 4;
        const _ = !0;
    }
}

/// A group descriptor as on disk, long form.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawGroupDesc {
    pub bg_block_bitmap_lo: U32,
    pub bg_inode_bitmap_lo: U32,
    pub bg_inode_table_lo: U32,
    pub bg_free_blocks_count_lo: U16,
    pub bg_free_inodes_count_lo: U16,
    pub bg_used_dirs_count_lo: U16,
    pub bg_flags: U16,
    pub bg_exclude_bitmap_lo: U32,
    pub bg_block_bitmap_csum_lo: U16,
    pub bg_inode_bitmap_csum_lo: U16,
    pub bg_itable_unused_lo: U16,
    pub bg_checksum: U16,
    pub bg_block_bitmap_hi: U32,
    pub bg_inode_bitmap_hi: U32,
    pub bg_inode_table_hi: U32,
    pub bg_free_blocks_count_hi: U16,
    pub bg_free_inodes_count_hi: U16,
    pub bg_used_dirs_count_hi: U16,
    pub bg_itable_unused_hi: U16,
    pub bg_exclude_bitmap_hi: U32,
    pub bg_block_bitmap_csum_hi: U16,
    pub bg_inode_bitmap_csum_hi: U16,
    pub bg_reserved: U32,
}
const _: () = assert!(size_of::<RawGroupDesc>() == 64);
const _: () = assert!(offset_of!(RawGroupDesc, bg_block_bitmap_hi) == 32);

fn join32(lo: U32, hi: U32) -> BlockNr {
    BlockNr(u64::from(lo.get()) | u64::from(hi.get()) << 32)
}

fn join16(lo: U16, hi: U16) -> u32 {
    u32::from(lo.get()) | u32::from(hi.get()) << 16
}

fn split32(block: BlockNr) -> (U32, U32) {
    (U32::new(block.0 as u32), U32::new((block.0 >> 32) as u32))
}

fn split16(count: u32) -> (U16, U16) {
    (U16::new(count as u16), U16::new((count >> 16) as u16))
}

impl RawGroupDesc {
    /// Reads a descriptor of 32 or 64 bytes, which is the length of `bytes`.
    ///
    /// # Panics
    /// When `bytes` has another length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        assert!(
            matches!(bytes.len(), 32 | 64),
            "length of a group descriptor"
        );
        let mut desc = Self::new_zeroed();
        desc.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        desc
    }

    /// Writes a descriptor of 32 or 64 bytes, which is the length of `bytes`.
    ///
    /// # Panics
    /// When `bytes` has another length.
    pub fn write_to_slice(&self, bytes: &mut [u8]) {
        assert!(
            matches!(bytes.len(), 32 | 64),
            "length of a group descriptor"
        );
        bytes.copy_from_slice(&self.as_bytes()[..bytes.len()]);
    }

    /// State of bitmaps and table.
    #[must_use]
    pub fn flags(&self) -> GroupFlags {
        GroupFlags::from_bits_retain(self.bg_flags.get())
    }

    /// Sets the state of bitmaps and table.
    pub fn set_flags(&mut self, flags: GroupFlags) {
        self.bg_flags = U16::new(flags.bits());
    }

    /// Block of the block bitmap.
    #[must_use]
    pub fn block_bitmap(&self) -> BlockNr {
        join32(self.bg_block_bitmap_lo, self.bg_block_bitmap_hi)
    }

    /// Block of the inode bitmap.
    #[must_use]
    pub fn inode_bitmap(&self) -> BlockNr {
        join32(self.bg_inode_bitmap_lo, self.bg_inode_bitmap_hi)
    }

    /// First block of the inode table.
    #[must_use]
    pub fn inode_table(&self) -> BlockNr {
        join32(self.bg_inode_table_lo, self.bg_inode_table_hi)
    }

    /// Free blocks of the group (clusters with bigalloc).
    #[must_use]
    pub fn free_blocks_count(&self) -> u32 {
        join16(self.bg_free_blocks_count_lo, self.bg_free_blocks_count_hi)
    }

    /// Free inodes of the group.
    #[must_use]
    pub fn free_inodes_count(&self) -> u32 {
        join16(self.bg_free_inodes_count_lo, self.bg_free_inodes_count_hi)
    }

    /// Directories in the group.
    #[must_use]
    pub fn used_dirs_count(&self) -> u32 {
        join16(self.bg_used_dirs_count_lo, self.bg_used_dirs_count_hi)
    }

    /// Inodes at the end of the table that were never used. Meaningful with group checksums only.
    #[must_use]
    pub fn itable_unused(&self) -> u32 {
        join16(self.bg_itable_unused_lo, self.bg_itable_unused_hi)
    }

    /// Sets the block of the block bitmap.
    pub fn set_block_bitmap(&mut self, block: BlockNr) {
        (self.bg_block_bitmap_lo, self.bg_block_bitmap_hi) = split32(block);
    }

    /// Sets the block of the inode bitmap.
    pub fn set_inode_bitmap(&mut self, block: BlockNr) {
        (self.bg_inode_bitmap_lo, self.bg_inode_bitmap_hi) = split32(block);
    }

    /// Sets the first block of the inode table.
    pub fn set_inode_table(&mut self, block: BlockNr) {
        (self.bg_inode_table_lo, self.bg_inode_table_hi) = split32(block);
    }

    /// Sets the count of free blocks.
    pub fn set_free_blocks_count(&mut self, count: u32) {
        (self.bg_free_blocks_count_lo, self.bg_free_blocks_count_hi) = split16(count);
    }

    /// Sets the count of free inodes.
    pub fn set_free_inodes_count(&mut self, count: u32) {
        (self.bg_free_inodes_count_lo, self.bg_free_inodes_count_hi) = split16(count);
    }

    /// Sets the count of directories.
    pub fn set_used_dirs_count(&mut self, count: u32) {
        (self.bg_used_dirs_count_lo, self.bg_used_dirs_count_hi) = split16(count);
    }

    /// Sets the count of inodes never used.
    pub fn set_itable_unused(&mut self, count: u32) {
        (self.bg_itable_unused_lo, self.bg_itable_unused_hi) = split16(count);
    }

    /// The checksum of this content by the volume's kind; 0 where it has none.
    #[must_use]
    pub fn checksum(&self, geometry: &Geometry, group: GroupNr) -> u16 {
        let bytes = &self.as_bytes()[..geometry.desc_size as usize];
        let field = offset_of!(Self, bg_checksum);
        let number = group.0.to_le_bytes();
        if let Some(seed) = geometry.csum_seed {
            let mut value = crc32c(seed, &number);
            value = crc32c(value, &bytes[..field]);
            value = crc32c(value, &[0, 0]);
            crc32c(value, &bytes[field + 2..]) as u16
        } else if geometry.has_gdt_csum() {
            crc16(&[
                &geometry.uuid,
                &number,
                &bytes[..field],
                &bytes[field + 2..],
            ])
        } else {
            0
        }
    }

    /// Whether the stored checksum is right; always so where the volume has none.
    #[must_use]
    pub fn verify_checksum(&self, geometry: &Geometry, group: GroupNr) -> bool {
        !geometry.has_group_checksums() || self.bg_checksum.get() == self.checksum(geometry, group)
    }

    /// Stores the checksum, where the volume has them.
    pub fn update_checksum(&mut self, geometry: &Geometry, group: GroupNr) {
        if geometry.has_group_checksums() {
            self.bg_checksum = U16::new(self.checksum(geometry, group));
        }
    }

    /// Whether the block bitmap (a whole block) has the checksum stored here.
    #[must_use]
    pub fn verify_block_bitmap(&self, geometry: &Geometry, bitmap: &[u8]) -> bool {
        let Some(seed) = geometry.csum_seed else {
            return true;
        };
        let value = crc32c(seed, &bitmap[..geometry.block_bitmap_bytes()]);
        let stored = join16(self.bg_block_bitmap_csum_lo, self.bg_block_bitmap_csum_hi);
        same_bits(geometry, value, stored)
    }

    /// Whether the inode bitmap (a whole block) has the checksum stored here.
    #[must_use]
    pub fn verify_inode_bitmap(&self, geometry: &Geometry, bitmap: &[u8]) -> bool {
        let Some(seed) = geometry.csum_seed else {
            return true;
        };
        let value = crc32c(seed, &bitmap[..geometry.inode_bitmap_bytes()]);
        let stored = join16(self.bg_inode_bitmap_csum_lo, self.bg_inode_bitmap_csum_hi);
        same_bits(geometry, value, stored)
    }

    /// Stores the checksum of the block bitmap. The descriptor's own must follow.
    pub fn update_block_bitmap(&mut self, geometry: &Geometry, bitmap: &[u8]) {
        let Some(seed) = geometry.csum_seed else {
            return;
        };
        let value = crc32c(seed, &bitmap[..geometry.block_bitmap_bytes()]);
        (self.bg_block_bitmap_csum_lo, self.bg_block_bitmap_csum_hi) = split16(value);
    }

    /// Stores the checksum of the inode bitmap. The descriptor's own must follow.
    pub fn update_inode_bitmap(&mut self, geometry: &Geometry, bitmap: &[u8]) {
        let Some(seed) = geometry.csum_seed else {
            return;
        };
        let value = crc32c(seed, &bitmap[..geometry.inode_bitmap_bytes()]);
        (self.bg_inode_bitmap_csum_lo, self.bg_inode_bitmap_csum_hi) = split16(value);
    }
}

/// Short descriptors hold the lower 16 bits of a bitmap's checksum only.
fn same_bits(geometry: &Geometry, value: u32, stored: u32) -> bool {
    let mask = if geometry.desc_size == 64 {
        u32::MAX
    } else {
        0xffff
    };
    (value ^ stored) & mask == 0
}
