//! Bitmaps of groups: reading, checking, making and changing them.
//!
//! A bitmap whose group is marked uninitialised is made in memory from what is known to be in use,
//! and on disk with the group's first allocation. One read from disk is believed when its checksum,
//! the bits of the fixed metadata and the descriptor's count agree.

use super::bitmap;
use super::groups::{GroupBitmap, GroupState, GroupTable};
use crate::corrupt::Corrupt;
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::GroupNr;
use crate::layout::{GroupFlags, RawGroupDesc};
use crate::storage::{BufferWrite, Handle};
use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// Groups whose bitmaps are kept in memory before idle ones are dropped. Few in tests, so that all
/// of them meet bitmaps that were dropped.
const LOADED_MAX: usize = if cfg!(test) { 3 } else { 8192 };

/// How many groups are looked at for one whose bitmaps can be dropped.
const EVICTION_LOOKS: u32 = 16;

impl GroupTable {
    /// Brings the block bitmap into memory.
    pub(super) fn load_blocks(&self, nr: GroupNr, state: &mut GroupState) -> Result<()> {
        if self.geometry.cluster_blocks > 1 {
            // Its bits are clusters: such volumes are only read.
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Feature,
            });
        }
        self.load(
            nr,
            state,
            |state| state.blocks.is_some(),
            |state| {
                let mut map = self.read_block_bitmap(nr, &state.desc)?;
                // Without it nobody knows which blocks may be handed out.
                map.kept = self.ask_kept(nr, state, &map)?;
                state.blocks = Some(map);
                self.pin(nr, state);
                Ok(())
            },
        )?;
        self.refresh_kept(state);
        Ok(())
    }

    /// Brings the inode bitmap into memory.
    pub(super) fn load_inodes(&self, nr: GroupNr, state: &mut GroupState) -> Result<()> {
        self.load(
            nr,
            state,
            |state| state.inodes.is_some(),
            |state| {
                state.inodes = Some(self.read_inode_bitmap(nr, &state.desc)?);
                Ok(())
            },
        )
    }

    fn load(
        &self,
        nr: GroupNr,
        state: &mut GroupState,
        is_loaded: impl Fn(&GroupState) -> bool,
        read: impl Fn(&mut GroupState) -> Result<()>,
    ) -> Result<()> {
        if let Some(damage) = &state.damage {
            return Err(damage.clone().into());
        }
        if is_loaded(state) {
            return Ok(());
        }
        let first = state.blocks.is_none() && state.inodes.is_none();
        match read(state) {
            Ok(()) if first => self.make_room(),
            Ok(()) => {}
            Err(Error::Corrupt(damage)) => return Err(self.set_damaged(nr, state, damage)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Counts a loaded group and drops the bitmaps of an idle one when there are many.
    fn make_room(&self) {
        if self.loaded.fetch_add(1, Relaxed) < LOADED_MAX {
            return;
        }
        if self.stays_loaded.load(Acquire) > 0 {
            return;
        }
        for _ in 0..EVICTION_LOOKS {
            let hand = self.eviction_hand.fetch_add(1, Relaxed) % self.geometry.groups_count();
            let Some(mut state) = self.try_lock(GroupNr(hand)) else {
                continue;
            };
            if state.is_idle() && (state.blocks.is_some() || state.inodes.is_some()) {
                (state.blocks, state.inodes) = (None, None);
                self.loaded.fetch_sub(1, Relaxed);
                return;
            }
        }
    }

    fn read_block_bitmap(&self, group: GroupNr, desc: &RawGroupDesc) -> Result<GroupBitmap> {
        let geometry = &self.geometry;
        let (buffer, bytes);
        if desc.flags().contains(GroupFlags::BLOCK_UNINIT) {
            buffer = self.cache.get_zeroed(desc.block_bitmap())?;
            let mut initial = vec![0; geometry.block_size as usize];
            self.fill_initial_blocks(group, &mut initial);
            bytes = bitmap::words_from_bytes(&initial);
        } else {
            buffer = self.cache.get(desc.block_bitmap())?;
            let content = buffer.read();
            if !buffer.is_verified() {
                if !desc.verify_block_bitmap(geometry, &content) {
                    return Err(Corrupt::BlockBitmapChecksum { group }.into());
                }
                buffer.set_verified();
            }
            bytes = bitmap::words_from_bytes(&content);
            drop(content);
        }
        let mut busy = bytes;
        let bits = geometry.block_size * 8;
        bitmap::set(&mut busy, geometry.blocks_in_group(group)..bits);
        for range in self.fixed_ranges(group) {
            if !bitmap::all_set(&busy, range.clone()) {
                let free = bitmap::next_clear(&busy, range).expect("not all are set");
                let block = geometry.group_first_block(group).plus(free.into());
                return Err(Corrupt::BlockBitmapMetadata { group, block }.into());
            }
        }
        let (in_bitmap, descriptor) = (bitmap::count_clear(&busy), desc.free_blocks_count());
        if in_bitmap != descriptor {
            return Err(Corrupt::BlockBitmapCount {
                group,
                bitmap: in_bitmap,
                descriptor,
            }
            .into());
        }
        Ok(GroupBitmap {
            buffer,
            busy,
            held: 0,
            kept: None,
        })
    }

    fn read_inode_bitmap(&self, group: GroupNr, desc: &RawGroupDesc) -> Result<GroupBitmap> {
        let geometry = &self.geometry;
        let (buffer, mut busy);
        if desc.flags().contains(GroupFlags::INODE_UNINIT) {
            buffer = self.cache.get_zeroed(desc.inode_bitmap())?;
            busy = vec![0; geometry.block_size as usize / 8].into_boxed_slice();
        } else {
            buffer = self.cache.get(desc.inode_bitmap())?;
            let content = buffer.read();
            if !buffer.is_verified() {
                if !desc.verify_inode_bitmap(geometry, &content) {
                    return Err(Corrupt::InodeBitmapChecksum { group }.into());
                }
                buffer.set_verified();
            }
            busy = bitmap::words_from_bytes(&content);
            drop(content);
        }
        bitmap::set(
            &mut busy,
            geometry.inodes_per_group..geometry.block_size * 8,
        );
        let (in_bitmap, descriptor) = (bitmap::count_clear(&busy), desc.free_inodes_count());
        if in_bitmap != descriptor {
            return Err(Corrupt::InodeBitmapCount {
                group,
                bitmap: in_bitmap,
                descriptor,
            }
            .into());
        }
        Ok(GroupBitmap {
            buffer,
            busy,
            held: 0,
            kept: None,
        })
    }

    /// Indices of the fixed metadata within a group.
    fn fixed_ranges(&self, group: GroupNr) -> impl Iterator<Item = Range<u32>> + use<> {
        let first = self.geometry.group_first_block(group).0;
        let end = first + u64::from(self.geometry.blocks_in_group(group));
        let fixed = self.fixed.read();
        let ranges: Vec<(u64, u64)> = fixed.within(first, end).collect();
        let within = move |(start, end)| (start - first) as u32..(end - first) as u32;
        ranges.into_iter().map(within)
    }

    /// Makes the bitmap of a group in which only fixed metadata is in use, from zeros.
    pub(super) fn fill_initial_blocks(&self, group: GroupNr, bytes: &mut [u8]) {
        for range in self.fixed_ranges(group) {
            bitmap::fill_bytes(bytes, range, true);
        }
        let blocks = self.geometry.blocks_in_group(group);
        bitmap::fill_bytes(bytes, blocks..self.geometry.block_size * 8, true);
    }

    /// Sets or clears bits of the block bitmap on disk, making it first where it never was. The
    /// caller writes the descriptor.
    pub(super) fn change_blocks(
        &self,
        handle: &mut Handle<'_>,
        nr: GroupNr,
        state: &mut GroupState,
        (range, value): (Range<u32>, bool),
    ) {
        // A snapshot taken since the bitmap was last looked at sees it as it is now.
        self.refresh_kept(state);
        let map = state
            .blocks
            .as_ref()
            .expect("the caller has loaded the block bitmap");
        let mut bytes: BufferWrite<'_>;
        if state.has(GroupFlags::BLOCK_UNINIT) {
            bytes = handle.get_create_access(&map.buffer);
            self.fill_initial_blocks(nr, &mut bytes);
            state
                .desc
                .set_flags(state.desc.flags() - GroupFlags::BLOCK_UNINIT);
        } else {
            bytes = handle.get_write_access(&map.buffer);
        }
        let len = range.end - range.start;
        bitmap::fill_bytes(&mut bytes, range, value);
        state.desc.update_block_bitmap(&self.geometry, &bytes);
        let free = state.desc.free_blocks_count();
        state
            .desc
            .set_free_blocks_count(if value { free - len } else { free + len });
    }

    /// Sets or clears a bit of the inode bitmap on disk, making it first where it never was. The
    /// caller writes the descriptor.
    pub(super) fn change_inode(
        &self,
        handle: &mut Handle<'_>,
        state: &mut GroupState,
        (index, value): (u32, bool),
    ) {
        let map = state
            .inodes
            .as_ref()
            .expect("the caller has loaded the inode bitmap");
        let mut bytes: BufferWrite<'_>;
        if state.has(GroupFlags::INODE_UNINIT) {
            bytes = handle.get_create_access(&map.buffer);
            let padding = self.geometry.inodes_per_group..self.geometry.block_size * 8;
            bitmap::fill_bytes(&mut bytes, padding, true);
            state
                .desc
                .set_flags(state.desc.flags() - GroupFlags::INODE_UNINIT);
            state.desc.set_itable_unused(self.geometry.inodes_per_group);
        } else {
            bytes = handle.get_write_access(&map.buffer);
        }
        bitmap::fill_bytes(&mut bytes, index..index + 1, value);
        state.desc.update_inode_bitmap(&self.geometry, &bytes);
        let free = state.desc.free_inodes_count();
        state
            .desc
            .set_free_inodes_count(if value { free - 1 } else { free + 1 });
    }
}
