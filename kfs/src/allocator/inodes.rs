//! Taking and freeing inodes.
//!
//! An inode is promised first, which reads what is needed and may fail; putting it in use cannot.
//! A freed inode may be taken again at once: all that is written for it goes through the journal,
//! in order.
//!
//! Tables of volumes made in a hurry hold garbage beyond the inodes ever used. e2fsck reads a table
//! up to the highest inode used, so the blocks up to there are zeroed when an inode is taken.

use super::bitmap;
use super::groups::{GroupState, GroupTable};
use super::placement::{Figures, Volume, near_groups};
use crate::corrupt::Corrupt;
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::{BlockNr, GroupNr, InodeNr};
use crate::layout::GroupFlags;
use crate::storage::{Buffer, Handle};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Blocks of an inode table that taking one inode may have to zero. It is more than one only while
/// inodes promised to others lie before it.
pub(super) const FRESH_TABLE_BLOCKS_MAX: u32 = 4;

/// A promised inode.
pub struct InodeReservation {
    table: Arc<GroupTable>,
    group: GroupNr,
    index: u32,
    is_directory: bool,
    /// Blocks of the inode table to be zeroed, ending with the inode's own.
    fresh: SmallVec<[Arc<Buffer>; 1]>,
    /// Whether it has become an inode in use.
    taken: bool,
}

impl InodeReservation {
    /// The number that the inode will have.
    #[must_use]
    pub fn inode(&self) -> InodeNr {
        self.table.geometry.inode_nr(self.group, self.index)
    }
}

impl Drop for InodeReservation {
    fn drop(&mut self) {
        if !self.taken {
            self.table.give_back_inode(self.group, self.index);
        }
    }
}

impl std::fmt::Debug for InodeReservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InodeReservation")
            .field(&self.inode())
            .finish()
    }
}

impl GroupTable {
    /// Promises an inode near its parent.
    pub(super) fn reserve_inode(
        self: &Arc<Self>,
        parent: InodeNr,
        is_directory: bool,
    ) -> Result<InodeReservation> {
        let geometry = &self.geometry;
        if geometry.cluster_blocks > 1 {
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Feature,
            });
        }
        let (parent_group, _) = geometry.inode_location(parent)?;
        let home = if is_directory {
            self.place_directory(parent, parent_group)
        } else {
            parent_group
        };
        let groups = self.usable_groups();
        let home = home.0.min(groups - 1);
        let mut failure = None;
        // Groups without free blocks are left for the second round: the inode's data would be far.
        for blocks_too in [true, false] {
            for nr in near_groups(home, geometry.groups_per_flex, groups) {
                let group = self.group(GroupNr(nr));
                if group.available_inodes.load(Relaxed) == 0
                    || (blocks_too && group.available_blocks.load(Relaxed) == 0)
                {
                    continue;
                }
                match self.reserve_inode_in(GroupNr(nr), is_directory) {
                    Ok(Some(reservation)) => return Ok(reservation),
                    Ok(None) => {}
                    Err(error) => failure = Some(error),
                }
            }
        }
        Err(failure
            .filter(|error| matches!(error, Error::Io { .. }))
            .unwrap_or(Error::NoSpace))
    }

    /// The group where the search for a directory's inode begins.
    fn place_directory(&self, parent: InodeNr, parent_group: GroupNr) -> GroupNr {
        let geometry = &self.geometry;
        let flex_size = geometry.groups_per_flex.min(geometry.groups_count());
        let count = geometry.groups_count().div_ceil(flex_size);
        let totals = &self.totals;
        let average = |sum: u64| sum / u64::from(count);
        let volume = Volume {
            count,
            average: Figures {
                free_inodes: average(totals.available_inodes.load(Relaxed).max(0) as u64),
                free_blocks: average(totals.available_blocks.load(Relaxed).max(0) as u64),
                directories: average(totals.directories.load(Relaxed)),
            },
            inodes: u64::from(geometry.inodes_per_group) * u64::from(flex_size),
            blocks: u64::from(geometry.blocks_per_group) * u64::from(flex_size),
            figures: |flex| self.flex_figures(flex, flex_size),
        };
        let flex = if parent == InodeNr::ROOT {
            // Knuth's multiplier: consecutive directories land far from each other.
            let turn = self.spread.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b1);
            volume.spread(turn)
        } else {
            volume.near(parent_group.0 / flex_size)
        };
        let Some(flex) = flex else {
            return parent_group;
        };
        let groups = self.flex_groups(flex, flex_size);
        let with_inodes = |nr: &u32| self.group(GroupNr(*nr)).available_inodes.load(Relaxed) > 0;
        GroupNr(groups.clone().find(with_inodes).unwrap_or(groups.start))
    }

    fn flex_groups(&self, flex: u32, flex_size: u32) -> std::ops::Range<u32> {
        let first = flex * flex_size;
        first
            ..first
                .saturating_add(flex_size)
                .min(self.geometry.groups_count())
    }

    fn flex_figures(&self, flex: u32, flex_size: u32) -> Figures {
        let mut figures = Figures::default();
        for nr in self.flex_groups(flex, flex_size) {
            let group = self.group(GroupNr(nr));
            figures.free_inodes += u64::from(group.available_inodes.load(Relaxed));
            figures.free_blocks += u64::from(group.available_blocks.load(Relaxed));
            figures.directories += u64::from(group.directories.load(Relaxed));
        }
        figures
    }

    fn reserve_inode_in(
        self: &Arc<Self>,
        nr: GroupNr,
        is_directory: bool,
    ) -> Result<Option<InodeReservation>> {
        let geometry = &self.geometry;
        let mut state = self.lock(nr);
        self.load_inodes(nr, &mut state)?;
        if state.has(GroupFlags::BLOCK_UNINIT) {
            // e2fsck wants the block bitmap made where the inode bitmap is.
            self.load_blocks(nr, &mut state)?;
        }
        let reserved = (geometry.first_inode.0 - 1)
            .saturating_sub(nr.0.saturating_mul(geometry.inodes_per_group));
        let map = state.inodes.as_ref().expect("just loaded");
        let inodes = reserved.min(geometry.inodes_per_group)..geometry.inodes_per_group;
        let Some(index) = bitmap::next_clear(&map.busy, inodes) else {
            return Ok(None);
        };
        let Some(fresh) = self.fresh_buffers(&state, index)? else {
            return Ok(None);
        };
        let map = state.inodes.as_mut().expect("just loaded");
        bitmap::set(&mut map.busy, index..index + 1);
        map.held += 1;
        let group = self.group(nr);
        group
            .available_inodes
            .store(group.available_inodes.load(Relaxed) - 1, Relaxed);
        self.totals.available_inodes.fetch_sub(1, Relaxed);
        let table = Arc::clone(self);
        Ok(Some(InodeReservation {
            table,
            group: nr,
            index,
            is_directory,
            fresh,
            taken: false,
        }))
    }

    /// Buffers of the inode table to be zeroed when an inode is taken; `None` when they are many.
    fn fresh_buffers(
        &self,
        state: &GroupState,
        index: u32,
    ) -> Result<Option<SmallVec<[Arc<Buffer>; 1]>>> {
        let (block, _) = self.geometry.inode_table_offset(index);
        let fresh = state.fresh_table_block..(block + 1).max(state.fresh_table_block);
        if fresh.end - fresh.start > FRESH_TABLE_BLOCKS_MAX {
            return Ok(None);
        }
        let table = state.desc.inode_table();
        fresh
            .map(|block| self.cache.get_zeroed(table.plus(block.into())))
            .collect::<Result<_>>()
            .map(Some)
    }

    fn give_back_inode(&self, nr: GroupNr, index: u32) {
        let mut state = self.lock(nr);
        let map = state
            .inodes
            .as_mut()
            .expect("held bits keep the bitmap loaded");
        bitmap::clear(&mut map.busy, index..index + 1);
        map.held -= 1;
        self.add_available_inode(nr, &state);
    }

    fn add_available_inode(&self, nr: GroupNr, state: &GroupState) {
        if state.is_usable() {
            let group = self.group(nr);
            group
                .available_inodes
                .store(group.available_inodes.load(Relaxed) + 1, Relaxed);
            self.totals.available_inodes.fetch_add(1, Relaxed);
        }
    }

    /// Puts a promised inode in use on disk.
    pub(super) fn allocate_inode(
        &self,
        handle: &mut Handle<'_>,
        mut reservation: InodeReservation,
    ) -> InodeNr {
        let (nr, index) = (reservation.group, reservation.index);
        let mut state = self.lock(nr);
        if state.has(GroupFlags::BLOCK_UNINIT) {
            self.change_blocks(handle, nr, &mut state, (0..0, true));
        }
        self.change_inode(handle, &mut state, (index, true));
        state
            .inodes
            .as_mut()
            .expect("held bits keep the bitmap loaded")
            .held -= 1;
        let table = state.desc.inode_table();
        for buffer in &reservation.fresh {
            let block = (buffer.nr().0 - table.0) as u32;
            // Another reservation may have come first.
            if block >= state.fresh_table_block {
                drop(handle.get_create_access(buffer));
                state.fresh_table_block = block + 1;
            }
        }
        if self.geometry.has_group_checksums() {
            let unused = self.geometry.inodes_per_group - (index + 1);
            let unused = state.desc.itable_unused().min(unused);
            state.desc.set_itable_unused(unused);
        }
        if reservation.is_directory {
            let directories = state.desc.used_dirs_count() + 1;
            state.desc.set_used_dirs_count(directories);
            self.group(nr).directories.store(directories, Relaxed);
            self.totals.directories.fetch_add(1, Relaxed);
        }
        self.write_desc(handle, nr, &mut state);
        self.totals.free_inodes.fetch_sub(1, Relaxed);
        reservation.taken = true;
        reservation.inode()
    }

    /// Frees an inode on disk.
    pub(super) fn free_inode(
        &self,
        handle: &mut Handle<'_>,
        inode: InodeNr,
        is_directory: bool,
    ) -> Result<()> {
        let (nr, index) = self.geometry.inode_location(inode)?;
        if inode < self.geometry.first_inode {
            return Err(Corrupt::InodeReserved { inode }.into());
        }
        let mut state = self.lock(nr);
        self.load_inodes(nr, &mut state)?;
        if !is_in_use(&state, index) {
            return Err(Corrupt::InodeNotInUse { inode }.into());
        }
        let directories = state.desc.used_dirs_count();
        if is_directory && directories == 0 {
            return Err(Corrupt::NoDirectoriesInGroup { inode }.into());
        }
        self.change_inode(handle, &mut state, (index, false));
        if is_directory {
            state.desc.set_used_dirs_count(directories - 1);
            self.group(nr).directories.store(directories - 1, Relaxed);
            self.totals.directories.fetch_sub(1, Relaxed);
        }
        self.write_desc(handle, nr, &mut state);
        let map = state.inodes.as_mut().expect("loaded above");
        bitmap::clear(&mut map.busy, index..index + 1);
        self.add_available_inode(nr, &state);
        self.totals.free_inodes.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Whether an inode is in use on disk.
    pub(super) fn is_inode_allocated(&self, inode: InodeNr) -> Result<bool> {
        let (nr, index) = self.geometry.inode_location(inode)?;
        let mut state = self.lock(nr);
        self.load_inodes(nr, &mut state)?;
        Ok(is_in_use(&state, index))
    }

    /// Where the data of an inode begins to be looked for: the first group of its flex group is for
    /// directories, the next for files.
    pub(super) fn data_goal(&self, inode: InodeNr, is_directory: bool) -> BlockNr {
        let geometry = &self.geometry;
        let Ok((group, _)) = geometry.inode_location(inode) else {
            return BlockNr(geometry.first_data_block.into());
        };
        let flex = geometry.groups_per_flex;
        if flex < 4 {
            return geometry.group_first_block(group);
        }
        let first = group.0 - group.0 % flex;
        let wanted = if is_directory {
            first
        } else {
            first.saturating_add(1)
        };
        geometry.group_first_block(GroupNr(wanted.min(geometry.groups_count() - 1)))
    }
}

fn is_in_use(state: &GroupState, index: u32) -> bool {
    let map = state
        .inodes
        .as_ref()
        .expect("the caller has loaded the inode bitmap");
    !state.has(GroupFlags::INODE_UNINIT)
        && bitmap::bytes_are(&map.buffer.read(), index..index + 1, true)
}
