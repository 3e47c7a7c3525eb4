//! Growth: a longer last group, and new groups, while others allocate.
//!
//! What can fail comes before the handle: [`GroupTable::prepare_group`] has all buffers. The new group is
//! in the table before the geometry counts it, and counted before its space is available.

use super::bitmap;
use super::groups::{Group, GroupTable};
use crate::error::Result;
use crate::ids::GroupNr;
use crate::layout::{Geometry, GroupFlags, RawGroupDesc, SizeFacts};
use crate::storage::{Buffer, Handle};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Credits of [`Allocator::extend_last`](super::Allocator::extend_last): bitmap and descriptor.
pub(crate) const EXTEND_CREDITS: u32 = 2;

/// Credits of [`Allocator::add_group`](super::Allocator::add_group): both bitmaps and descriptor.
pub(crate) const ADD_GROUP_CREDITS: u32 = 3;

/// A group to be added, with all that is needed for it.
pub(crate) struct NewGroup {
    nr: GroupNr,
    /// The geometry of the volume with it.
    after: Geometry,
    desc: RawGroupDesc,
    block_bitmap: Arc<Buffer>,
    /// `None` where the bitmap stays to be made.
    inode_bitmap: Option<Arc<Buffer>>,
    desc_buffer: Arc<Buffer>,
    /// Of a block of descriptors that begins with this one: whether it was of no use before.
    new_desc_block: Option<bool>,
    /// Blocks at its beginning that are in use.
    fixed_blocks: u32,
}

impl NewGroup {
    /// Free blocks it brings.
    pub(crate) fn free_blocks(&self) -> u32 {
        self.desc.free_blocks_count()
    }

    /// Blocks of its fixed metadata.
    pub(crate) fn fixed_blocks(&self) -> u32 {
        self.fixed_blocks
    }
}

/// Where the parts of a new group lie: all of them in it, whatever other groups do.
fn new_desc(after: &Geometry, nr: GroupNr) -> (RawGroupDesc, u32) {
    let first = after.group_first_block(nr);
    let base = after.base_metadata_blocks(nr);
    let fixed = base + 2 + after.inode_table_blocks;
    let mut desc = RawGroupDesc::from_slice(&[0; 64]);
    desc.set_block_bitmap(first.plus(base.into()));
    desc.set_inode_bitmap(first.plus(u64::from(base) + 1));
    desc.set_inode_table(first.plus(u64::from(base) + 2));
    desc.set_free_blocks_count(after.blocks_in_group(nr) - fixed);
    desc.set_free_inodes_count(after.inodes_per_group);
    if after.has_group_checksums() {
        desc.set_flags(GroupFlags::INODE_UNINIT);
        desc.set_itable_unused(after.inodes_per_group);
    }
    (desc, fixed)
}

impl GroupTable {
    /// Makes the last group longer, up to `blocks_count` blocks of the volume. Returns by how many.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`; nothing has changed then.
    pub(super) fn extend_last(&self, handle: &mut Handle<'_>, blocks_count: u64) -> Result<u32> {
        let before = self.geometry.size();
        let nr = GroupNr(before.groups_count - 1);
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let start = self.geometry.blocks_in_group(nr);
        self.cache.grow(blocks_count);
        self.geometry.set_size(SizeFacts {
            blocks_count,
            ..before
        });
        let range = start..self.geometry.blocks_in_group(nr);
        let len = range.end - range.start;
        self.change_blocks(handle, nr, &mut state, (range.clone(), false));
        let map = state.blocks.as_mut().expect("loaded above");
        bitmap::clear(&mut map.busy, range.clone());
        if let Some(kept) = &mut map.kept {
            // What was behind the end is no block of any snapshot.
            kept.forget(range);
        }
        self.totals.free_blocks.fetch_add(len.into(), Relaxed);
        self.add_available(nr, &state, len);
        self.write_desc(handle, nr, &mut state);
        Ok(len)
    }

    /// Makes everything ready for the next group of a volume that is then as `after` says.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn prepare_group(&self, after: &Geometry) -> Result<NewGroup> {
        let nr = GroupNr(after.groups_count() - 1);
        let (desc, fixed_blocks) = new_desc(after, nr);
        self.cache.grow(after.blocks_count());
        let index = (nr.0 / after.descs_per_block()) as usize;
        let known = self.desc_buffers.read().get(index).cloned();
        let (desc_buffer, new_desc_block) = match known {
            Some(buffer) => (buffer, None),
            None => {
                let (block, _) = after.desc_location(nr);
                // One kept for descriptors has content that snapshots see.
                let is_new = block.0 >= self.geometry.blocks_count();
                let buffer = match is_new {
                    true => self.cache.get_zeroed(block)?,
                    false => self.cache.get(block)?,
                };
                (buffer, Some(is_new))
            }
        };
        let inode_bitmap = (!after.has_group_checksums())
            .then(|| self.cache.get_zeroed(desc.inode_bitmap()))
            .transpose()?;
        Ok(NewGroup {
            block_bitmap: self.cache.get_zeroed(desc.block_bitmap())?,
            inode_bitmap,
            desc_buffer,
            new_desc_block,
            fixed_blocks,
            nr,
            after: after.clone(),
            desc,
        })
    }

    /// Adds a group.
    pub(super) fn add_group(&self, handle: &mut Handle<'_>, new: NewGroup) {
        let NewGroup {
            nr,
            after,
            mut desc,
            ..
        } = new;
        let bits = after.block_size * 8;
        {
            let mut bytes = handle.get_create_access(&new.block_bitmap);
            bitmap::fill_bytes(&mut bytes, 0..new.fixed_blocks, true);
            bitmap::fill_bytes(&mut bytes, after.blocks_in_group(nr)..bits, true);
            desc.update_block_bitmap(&after, &bytes);
        }
        if let Some(buffer) = &new.inode_bitmap {
            let mut bytes = handle.get_create_access(buffer);
            bitmap::fill_bytes(&mut bytes, after.inodes_per_group..bits, true);
            desc.update_inode_bitmap(&after, &bytes);
        }
        desc.update_checksum(&after, nr);
        let (_, offset) = after.desc_location(nr);
        {
            let mut bytes = match new.new_desc_block {
                Some(true) => handle.get_create_access(&new.desc_buffer),
                _ => handle.get_write_access(&new.desc_buffer),
            };
            if new.new_desc_block.is_some() {
                bytes.fill(0);
            }
            desc.write_to_slice(&mut bytes[offset..offset + after.desc_size as usize]);
        }
        if new.new_desc_block.is_some() {
            self.desc_buffers.write().push(new.desc_buffer);
        }
        let first = after.group_first_block(nr).0;
        let end = first + u64::from(new.fixed_blocks);
        self.fixed.write().add(first, end);
        let group = Group::new(&after, nr, desc.clone());
        self.groups.add(nr.0 as usize, group);
        self.geometry.set_size(after.size());
        self.totals.add_group(&desc);
        self.raise_run_bound(desc.free_blocks_count());
    }

    /// The content of a block of the descriptor table as it is now.
    pub(super) fn desc_content(&self, index: usize) -> Option<Arc<[u8]>> {
        let buffer = self.desc_buffers.read().get(index).cloned();
        buffer.map(|buffer| buffer.freeze())
    }
}
