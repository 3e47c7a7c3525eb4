//! An inode's block map: the extent tree, or the block map of ext2 and ext3 for reading.
//!
//! Looking blocks up takes the state lock; changes run within [`Inode::update`], so that the root
//! in the inode, its nodes and `i_blocks` change together.

use super::{Inode, InodeState};
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentTree, IndirectMap, LOGICAL_END, Mapping};
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::layout::inode::{InodeFlags, S_IFDIR, S_IFMT};
use crate::storage::Handle;
use crate::volume::Volume;
use std::ops::ControlFlow;

/// Blocks of a directory that are freed in one step.
const DIRECTORY_STEP: u32 = 2048;

impl Inode {
    /// Where up to `len` blocks from `logical` on are, as far as they are of one kind and
    /// contiguous.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn map(&self, volume: &Volume, logical: LogicalBlock, len: u32) -> Result<Mapping> {
        let state = self.state();
        let fields = state.fields();
        if fields.flags().contains(InodeFlags::INLINE_DATA) {
            return Err(Error::NotSupported);
        }
        if fields.flags().contains(InodeFlags::EXTENTS) {
            self.tree(volume).map(fields.block_area(), logical, len)
        } else {
            self.indirect(volume).map(fields.block_area(), logical, len)
        }
    }

    /// The extents that end after `from`, in order: `most` of them, or all that are left if that is
    /// fewer.
    ///
    /// # Errors
    /// `NotSupported` for content in the inode itself, `Corrupt`, `Io`.
    pub(crate) fn extents_from(
        &self,
        volume: &Volume,
        from: LogicalBlock,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let visit = |extent: Extent| {
            extents.push(extent);
            Ok(if extents.len() < most {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        };
        let state = self.state();
        let fields = state.fields();
        if fields.flags().contains(InodeFlags::INLINE_DATA) {
            return Err(Error::NotSupported);
        }
        if fields.flags().contains(InodeFlags::EXTENTS) {
            self.tree(volume)
                .for_each(fields.block_area(), from, visit)?;
        } else {
            self.indirect(volume)
                .for_each(fields.block_area(), from, visit)?;
        }
        Ok(extents)
    }

    /// The last extent that begins before `logical`, in the leaf where `logical` belongs.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn extent_before(
        &self,
        volume: &Volume,
        logical: LogicalBlock,
    ) -> Result<Option<Extent>> {
        let Some(before) = logical.0.checked_sub(1) else {
            return Ok(None);
        };
        let state = self.state();
        let area = state.fields().block_area();
        self.tree(volume).nearest_before(area, LogicalBlock(before))
    }

    /// The inode's extent tree.
    pub(crate) fn tree<'v>(&self, volume: &'v Volume) -> ExtentTree<'v> {
        ExtentTree::new(
            &volume.cache,
            &volume.geometry,
            self.nr(),
            self.generation(),
        )
    }

    /// The inode's ext2 block map.
    pub(crate) fn indirect<'v>(&self, volume: &'v Volume) -> IndirectMap<'v> {
        IndirectMap::new(&volume.cache, &volume.geometry, self.nr())
    }

    /// Fails for block maps that kfs only reads.
    ///
    /// # Errors
    /// `NotSupported`.
    pub(crate) fn check_extents(&self) -> Result<()> {
        let flags = self.state().fields().flags();
        if flags.contains(InodeFlags::EXTENTS) {
            Ok(())
        } else {
            Err(Error::NotSupported)
        }
    }

    /// A good place for a new block at `logical`: behind the block before it, else in the inode's
    /// group.
    pub(crate) fn goal(&self, volume: &Volume, logical: LogicalBlock) -> Result<BlockNr> {
        if let Some(before) = logical.0.checked_sub(1).map(LogicalBlock) {
            match self.map(volume, before, 1)? {
                Mapping::Mapped { physical, .. } | Mapping::Unwritten { physical, .. } => {
                    return Ok(physical.plus(1));
                }
                Mapping::Hole { .. } => {}
            }
        }
        let (group, _) = volume.geometry.inode_location(self.nr())?;
        Ok(volume.geometry.group_first_block(group))
    }

    /// Levels of the tree below its root.
    pub(crate) fn tree_depth(&self, volume: &Volume) -> Result<u32> {
        let state = self.state();
        self.tree(volume).depth(state.fields().block_area())
    }

    /// Credits for one insert into the tree; a block map takes none.
    pub(crate) fn insert_credits(&self, volume: &Volume) -> Result<u32> {
        if self.check_extents().is_err() {
            return Ok(0);
        }
        let state = self.state();
        self.tree(volume).step_credits(state.fields().block_area())
    }
}

/// How far taking blocks away came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// All blocks of the range are gone.
    Done,
    /// The handle's credits are used up: go on with another one.
    More,
}

impl Inode {
    /// Takes away the blocks from `first` up to, not including, `end`, and frees them: as many as
    /// the handle has credits for.
    ///
    /// # Errors
    /// `NoSpace` when a hole splits an extent and there is no block for a node, `Corrupt`, `Io`.
    pub(crate) fn remove_blocks(
        &self,
        volume: &Volume,
        handle: &mut Handle<'_>,
        first: u64,
        end: u64,
    ) -> Result<Removal> {
        if self.check_extents().is_err() {
            return if end >= LOGICAL_END {
                self.trim_blocks(volume, handle, first)
            } else {
                Err(Error::NotSupported)
            };
        }
        let last = end.min(LOGICAL_END).saturating_sub(1);
        let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else {
            return Ok(Removal::Done);
        };
        if first > last {
            return Ok(Removal::Done);
        }
        let (first, whole) = (LogicalBlock(first), LogicalBlock(last));
        let last = self.last_of_step(volume, first, whole)?;
        self.try_update(volume, handle, |state, handle| {
            let area = state.fields_mut().block_area_mut();
            let nodes = &*volume.allocator;
            let removed = self.tree(volume).remove(area, handle, nodes, first, last)?;
            let mut blocks = 0;
            let is_metadata = is_directory(state);
            for run in removed.runs {
                forget_if(is_metadata, handle, run);
                volume.allocator.free(handle, run)?;
                blocks += i64::from(run.len);
            }
            state.mark_data_changed(handle);
            state.add_blocks(volume, removed.progress.nodes.net() - blocks)?;
            Ok(if removed.progress.next.is_some() || last < whole {
                Removal::More
            } else {
                Removal::Done
            })
        })
    }

    /// Where a step that removes blocks up to `last` has to stop: each block of a directory is
    /// revoked in the journal, which credits do not count.
    fn last_of_step(
        &self,
        volume: &Volume,
        first: LogicalBlock,
        last: LogicalBlock,
    ) -> Result<LogicalBlock> {
        let state = self.state();
        if !is_directory(&state) {
            return Ok(last);
        }
        let mut step_last = last;
        let area = state.fields().block_area();
        self.tree(volume).for_each(area, first, |extent| {
            let end = extent.logical.max(first).0.saturating_add(DIRECTORY_STEP);
            step_last = last.min(LogicalBlock(end - 1));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(step_last)
    }

    /// As [`Inode::remove_blocks`] to the end of a block map of ext2. Needs [`TRIM_CREDITS`] and
    /// [`CREDITS_INODE`].
    fn trim_blocks(&self, volume: &Volume, handle: &mut Handle<'_>, first: u64) -> Result<Removal> {
        let area = *self.state().fields().block_area();
        let trim = self.indirect(volume).plan_trim(&area, first)?;
        let nodes = trim.nodes.iter().map(|&start| Run { start, len: 1 });
        for run in trim.data.iter().copied().chain(nodes) {
            volume.allocator.check_free(run)?;
        }
        self.try_update(volume, handle, |state, handle| {
            let is_metadata = is_directory(state);
            trim.apply(state.fields_mut().block_area_mut(), handle);
            let mut blocks = 0;
            for &run in &trim.data {
                forget_if(is_metadata, handle, run);
                volume.allocator.free(handle, run)?;
                blocks += i64::from(run.len);
            }
            for &start in &trim.nodes {
                handle.forget(start);
                volume.allocator.free(handle, Run { start, len: 1 })?;
                blocks += 1;
            }
            state.mark_data_changed(handle);
            state.add_blocks(volume, -blocks)
        })?;
        Ok(if trim.is_done {
            Removal::Done
        } else {
            Removal::More
        })
    }
}

/// Whether the inode's blocks are metadata, which the journal holds.
fn is_directory(state: &InodeState) -> bool {
    state.fields().mode() & S_IFMT == S_IFDIR
}

/// Blocks of a directory that are freed must be neither checkpointed nor replayed: they may hold
/// file data next.
fn forget_if(is_metadata: bool, handle: &mut Handle<'_>, run: Run) {
    if is_metadata {
        for block in run.start.0..run.end().0 {
            handle.forget(BlockNr(block));
        }
    }
}

impl InodeState {
    /// Enters an extent of newly allocated blocks.
    ///
    /// # Errors
    /// `NoSpace` for the tree's own blocks, `Corrupt`, `Io`; nothing has changed then.
    pub(crate) fn insert_extent(
        &mut self,
        volume: &Volume,
        inode: &Inode,
        handle: &mut Handle<'_>,
        extent: Extent,
    ) -> Result<()> {
        let tree = inode.tree(volume);
        let goal = extent.physical;
        let area = self.fields_mut().block_area_mut();
        let nodes = tree.insert(area, handle, &*volume.allocator, extent, goal)?;
        self.mark_data_changed(handle);
        self.add_blocks(volume, i64::from(extent.len) + nodes.net())
    }

    /// Makes unwritten blocks written, as many of `len` as the handle has credits for, and returns
    /// how many.
    ///
    /// # Errors
    /// `NoSpace` for the tree's own blocks, `Corrupt`, `Io`; nothing has changed then.
    pub(crate) fn mark_written(
        &mut self,
        volume: &Volume,
        inode: &Inode,
        handle: &mut Handle<'_>,
        first: LogicalBlock,
        len: u32,
    ) -> Result<u32> {
        let area = self.fields_mut().block_area_mut();
        let nodes = &*volume.allocator;
        let progress = inode
            .tree(volume)
            .mark_written(area, handle, nodes, first, len)?;
        self.mark_data_changed(handle);
        self.add_blocks(volume, progress.nodes.net())?;
        Ok(progress.next.map_or(len, |next| next.0 - first.0))
    }

    /// Moves one block of the file to a newly allocated block, and frees the old one.
    ///
    /// # Errors
    /// As [`InodeState::replace_blocks`].
    pub(crate) fn replace_block(
        &mut self,
        volume: &Volume,
        inode: &Inode,
        handle: &mut Handle<'_>,
        logical: LogicalBlock,
        physical: BlockNr,
    ) -> Result<()> {
        self.replace_blocks(volume, inode, handle, (logical, 1), (physical, false))
            .map(|_| ())
    }

    /// Moves blocks of the file to newly allocated ones from `physical` on, unwritten or not, and frees
    /// the old ones: as many as the handle has credits for. Returns how many.
    ///
    /// # Errors
    /// `NoSpace` for the tree's own blocks, `Corrupt`, `Io`; nothing has changed then.
    pub(crate) fn replace_blocks(
        &mut self,
        volume: &Volume,
        inode: &Inode,
        handle: &mut Handle<'_>,
        (first, len): (LogicalBlock, u32),
        (physical, unwritten): (BlockNr, bool),
    ) -> Result<u32> {
        let area = self.fields_mut().block_area_mut();
        let nodes = &*volume.allocator;
        let replaced = inode
            .tree(volume)
            .replace(area, handle, nodes, first, len, physical, unwritten)?;
        for run in replaced.old {
            volume.allocator.free(handle, run)?;
        }
        self.mark_data_changed(handle);
        self.add_blocks(volume, replaced.progress.nodes.net())?;
        Ok(replaced.progress.next.map_or(len, |next| next.0 - first.0))
    }

    /// Adds to `i_blocks`; `count` is in blocks of the volume.
    ///
    /// # Errors
    /// `FileTooLarge` when the inode cannot hold the number.
    pub(crate) fn add_blocks(&mut self, volume: &Volume, count: i64) -> Result<()> {
        let sectors = i64::from(volume.geometry.block_size / 512);
        let before = self.fields().blocks_512(&volume.geometry);
        let after = before.saturating_add_signed(count.saturating_mul(sectors));
        self.fields_mut().set_blocks_512(&volume.geometry, after)
    }
}
