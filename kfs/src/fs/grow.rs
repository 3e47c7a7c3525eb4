//! Growth of a volume in use.
//!
//! ```text
//!   the device is made longer
//!   the last group is made longer       bitmap, descriptor, superblock                      one handle
//!   a group is added, again and again   its bitmaps, descriptor, superblock; what is kept   one handle each
//!                                       for descriptors, its copy of the superblock
//!   the copies of superblock and descriptors are brought up to date
//! ```
//!
//! After each handle the volume is whole, and as large as its superblock says: a crash leaves some size
//! between the old and the new one, and growing goes on from there. Copies are old for a while, as they are
//! after a crash of any kind.
//!
//! All parts of a new group lie in it. Its descriptor goes into the table where that has room, into a block
//! kept for descriptors where there are any, and else the volume gets meta block groups, each of which
//! begins with its own descriptors.

use super::Filesystem;
use super::resize_inode::ResizeInode;
use crate::allocator::{ADD_GROUP_CREDITS, EXTEND_CREDITS};
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, GroupNr};
use crate::layout::{Compat, Geometry, Incompat, RawSuperblock, RoCompat, SizeFacts};
use crate::storage::Buffer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// A last group with fewer blocks for files than this is not worth making.
pub(super) const LAST_GROUP_MIN: u32 = 50;
/// Blocks of copies written with one handle.
const COPIES_BATCH: u32 = 16;

/// How far growing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowthProgress {
    /// Size of the volume now, in bytes.
    pub size_bytes: u64,
    /// What it will be.
    pub target_bytes: u64,
    /// To be given to the next call; `None` when all is done.
    pub next: Option<u32>,
}

fn refused(why: &'static str) -> Error {
    Error::Resize { why }
}

impl Filesystem {
    /// Makes the volume larger, for at most about `limit`; to be called again with what the progress says,
    /// beginning with 0, until that is `None`. 0 bytes mean all of the device. The size may be rounded
    /// down: a last group that is too small is left out.
    ///
    /// # Errors
    /// `Resize` for a size or a volume that cannot be; `ReadOnly`, `Corrupt`, `Io`. The volume is whole
    /// then, and may have grown by a part.
    pub fn grow(&self, size_bytes: u64, cursor: u32, limit: Duration) -> Result<GrowthProgress> {
        let deadline = Instant::now() + limit;
        let _one = self.snapshot_operation.lock();
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        let target = self.growth_target(size_bytes)?;
        let geometry = &self.volume.geometry;
        let progress = |next| GrowthProgress {
            size_bytes: geometry.offset_of(BlockNr(geometry.blocks_count())),
            target_bytes: geometry.offset_of(BlockNr(target)),
            next,
        };
        while geometry.blocks_count() < target {
            self.grow_step(target)?;
            if Instant::now() >= deadline && geometry.blocks_count() < target {
                return Ok(progress(Some(0)));
            }
        }
        for group in (cursor..geometry.groups_count()).map(GroupNr) {
            self.refresh_copies(group)?;
            if Instant::now() >= deadline && group.0 + 1 < geometry.groups_count() {
                return Ok(progress(Some(group.0 + 1)));
            }
        }
        self.has_old_copies.store(false, Ordering::Relaxed);
        self.volume.journal.commit_all()?;
        Ok(progress(None))
    }

    /// The blocks that a volume of this size will have; the device is made as long.
    fn growth_target(&self, size_bytes: u64) -> Result<u64> {
        let geometry = &self.volume.geometry;
        if geometry.cluster_blocks > 1 {
            return Err(refused("it has bigalloc, which kfs only reads"));
        }
        let device = self.volume.device();
        let grow = |size| {
            device.grow(size).map_err(|source| Error::Device {
                op: IoOp::Write,
                source,
            })
        };
        grow(0)?;
        let wanted = match size_bytes {
            0 => device.size_bytes(),
            bytes => bytes,
        };
        let blocks = rounded(geometry, wanted >> geometry.block_size_bits);
        if blocks < geometry.blocks_count() {
            return Err(refused(
                "in use it can only be made larger; to make it smaller stop kfsd and let kfsctl --image do it",
            ));
        }
        let bits64 = geometry.incompat.contains(Incompat::BIT64);
        if blocks > u64::from(u32::MAX) && !bits64 {
            return Err(refused(
                "it has no 64bit feature, and so at most 2^32 blocks",
            ));
        }
        let groups = blocks.div_ceil(geometry.blocks_per_group.into());
        if groups * u64::from(geometry.inodes_per_group) > u64::from(u32::MAX) {
            return Err(refused("it would have more inodes than 2^32"));
        }
        grow(blocks << geometry.block_size_bits)?;
        Ok(blocks)
    }

    fn grow_step(&self, target: u64) -> Result<()> {
        let geometry = &self.volume.geometry;
        let last = GroupNr(geometry.groups_count() - 1);
        let end = geometry.group_first_block(last).0 + u64::from(geometry.blocks_per_group);
        if geometry.blocks_count() < end {
            self.extend_last_group(end.min(target))
        } else {
            self.add_group((end + u64::from(geometry.blocks_per_group)).min(target))
        }
    }

    fn extend_last_group(&self, blocks_count: u64) -> Result<()> {
        let volume = &self.volume;
        let before = volume.geometry.blocks_count();
        volume.transact(EXTEND_CREDITS + 1, |handle| {
            let added = volume.allocator.extend_last(handle, blocks_count)?;
            volume.update_superblock(handle, |raw| {
                raw.set_blocks_count(blocks_count);
                raw.set_free_blocks_count(raw.free_blocks_count() + u64::from(added));
                reserve(raw, before, blocks_count);
            });
            Ok(())
        })?;
        self.settle_growth(0);
        Ok(())
    }

    fn add_group(&self, blocks_count: u64) -> Result<()> {
        let volume = &self.volume;
        let before = volume.geometry.blocks_count();
        let plan = self.plan_growth(blocks_count)?;
        let after = &plan.after;
        let group = GroupNr(after.groups_count() - 1);
        let new = volume.allocator.prepare_group(after)?;
        let (free, fixed) = (new.free_blocks(), new.fixed_blocks());
        let copy = after.has_superblock_backup(group).then(|| {
            let block = after.group_first_block(group);
            volume.cache.get_zeroed(block)
        });
        let copy = copy.transpose()?;
        if !after.has_group_checksums() {
            self.zero_inode_table(after, group, fixed)?;
        }
        let inode_credits = plan.resize_inode.as_ref().map_or(0, ResizeInode::credits);
        let credits = ADD_GROUP_CREDITS + 2 + inode_credits;
        if credits > volume.journal.large_credits_max() {
            return Err(refused("its journal is too small for that"));
        }
        volume.transact_large(credits, |handle| {
            if let Some(change) = &plan.resize_inode {
                self.change_resize_inode(handle, change)?;
            }
            volume.allocator.add_group(handle, new);
            volume.update_superblock(handle, |raw| {
                raw.set_blocks_count(blocks_count);
                raw.set_free_blocks_count(raw.free_blocks_count() + u64::from(free));
                let inodes = after.inodes_per_group;
                raw.s_inodes_count.set(raw.s_inodes_count.get() + inodes);
                let free_inodes = raw.s_free_inodes_count.get().saturating_add(inodes);
                raw.s_free_inodes_count.set(free_inodes);
                plan.note(raw);
                reserve(raw, before, blocks_count);
            });
            if let Some(buffer) = &copy {
                let content = self.superblock_copy(group);
                let mut bytes = handle.get_create_access(buffer);
                bytes[..content.len()].copy_from_slice(&content);
            }
            Ok(())
        })?;
        self.settle_growth(fixed.into());
        Ok(())
    }

    /// Brings in line what is kept in memory beside the allocator.
    fn settle_growth(&self, fixed: u64) {
        self.has_old_copies.store(true, Ordering::Relaxed);
        self.overhead_blocks.fetch_add(fixed, Ordering::Relaxed);
        let reserved = self.volume.superblock().reserved_blocks_count();
        self.volume.allocator.set_privileged_blocks(reserved);
    }

    /// Nobody has written the new part of the device yet, but somebody may have before.
    fn zero_inode_table(&self, after: &Geometry, group: GroupNr, fixed: u32) -> Result<()> {
        let len = after.inode_table_blocks;
        let table = after.group_first_block(group).plus(u64::from(fixed - len));
        let bytes = u64::from(len) << after.block_size_bits;
        self.volume.zero_data(table, 0, bytes)
    }

    /// What the volume is with one more group.
    fn plan_growth(&self, blocks_count: u64) -> Result<Plan> {
        let geometry = &self.volume.geometry;
        let before = geometry.size();
        let raw = self.volume.superblock();
        let mut size = SizeFacts {
            blocks_count,
            groups_count: before.groups_count + 1,
            ..before
        };
        let old_table = geometry.desc_blocks();
        let new_table = size.groups_count.div_ceil(geometry.descs_per_block());
        let has_inode = raw.compat().contains(Compat::RESIZE_INODE);
        let mut ends = false;
        if new_table > old_table && before.first_meta_bg.is_none() {
            if has_inode && before.reserved_gdt_blocks > 0 {
                size.reserved_gdt_blocks -= 1;
            } else if before.reserved_gdt_blocks > 0 {
                return Err(refused(
                    "blocks are kept for descriptors, and no inode keeps them",
                ));
            } else {
                size.first_meta_bg = Some(old_table);
                ends = has_inode;
            }
        }
        let after = geometry.with_size(size);
        let group = GroupNr(after.groups_count() - 1);
        let is_changed = new_table > old_table || after.has_superblock_backup(group);
        let resize_inode = (has_inode && is_changed)
            .then(|| self.resize_inode(&after, ends))
            .transpose()?;
        Ok(Plan {
            after,
            resize_inode,
            ends,
        })
    }

    /// A copy of the superblock, as it lies in a group.
    fn superblock_copy(&self, group: GroupNr) -> Vec<u8> {
        let mut raw = self.volume.superblock();
        raw.s_block_group_nr.set(group.0 as u16);
        let incompat = raw.incompat() - Incompat::RECOVER;
        raw.s_feature_incompat.set(incompat.bits());
        let ro_compat = raw.ro_compat() - RoCompat::HAS_SNAPSHOT;
        raw.s_feature_ro_compat.set(ro_compat.bits());
        raw.s_snapshot_inum.set(0);
        raw.seal();
        raw.as_bytes().to_vec()
    }

    /// Brings the copies in a group up to date: of the superblock, and of descriptors.
    pub(super) fn refresh_copies(&self, group: GroupNr) -> Result<()> {
        if group.0 == 0 {
            return Ok(());
        }
        let volume = &self.volume;
        let geometry = &volume.geometry;
        let first = geometry.group_first_block(group);
        let has_superblock = geometry.has_superblock_backup(group);
        if has_superblock {
            let buffer = volume.cache.get(first)?;
            volume.transact(1, |handle| {
                let content = self.superblock_copy(group);
                handle.get_write_access(&buffer)[..content.len()].copy_from_slice(&content);
                Ok(())
            })?;
        }
        let per_block = geometry.descs_per_block();
        let (meta, index) = (group.0 / per_block, group.0 % per_block);
        if geometry.first_meta_bg().is_none_or(|first| meta < first) {
            if !has_superblock {
                return Ok(());
            }
            let table = geometry.first_meta_bg().unwrap_or(geometry.desc_blocks());
            for start in (0..table).step_by(COPIES_BATCH as usize) {
                let end = (start + COPIES_BATCH).min(table);
                let blocks = (start..end).map(|nr| (nr, first.plus(1 + u64::from(nr))));
                self.copy_descriptors(&blocks.collect::<Vec<_>>())?;
            }
        } else if index == 1 || index == per_block - 1 {
            self.copy_descriptors(&[(meta, first.plus(has_superblock.into()))])?;
        }
        Ok(())
    }

    /// Writes blocks of the descriptor table to other places.
    fn copy_descriptors(&self, places: &[(u32, BlockNr)]) -> Result<()> {
        let volume = &self.volume;
        let buffers: Vec<Arc<Buffer>> = places
            .iter()
            .map(|(_, block)| volume.cache.get(*block))
            .collect::<Result<_>>()?;
        volume.transact(places.len() as u32, |handle| {
            for ((nr, _), buffer) in places.iter().zip(&buffers) {
                if let Some(content) = volume.allocator.desc_content(*nr as usize) {
                    handle.get_write_access(buffer).copy_from_slice(&content);
                }
            }
            Ok(())
        })
    }
}

/// One more group.
struct Plan {
    after: Geometry,
    resize_inode: Option<ResizeInode>,
    /// The resize inode goes.
    ends: bool,
}

impl Plan {
    /// Notes in the superblock how descriptors are kept.
    fn note(&self, raw: &mut RawSuperblock) {
        let size = self.after.size();
        raw.s_reserved_gdt_blocks
            .set(size.reserved_gdt_blocks as u16);
        if let Some(first) = size.first_meta_bg {
            raw.s_first_meta_bg.set(first);
            let incompat = raw.incompat() | Incompat::META_BG;
            raw.s_feature_incompat.set(incompat.bits());
        }
        if self.ends {
            let compat = raw.compat() - Compat::RESIZE_INODE;
            raw.s_feature_compat.set(compat.bits());
        }
    }
}

/// Keeps the share of blocks that are reserved for root.
pub(super) fn reserve(raw: &mut RawSuperblock, before: u64, after: u64) {
    let reserved = u128::from(raw.reserved_blocks_count()) * u128::from(after);
    let reserved = reserved / u128::from(before.max(1));
    raw.set_reserved_blocks_count(u64::try_from(reserved).unwrap_or(after).min(after / 2));
}

/// Blocks without those of a new last group that is too small.
fn rounded(geometry: &Geometry, blocks: u64) -> u64 {
    let first = u64::from(geometry.first_data_block);
    let per_group = u64::from(geometry.blocks_per_group);
    let rest = blocks.saturating_sub(first) % per_group;
    let fixed = 2 + geometry.inode_table_blocks + 1 + geometry.reserved_gdt_blocks();
    let copies = geometry.desc_blocks() + 8;
    let least = u64::from(fixed + copies + LAST_GROUP_MIN);
    if rest > 0 && rest < least && blocks - rest >= geometry.blocks_count() {
        return blocks - rest;
    }
    blocks
}
