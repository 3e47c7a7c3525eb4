//! The last part of making a volume smaller: its end, which holds nothing any more, goes.
//!
//! ```text
//!   the last group goes, again and again   what it has elsewhere (bitmaps, inode table) is freed   one handle each
//!   the last group is made shorter         bitmap, descriptor, superblock                          one handle
//!   the copies of superblock and descriptors are brought up to date
//! ```
//!
//! The steps of `grow.rs` backwards: after each handle the volume is whole, and as large as its superblock
//! says. A block of the descriptor table that is not needed any more is kept for descriptors where there is
//! a resize inode, and freed elsewhere.

use super::Filesystem;
use super::grow::{LAST_GROUP_MIN, reserve};
use super::resize_inode::Parts;
use crate::allocator::{GoneGroup, REMOVE_GROUP_CREDITS, SHORTEN_CREDITS};
use crate::error::{Error, Result};
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::{Compat, Geometry, SizeFacts};
use crate::storage::{Buffer, Handle};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The last group, and what goes with it.
struct Removal {
    after: Geometry,
    gone: GoneGroup,
    /// Fixed metadata in other groups that is not needed any more.
    freed: Vec<Run>,
    resize_inode: Option<ResizeInodeChange>,
}

/// What becomes of the blocks kept for descriptors.
struct ResizeInodeChange {
    parts: Parts,
    /// Kept blocks that lose the entry of the group's copy, which has this index.
    kept: Vec<Arc<Buffer>>,
    copy: usize,
    /// A block of the table that is kept from now on: its place in the double indirect block, and its
    /// copies.
    given: Option<(usize, Arc<Buffer>, Vec<u32>)>,
    /// The place of a block that is kept no more, there being too many.
    dropped: Option<usize>,
    /// Blocks that the inode has afterwards, less those before.
    gained: i64,
}

/// The geometry of a volume with its first `blocks_count` blocks only.
pub(crate) fn shortened(geometry: &Geometry, blocks_count: u64) -> Geometry {
    let before = geometry.size();
    let blocks = blocks_count.saturating_sub(geometry.first_data_block.into());
    let groups = blocks.div_ceil(geometry.blocks_per_group.into());
    let groups_count = u32::try_from(groups).unwrap_or(u32::MAX);
    let mut size = SizeFacts {
        blocks_count,
        groups_count,
        ..before
    };
    let table = groups_count.div_ceil(geometry.descs_per_block());
    let lost = geometry.desc_blocks() - table.min(geometry.desc_blocks());
    match size.first_meta_bg {
        Some(first) => size.first_meta_bg = Some(first.min(table)),
        None if geometry.compat.contains(Compat::RESIZE_INODE) => {
            let most = geometry.block_size / 4;
            size.reserved_gdt_blocks = (size.reserved_gdt_blocks + lost).min(most);
        }
        None => {}
    }
    geometry.with_size(size)
}

/// Blocks of a volume that ends where its last group has enough blocks to be worth it; 0 when that is
/// nowhere.
pub(crate) fn worthwhile(geometry: &Geometry, blocks_count: u64) -> u64 {
    let first = u64::from(geometry.first_data_block);
    let rest = blocks_count.saturating_sub(first) % u64::from(geometry.blocks_per_group);
    if rest >= least_of_group(geometry, blocks_count) || rest == 0 {
        return blocks_count;
    }
    match blocks_count - rest {
        whole if whole > first => whole,
        _ => 0,
    }
}

/// Blocks that a last group has at least.
fn least_of_group(geometry: &Geometry, blocks_count: u64) -> u64 {
    let after = shortened(geometry, blocks_count);
    let base = after.base_metadata_blocks(GroupNr(after.groups_count().saturating_sub(1)));
    u64::from(base + 2 + after.inode_table_blocks + LAST_GROUP_MIN)
}

impl Filesystem {
    /// Takes away the last group, or what of it lies behind `target` blocks, where nothing is in use.
    /// Nobody else uses the volume.
    ///
    /// # Errors
    /// `Busy` when something is there, `Resize`, `Corrupt`, `Io`.
    pub(crate) fn shrink_step(&self, target: u64) -> Result<()> {
        let geometry = &self.volume.geometry;
        let last = GroupNr(geometry.groups_count() - 1);
        self.has_old_copies.store(true, Ordering::Relaxed);
        if geometry.group_first_block(last).0 < target {
            return self.shorten_last_group(target);
        }
        let removal = self.plan_removal(last)?;
        self.remove_last_group(&removal)
    }

    /// Brings the copies of superblock and descriptors up to date.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn refresh_all_copies(&self) -> Result<()> {
        for group in (0..self.volume.geometry.groups_count()).map(GroupNr) {
            self.refresh_copies(group)?;
        }
        self.has_old_copies.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn shorten_last_group(&self, target: u64) -> Result<()> {
        let volume = &self.volume;
        let before = volume.geometry.blocks_count();
        volume.transact(SHORTEN_CREDITS + 1, |handle| {
            let lost = volume.allocator.shorten_last(handle, target)?;
            volume.update_superblock(handle, |raw| {
                raw.set_blocks_count(target);
                let free = raw.free_blocks_count().saturating_sub(lost.into());
                raw.set_free_blocks_count(free);
                reserve(raw, before, target);
            });
            Ok(())
        })
    }

    fn plan_removal(&self, last: GroupNr) -> Result<Removal> {
        let geometry = &self.volume.geometry;
        let gone = self.volume.allocator.prepare_removal()?;
        let after = shortened(geometry, geometry.group_first_block(last).0);
        let mut freed = gone.outside.clone();
        if after.desc_blocks() < geometry.desc_blocks() {
            for group in (0..after.groups_count()).map(GroupNr) {
                let (old, new) = (
                    geometry.base_metadata_blocks(group),
                    after.base_metadata_blocks(group),
                );
                if new < old {
                    freed.push(Run {
                        start: geometry.group_first_block(group).plus(new.into()),
                        len: old - new,
                    });
                }
            }
        }
        let has_inode = geometry.compat.contains(Compat::RESIZE_INODE)
            && self
                .volume
                .superblock()
                .compat()
                .contains(Compat::RESIZE_INODE);
        let is_changed =
            after.desc_blocks() < geometry.desc_blocks() || geometry.has_superblock_backup(last);
        let resize_inode = (has_inode && is_changed)
            .then(|| self.plan_resize_inode(&after, last))
            .transpose()?;
        Ok(Removal {
            after,
            gone,
            freed,
            resize_inode,
        })
    }

    fn plan_resize_inode(&self, after: &Geometry, last: GroupNr) -> Result<ResizeInodeChange> {
        let volume = &self.volume;
        let before = &volume.geometry;
        let parts = self.resize_inode_parts()?;
        let entries = before.block_size as usize / 4;
        let first = u64::from(before.first_data_block) + 1;
        let (old_table, new_table) = (before.desc_blocks(), after.desc_blocks());
        let (old_end, new_end) = (
            old_table + before.reserved_gdt_blocks(),
            new_table + after.reserved_gdt_blocks(),
        );
        let copies: Vec<GroupNr> = (1..after.groups_count())
            .map(GroupNr)
            .filter(|group| before.has_superblock_backup(*group))
            .collect();
        if copies.len() >= entries {
            return Err(Error::Resize {
                why: "its resize inode is damaged: run e2fsck first",
            });
        }
        let loses_copy = before.has_superblock_backup(last);
        let mut kept = Vec::new();
        if loses_copy {
            for index in old_table..new_end {
                kept.push(volume.cache.get(BlockNr(first + u64::from(index)))?);
            }
        }
        // The group's copies of all that were kept.
        let mut gained = -i64::from(u32::from(loses_copy) * before.reserved_gdt_blocks());
        let dropped = (new_end < old_end).then(|| {
            gained -= 1 + copies.len() as i64;
            new_end as usize % entries
        });
        let given = if new_table < old_table {
            let nr = first + u64::from(new_table);
            let copy = |group: &GroupNr| {
                let away = u64::from(group.0) * u64::from(before.blocks_per_group);
                u32::try_from(nr + away).map_err(|_| super::resize_inode::TOO_FAR)
            };
            let numbers = copies.iter().map(copy).collect::<Result<Vec<u32>>>()?;
            gained += 1 + copies.len() as i64;
            let buffer = volume.cache.get(BlockNr(nr))?;
            Some((new_table as usize % entries, buffer, numbers))
        } else {
            None
        };
        Ok(ResizeInodeChange {
            parts,
            kept,
            copy: copies.len(),
            given,
            dropped,
            gained,
        })
    }

    fn remove_last_group(&self, removal: &Removal) -> Result<()> {
        let volume = &self.volume;
        let before = volume.geometry.clone();
        let (blocks_before, after, gone) = (before.blocks_count(), &removal.after, &removal.gone);
        let own = before.base_metadata_blocks(gone.nr()) + 2 + before.inode_table_blocks;
        let outside: u32 = gone.outside.iter().map(|run| run.len).sum();
        let freed: u32 = removal.freed.iter().map(|run| run.len).sum();
        let fixed = own + (freed - outside);
        let change = removal.resize_inode.as_ref();
        let credits = REMOVE_GROUP_CREDITS
            + 1
            + 2 * removal.freed.len() as u32
            + change.map_or(0, |change| 3 + change.kept.len() as u32);
        if credits > volume.journal.large_credits_max() {
            return Err(Error::Resize {
                why: "its journal is too small for that",
            });
        }
        volume.transact_large(credits, |handle| {
            if let Some(change) = change {
                self.shrink_resize_inode(handle, change);
            }
            volume
                .allocator
                .remove_group(handle, gone, &removal.freed, after)?;
            volume.update_superblock(handle, |raw| {
                raw.set_blocks_count(after.blocks_count());
                let free = raw.free_blocks_count() + u64::from(freed);
                raw.set_free_blocks_count(free.saturating_sub(gone.free_blocks().into()));
                let inodes = after.inodes_per_group;
                raw.s_inodes_count.set(after.inodes_count());
                let free_inodes = raw.s_free_inodes_count.get().saturating_sub(inodes);
                raw.s_free_inodes_count.set(free_inodes);
                let size = after.size();
                raw.s_reserved_gdt_blocks
                    .set(size.reserved_gdt_blocks as u16);
                if let Some(first) = size.first_meta_bg {
                    raw.s_first_meta_bg.set(first);
                }
                reserve(raw, blocks_before, after.blocks_count());
            });
            Ok(())
        })?;
        self.overhead_blocks
            .fetch_sub(fixed.into(), Ordering::Relaxed);
        Ok(())
    }

    fn shrink_resize_inode(&self, handle: &mut Handle<'_>, change: &ResizeInodeChange) {
        for buffer in &change.kept {
            let at = change.copy * 4;
            handle.get_write_access(buffer)[at..at + 4].fill(0);
        }
        if let Some(at) = change.dropped {
            handle.get_write_access(&change.parts.double_indirect)[at * 4..at * 4 + 4].fill(0);
        }
        if let Some((at, buffer, copies)) = &change.given {
            let nr = u32::try_from(buffer.nr().0).expect("before its copies, which were looked at");
            handle.get_write_access(&change.parts.double_indirect)[at * 4..at * 4 + 4]
                .copy_from_slice(&nr.to_le_bytes());
            let mut bytes = handle.get_write_access(buffer);
            bytes.fill(0);
            for (slot, copy) in bytes.chunks_exact_mut(4).zip(copies) {
                slot.copy_from_slice(&copy.to_le_bytes());
            }
        }
        self.count_resize_inode(handle, &change.parts, change.gained);
    }
}
