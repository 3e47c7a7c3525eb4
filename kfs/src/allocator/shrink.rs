//! A smaller volume: a fence behind which nothing is handed out, and groups that go.
//!
//! The fence is in memory only. What lies behind it is moved by those who own it; then the last group goes,
//! again and again, and what is left of the last one is made shorter. Nobody else uses the volume meanwhile:
//! what a group that goes has had in other groups is free at once, not after the commit.

use super::bitmap;
use super::groups::{GroupState, GroupTable};
use crate::error::{Error, Result};
use crate::ids::{GroupNr, InodeNr, Run};
use crate::layout::{Geometry, GroupFlags, SizeFacts};
use crate::storage::Handle;
use crate::sync::MutexGuard;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Credits of [`Allocator::shorten_last`](super::Allocator::shorten_last): bitmap and descriptor.
pub(crate) const SHORTEN_CREDITS: u32 = 2;

/// Credits of [`Allocator::remove_group`](super::Allocator::remove_group) for its own descriptor. Each group
/// in which something is freed takes two more: bitmap and descriptor.
pub(crate) const REMOVE_GROUP_CREDITS: u32 = 1;

/// The last group, in which nothing is but metadata of groups.
#[derive(Debug)]
pub(crate) struct GoneGroup {
    nr: GroupNr,
    free_blocks: u32,
    /// What lies in other groups of its bitmaps and its inode table.
    pub(crate) outside: Vec<Run>,
}

impl GoneGroup {
    /// Its number.
    pub(crate) fn nr(&self) -> GroupNr {
        self.nr
    }

    /// Free blocks that go with it.
    pub(crate) fn free_blocks(&self) -> u32 {
        self.free_blocks
    }
}

impl GroupTable {
    pub(super) fn set_fence(&self, blocks_count: u64) {
        self.fence.store(blocks_count, Relaxed);
    }

    /// Groups that begin before the fence.
    pub(super) fn usable_groups(&self) -> u32 {
        let first = u64::from(self.geometry.first_data_block);
        let blocks = self.fence.load(Relaxed).saturating_sub(first);
        let groups = blocks.div_ceil(self.geometry.blocks_per_group.into());
        u32::try_from(groups)
            .unwrap_or(u32::MAX)
            .min(self.geometry.groups_count())
            .max(1)
    }

    /// Blocks of a group that lie before the fence.
    pub(super) fn usable_blocks(&self, nr: GroupNr) -> u32 {
        let first = self.geometry.group_first_block(nr).0;
        let before = self.fence.load(Relaxed).saturating_sub(first);
        let all = self.geometry.blocks_in_group(nr);
        u32::try_from(before).unwrap_or(u32::MAX).min(all)
    }

    pub(super) fn used_inodes(&self, nr: GroupNr) -> Result<Vec<InodeNr>> {
        let mut state = self.lock(nr);
        self.load_inodes(nr, &mut state)?;
        if state.has(GroupFlags::INODE_UNINIT) {
            return Ok(Vec::new());
        }
        let map = state.inodes.as_ref().expect("just loaded");
        let bytes = map.buffer.read();
        let is_used = |index: &u32| bytes[*index as usize / 8] & (1 << (index % 8)) != 0;
        let used = (0..self.geometry.inodes_per_group).filter(is_used);
        Ok(used
            .map(|index| self.geometry.inode_nr(nr, index))
            .collect())
    }

    pub(super) fn free_runs(&self, nr: GroupNr, end: u32) -> Result<(u32, u32)> {
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let end = end.min(self.geometry.blocks_in_group(nr));
        let runs = bitmap::clear_runs(&map.busy, 0..end);
        Ok(runs.fold((0, 0), |(blocks, runs), run| (blocks + run.len, runs + 1)))
    }

    pub(super) fn used_behind(&self, end: u64) -> Result<u64> {
        let mut used = 0;
        let last = self.geometry.groups_count();
        for nr in (0..last).map(GroupNr) {
            let first = self.geometry.group_first_block(nr).0;
            let blocks = self.geometry.blocks_in_group(nr);
            let from = end.saturating_sub(first).min(blocks.into());
            if from == u64::from(blocks) {
                continue;
            }
            let mut state = self.lock(nr);
            self.load_blocks(nr, &mut state)?;
            let map = state.blocks.as_ref().expect("just loaded");
            let free = bitmap::clear_runs(&map.busy, from as u32..blocks);
            let free: u64 = free.map(|run| u64::from(run.len)).sum();
            let behind = (first + from, first + u64::from(blocks));
            let fixed = self.fixed.read();
            let fixed = fixed.within(behind.0, behind.1);
            let fixed: u64 = fixed.map(|(start, end)| end - start).sum();
            used += u64::from(blocks) - from - free - fixed;
        }
        Ok(used)
    }

    pub(super) fn metadata_runs(&self, nr: GroupNr) -> Result<[Run; 3]> {
        // An error for a damaged group.
        let table = self.inode_table(nr)?;
        let state = self.lock(nr);
        let run = |start, len| Run { start, len };
        Ok([
            run(state.desc.block_bitmap(), 1),
            run(state.desc.inode_bitmap(), 1),
            run(table, self.geometry.inode_table_blocks),
        ])
    }

    pub(super) fn prepare_removal(&self) -> Result<GoneGroup> {
        let geometry = &self.geometry;
        let nr = GroupNr(geometry.groups_count() - 1);
        let first = geometry.group_first_block(nr).0;
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        self.load_inodes(nr, &mut state)?;
        let fixed = self.fixed.read();
        let within = fixed.within(first, geometry.blocks_count());
        let fixed_blocks: u64 = within.map(|(start, end)| end - start).sum();
        drop(fixed);
        let (free_blocks, free_inodes) = (
            state.desc.free_blocks_count(),
            state.desc.free_inodes_count(),
        );
        let is_empty = u64::from(free_blocks) + fixed_blocks
            == u64::from(geometry.blocks_in_group(nr))
            && free_inodes == geometry.inodes_per_group
            && state.is_idle();
        if !is_empty {
            return Err(Error::Busy);
        }
        drop(state);
        let outside = self.metadata_runs(nr)?;
        let outside = outside.into_iter().filter(|run| run.start.0 < first);
        Ok(GoneGroup {
            nr,
            free_blocks,
            outside: outside.collect(),
        })
    }

    pub(super) fn remove_group(
        &self,
        handle: &mut Handle<'_>,
        gone: &GoneGroup,
        freed: &[Run],
        after: &Geometry,
    ) -> Result<()> {
        let mut parts = self.lock_parts(freed)?;
        let nr = gone.nr;
        let first = self.geometry.group_first_block(nr).0;
        {
            let mut fixed = self.fixed.write();
            fixed.remove(first, self.geometry.blocks_count());
            for run in freed {
                fixed.remove(run.start.0, run.end().0);
            }
        }
        for (nr, ranges, state) in &mut parts {
            for range in ranges {
                let len = range.end - range.start;
                self.change_blocks(handle, *nr, state, (range.clone(), false));
                let map = state.blocks.as_mut().expect("loaded above");
                bitmap::clear(&mut map.busy, range.clone());
                self.totals.free_blocks.fetch_add(len.into(), Relaxed);
                self.add_available(*nr, state, len);
            }
            self.write_desc(handle, *nr, state);
        }
        drop(parts);
        let (block, offset) = self.geometry.desc_location(nr);
        if after.desc_blocks() < self.geometry.desc_blocks() {
            self.desc_buffers.write().pop();
        } else {
            let index = (nr.0 / self.geometry.descs_per_block()) as usize;
            let buffer = Arc::clone(&self.desc_buffers.read()[index]);
            debug_assert_eq!(buffer.nr(), block);
            let end = offset + self.geometry.desc_size as usize;
            handle.get_write_access(&buffer)[offset..end].fill(0);
        }
        self.count_out(nr, gone.free_blocks);
        self.geometry.set_size(after.size());
        Ok(())
    }

    /// Locks the groups of some runs and loads their bitmaps.
    #[expect(clippy::type_complexity, reason = "used in one place")]
    fn lock_parts(
        &self,
        runs: &[Run],
    ) -> Result<Vec<(GroupNr, Vec<Range<u32>>, MutexGuard<'_, GroupState>)>> {
        let mut groups: BTreeMap<GroupNr, Vec<Range<u32>>> = BTreeMap::new();
        for run in runs {
            for (nr, range) in self.parts(*run) {
                groups.entry(nr).or_default().push(range);
            }
        }
        let mut parts = Vec::with_capacity(groups.len());
        for (nr, ranges) in groups {
            let mut state = self.lock(nr);
            self.load_blocks(nr, &mut state)?;
            parts.push((nr, ranges, state));
        }
        Ok(parts)
    }

    fn count_out(&self, nr: GroupNr, free_blocks: u32) {
        let group = self.group(nr);
        let blocks = group.available_blocks.swap(0, Relaxed);
        let inodes = group.available_inodes.swap(0, Relaxed);
        group.run_max.store(0, Relaxed);
        let totals = &self.totals;
        totals.available_blocks.fetch_sub(blocks.into(), Relaxed);
        totals.available_inodes.fetch_sub(inodes.into(), Relaxed);
        totals.free_blocks.fetch_sub(free_blocks.into(), Relaxed);
        let inodes = self.geometry.inodes_per_group;
        totals.free_inodes.fetch_sub(inodes.into(), Relaxed);
    }

    pub(super) fn shorten_last(&self, handle: &mut Handle<'_>, blocks_count: u64) -> Result<u32> {
        let before = self.geometry.size();
        let nr = GroupNr(before.groups_count - 1);
        let first = self.geometry.group_first_block(nr).0;
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let end = self.geometry.blocks_in_group(nr);
        let start = u32::try_from(blocks_count - first).map_err(|_| Error::Invalid)?;
        let map = state.blocks.as_mut().expect("just loaded");
        if start >= end || !bitmap::all_clear(&map.busy, start..end) {
            return Err(Error::Busy);
        }
        bitmap::set(&mut map.busy, start..end);
        let len = end - start;
        self.change_blocks(handle, nr, &mut state, (start..end, true));
        self.write_desc(handle, nr, &mut state);
        let group = self.group(nr);
        let left = group.available_blocks.load(Relaxed) - len;
        group.available_blocks.store(left, Relaxed);
        group.run_max.fetch_min(left, Relaxed);
        self.totals.available_blocks.fetch_sub(len.into(), Relaxed);
        self.totals.free_blocks.fetch_sub(len.into(), Relaxed);
        self.geometry.set_size(SizeFacts {
            blocks_count,
            ..before
        });
        Ok(len)
    }
}
