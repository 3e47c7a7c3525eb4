//! The allocator: free blocks and inodes.
//!
//! ```text
//!   reserve          in memory: the blocks are busy, nobody else gets them     may fail, no handle
//!   allocate         on disk, with a handle: bits, counters, checksums         cannot fail
//!   free             on disk at once; busy in memory until the commit          fails before a change
//!   drop             of a reservation: what was not allocated may be had again
//! ```
//!
//! Reserving may read bitmaps and needs no handle, so it comes before `Journal::start` or, for
//! tree blocks, while the operation is still being planned.
//!
//! [`Error::NoSpace`](crate::Error::NoSpace) while [`Allocator::pending_blocks`] is not 0 may be
//! cured by a commit: callers without a handle commit and try once more.
//!
//! A group whose bitmap or descriptor contradicts itself is logged, reported by
//! [`Allocator::damage`] and not touched any more; the others go on being used.

mod bitmap;
mod blocks;
mod contiguous;
mod fixed;
mod group_bitmaps;
mod group_list;
mod groups;
mod grow;
mod inodes;
mod kept;
mod pending;
mod placement;
mod reservation;
mod shrink;

#[cfg(test)]
mod tests;

use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, GroupNr, InodeNr, Run};
use crate::layout::{Geometry, GroupFlags};
use crate::storage::{BufferCache, CommitObserver, Handle};
pub use contiguous::ContiguousRequest;
use groups::GroupTable;
pub(crate) use grow::{ADD_GROUP_CREDITS, EXTEND_CREDITS, NewGroup};
pub use inodes::InodeReservation;
pub use kept::{KeptBlocks, LiveBitmap};
pub use reservation::Reservation;
pub(crate) use shrink::{GoneGroup, REMOVE_GROUP_CREDITS, SHORTEN_CREDITS};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Credits of [`Allocator::allocate`]: bitmap and descriptor.
pub const ALLOCATE_CREDITS: u32 = 2;

/// Credits of [`Allocator::allocate_inode`]: both bitmaps, descriptor, new blocks of the table, of
/// which the inode's own is one.
pub const ALLOCATE_INODE_CREDITS: u32 = 3 + inodes::FRESH_TABLE_BLOCKS_MAX;

/// Credits of [`Allocator::free_inode`]: bitmap and descriptor.
pub const FREE_INODE_CREDITS: u32 = 2;

/// What is asked of [`Allocator::reserve`].
#[derive(Clone, Copy, Debug)]
pub struct BlockRequest {
    /// Where the run should begin; any number will do.
    pub goal: BlockNr,
    /// Blocks wanted.
    pub len: u32,
    /// Whether the blocks kept for root may be taken.
    pub privileged: bool,
}

/// The figures that the superblock repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeCounts {
    /// Free blocks on disk.
    pub blocks: u64,
    /// Free inodes on disk.
    pub inodes: u32,
}

/// Free blocks and inodes of a volume.
pub struct Allocator {
    table: Arc<GroupTable>,
}

impl Allocator {
    /// Reads the group descriptors. Bitmaps are read when they are first needed.
    ///
    /// # Errors
    /// When the device fails. Damaged descriptors are no error, see [`Allocator::damage`].
    pub fn open(cache: Arc<BufferCache>, geometry: Geometry) -> Result<Self> {
        Ok(Self {
            table: Arc::new(GroupTable::open(cache, geometry)?),
        })
    }

    /// To be told of commits: without it freed blocks are never handed out again.
    #[must_use]
    pub fn observer(&self) -> Arc<dyn CommitObserver> {
        Arc::clone(&self.table) as _
    }

    /// Whether a block is fixed metadata: superblock copies, descriptors, bitmaps, inode tables.
    #[must_use]
    pub fn is_fixed(&self, block: BlockNr) -> bool {
        let run = Run {
            start: block,
            len: 1,
        };
        self.table.fixed.read().first_in(run).is_some()
    }

    /// The block bitmap of a group in which only fixed metadata is in use.
    #[must_use]
    pub fn initial_block_bitmap(&self, group: GroupNr) -> Vec<u8> {
        let mut bytes = vec![0; self.table.geometry.block_size as usize];
        self.table.fill_initial_blocks(group, &mut bytes);
        bytes
    }

    /// Declares blocks that are in use but of no file (those of the journal): files that claim them
    /// are corrupt. Those of earlier calls no longer are.
    pub fn protect(&self, runs: &[Run]) {
        self.table.protect(runs);
    }

    /// Sets who knows what snapshots keep. The first call counts, later ones do nothing.
    pub fn set_keeper(&self, keeper: Arc<dyn KeptBlocks>) {
        let _ = self.table.keeper.set(keeper);
    }

    /// Whether snapshots keep the first block of a run, and how many after it are like it.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub fn kept_run(&self, run: Run) -> Result<(bool, u32)> {
        self.table.kept_run(run)
    }

    /// Looks at what snapshots keep of a group, where none were when it was looked at last.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub fn load_kept(&self, group: GroupNr) -> Result<()> {
        let mut state = self.table.lock(group);
        self.table.load_blocks(group, &mut state)
    }

    /// While this lives, what is known of groups is not forgotten. What a deletion takes from groups it
    /// would otherwise take from those forgotten at once, and not when it is their turn.
    pub fn keep_loaded(&self) -> impl Drop {
        kept::StaysLoaded::new(&self.table)
    }

    /// The groups to be looked at again when a snapshot was deleted.
    #[must_use]
    pub fn groups_with_kept(&self) -> Vec<GroupNr> {
        self.table.groups_with_kept()
    }

    /// Looks again at what snapshots keep of a group, after one was deleted.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub fn review_kept(&self, group: GroupNr) -> Result<()> {
        self.table.review_kept(group)
    }

    /// The block bitmap's block of each group.
    #[must_use]
    pub fn block_bitmaps(&self) -> Vec<u64> {
        let groups = (0..self.table.geometry.groups_count()).map(GroupNr);
        groups
            .map(|nr| self.table.lock(nr).desc.block_bitmap().0)
            .collect()
    }

    /// Lets `look` see a group's block bitmap as it is now.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`, and what `look` reports.
    pub fn with_live_bitmap(
        &self,
        group: GroupNr,
        look: impl FnOnce(&LiveBitmap<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.table.lock(group);
        self.table.load_blocks(group, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        look(&LiveBitmap {
            block: map.buffer.nr(),
            bytes: &map.buffer.freeze(),
            is_uninit: state.has(GroupFlags::BLOCK_UNINIT),
        })
    }

    /// Blocks that are free on disk and kept by snapshots.
    #[must_use]
    pub fn pinned_blocks(&self) -> u64 {
        self.table.totals.pinned_blocks.load(Relaxed).max(0) as u64
    }

    /// The first damage found in descriptors or bitmaps: the volume wants e2fsck.
    #[must_use]
    pub fn damage(&self) -> Option<Corrupt> {
        self.table.damage()
    }

    /// Promises 1 to `request.len` contiguous blocks: as many as there are in a run, as near to the
    /// goal as possible. Large requests get runs aligned to 2 MiB where there are any.
    ///
    /// # Errors
    /// `NoSpace`; `Io` when no group could be read that had space.
    pub fn reserve(&self, request: BlockRequest) -> Result<Reservation> {
        self.table.reserve(request)
    }

    /// Promises a run of exactly the requested length, wherever there is one, or none.
    ///
    /// # Errors
    /// `Invalid` for an empty request; `Io` when a group could not be read.
    pub fn reserve_contiguous(&self, request: ContiguousRequest) -> Result<Option<Reservation>> {
        self.table.reserve_contiguous(request)
    }

    /// Promises some of the first run of free blocks that begins at index `from` of a group or after it and has
    /// at least `least` blocks, `most` of them; `None` where there is none.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub fn reserve_free_run(
        &self,
        group: GroupNr,
        from: u32,
        (least, most): (u32, u32),
    ) -> Result<Option<Reservation>> {
        self.table.reserve_free_run(group, from, (least, most))
    }

    /// Puts the first `len` blocks of a reservation in use. Needs [`ALLOCATE_CREDITS`].
    ///
    /// # Panics
    /// When `len` is 0 or more than is reserved.
    pub fn allocate(
        &self,
        handle: &mut Handle<'_>,
        reservation: &mut Reservation,
        len: u32,
    ) -> Run {
        self.table.allocate(handle, reservation, len)
    }

    /// Whether [`Allocator::free`] would take a run: to be asked before anything is changed, so that
    /// freeing it cannot fail half-way.
    ///
    /// # Errors
    /// As [`Allocator::free`], and `Io` when a bitmap cannot be read.
    pub fn check_free(&self, run: Run) -> Result<()> {
        if self.table.is_allocated(run)? {
            Ok(())
        } else {
            let Run { start, len } = run;
            Err(Corrupt::RunNotInUse { start, len }.into())
        }
    }

    /// The same for [`Allocator::free_inode`].
    ///
    /// # Errors
    /// As [`Allocator::free_inode`].
    pub fn check_free_inode(&self, inode: InodeNr) -> Result<()> {
        if self.table.is_inode_allocated(inode)? {
            Ok(())
        } else {
            Err(Corrupt::InodeNotInUse { inode }.into())
        }
    }

    /// Frees blocks. They are free on disk with the handle's transaction and handed out again when
    /// it has committed. Needs [`Allocator::free_credits`].
    ///
    /// # Errors
    /// `Corrupt` when a block is outside the volume, fixed metadata, or free; then nothing changed.
    pub fn free(&self, handle: &mut Handle<'_>, run: Run) -> Result<()> {
        self.table.free(handle, run)
    }

    /// Credits of [`Allocator::free`] for a run of `len` blocks.
    #[must_use]
    pub fn free_credits(&self, len: u32) -> u32 {
        2 * (len / self.table.geometry.blocks_per_group + 2)
    }

    /// Whether blocks may belong to a file: inside the volume and not fixed metadata.
    #[must_use]
    pub fn is_valid_data_run(&self, run: Run) -> bool {
        self.table.check_data_run(run).is_ok()
    }

    /// Like [`Allocator::is_valid_data_run`], saying what is wrong.
    ///
    /// # Errors
    /// `Corrupt::BlockOutside`, `Corrupt::RunInMetadata`.
    pub fn check_data_run(&self, run: Run) -> Result<()> {
        self.table.check_data_run(run)
    }

    /// Whether all blocks of a run are in use on disk.
    ///
    /// # Errors
    /// `Corrupt` for a run that no file can have and for damaged groups, `Io`.
    pub fn is_allocated(&self, run: Run) -> Result<bool> {
        self.table.is_allocated(run)
    }

    /// Promises an inode. Directories are placed by Orlov's rules, others near their parent.
    ///
    /// # Errors
    /// `NoSpace`; `Io`; `Corrupt::InodeOutside` for an impossible parent.
    pub fn reserve_inode(&self, parent: InodeNr, is_directory: bool) -> Result<InodeReservation> {
        self.table.reserve_inode(parent, is_directory)
    }

    /// Puts a promised inode in use; its bytes in the table are still those of its last life, or
    /// zeros. Needs [`ALLOCATE_INODE_CREDITS`].
    pub fn allocate_inode(
        &self,
        handle: &mut Handle<'_>,
        reservation: InodeReservation,
    ) -> InodeNr {
        self.table.allocate_inode(handle, reservation)
    }

    /// Frees an inode. Needs [`FREE_INODE_CREDITS`].
    ///
    /// # Errors
    /// `Corrupt` when the inode is reserved, free, or a directory where the group has none; `Io`.
    /// Then nothing changed.
    pub fn free_inode(
        &self,
        handle: &mut Handle<'_>,
        inode: InodeNr,
        is_directory: bool,
    ) -> Result<()> {
        self.table.free_inode(handle, inode, is_directory)
    }

    /// Whether an inode is in use on disk.
    ///
    /// # Errors
    /// `Corrupt` for a number outside the volume and for damaged groups, `Io`.
    pub fn is_inode_allocated(&self, inode: InodeNr) -> Result<bool> {
        self.table.is_inode_allocated(inode)
    }

    /// Block of the inode table that holds an inode, and the inode's offset in it.
    ///
    /// # Errors
    /// `Corrupt` for a number outside the volume and where the group's descriptor is damaged.
    pub fn inode_block(&self, inode: InodeNr) -> Result<(BlockNr, usize)> {
        let (group, index) = self.table.geometry.inode_location(inode)?;
        let (block, offset) = self.table.geometry.inode_table_offset(index);
        Ok((self.table.inode_table(group)?.plus(block.into()), offset))
    }

    /// Goal for the first blocks of an inode.
    #[must_use]
    pub fn data_goal(&self, inode: InodeNr, is_directory: bool) -> BlockNr {
        self.table.data_goal(inode, is_directory)
    }

    /// What the superblock is to say.
    #[must_use]
    pub fn free_counts(&self) -> FreeCounts {
        let totals = &self.table.totals;
        FreeCounts {
            blocks: totals.free_blocks.load(Relaxed),
            inodes: u32::try_from(totals.free_inodes.load(Relaxed)).unwrap_or(u32::MAX),
        }
    }

    /// Blocks that are free and not promised, those waiting for a commit included (statfs).
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        let available = self.table.totals.available_blocks.load(Relaxed);
        available.max(0) as u64 + self.pending_blocks()
    }

    /// Freed blocks that wait for a commit.
    #[must_use]
    pub fn pending_blocks(&self) -> u64 {
        self.table.pending.blocks()
    }

    /// Inodes that are free and not promised.
    #[must_use]
    pub fn free_inodes(&self) -> u64 {
        self.table.totals.available_inodes.load(Relaxed).max(0) as u64
    }

    /// Directories on the volume.
    #[must_use]
    pub fn directories(&self) -> u64 {
        self.table.totals.directories.load(Relaxed)
    }

    /// Blocks that only privileged requests may take.
    #[must_use]
    pub fn privileged_blocks(&self) -> u64 {
        self.table.totals.privileged_blocks.load(Relaxed)
    }

    /// Changes [`Allocator::privileged_blocks`], which the superblock sets first.
    pub fn set_privileged_blocks(&self, count: u64) {
        let count = count.min(self.table.geometry.blocks_count());
        self.table.totals.privileged_blocks.store(count, Relaxed);
    }

    /// Makes the last group longer, up to `blocks_count` blocks of the volume, and returns by how many.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`; nothing has changed then.
    pub(crate) fn extend_last(&self, handle: &mut Handle<'_>, blocks_count: u64) -> Result<u32> {
        self.table.extend_last(handle, blocks_count)
    }

    /// Makes everything ready for the next group of a volume that is then as `after` says.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn prepare_group(&self, after: &Geometry) -> Result<NewGroup> {
        self.table.prepare_group(after)
    }

    /// Adds a group: from now on others allocate from it.
    pub(crate) fn add_group(&self, handle: &mut Handle<'_>, new: NewGroup) {
        self.table.add_group(handle, new);
    }

    /// From now on nothing is handed out that lies behind the first `blocks_count` blocks; inodes of the
    /// groups that begin there neither.
    pub(crate) fn set_fence(&self, blocks_count: u64) {
        self.table.set_fence(blocks_count);
    }

    /// The inodes of a group that are in use, reserved ones included.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub(crate) fn used_inodes(&self, group: GroupNr) -> Result<Vec<InodeNr>> {
        self.table.used_inodes(group)
    }

    /// Blocks of a group that are free, and how many runs they make, of those with an index below `end`.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub(crate) fn free_runs(&self, group: GroupNr, end: u32) -> Result<(u32, u32)> {
        self.table.free_runs(group, end)
    }

    /// Blocks that are in use, and no fixed metadata, from block `end` on.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group, `Io`.
    pub(crate) fn used_behind(&self, end: BlockNr) -> Result<u64> {
        self.table.used_behind(end.0)
    }

    /// Blocks of fixed metadata before block `end`.
    pub(crate) fn fixed_before(&self, end: BlockNr) -> u64 {
        let fixed = self.table.fixed.read();
        fixed.within(0, end.0).map(|(start, end)| end - start).sum()
    }

    /// Where block bitmap, inode bitmap and inode table of a group lie.
    ///
    /// # Errors
    /// `Corrupt` for a damaged group.
    pub(crate) fn metadata_runs(&self, group: GroupNr) -> Result<[Run; 3]> {
        self.table.metadata_runs(group)
    }

    /// Looks at the last group, which is to go.
    ///
    /// # Errors
    /// `Busy` when something is in it, `Corrupt`, `Io`.
    pub(crate) fn prepare_removal(&self) -> Result<GoneGroup> {
        self.table.prepare_removal()
    }

    /// Takes the last group away, and frees fixed metadata elsewhere. The volume is then as `after` says.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; nothing has changed then.
    pub(crate) fn remove_group(
        &self,
        handle: &mut Handle<'_>,
        gone: &GoneGroup,
        freed: &[Run],
        after: &Geometry,
    ) -> Result<()> {
        self.table.remove_group(handle, gone, freed, after)
    }

    /// Makes the last group shorter, down to `blocks_count` blocks of the volume, and returns by how many.
    ///
    /// # Errors
    /// `Busy` when something is there, `Corrupt`, `Io`; nothing has changed then.
    pub(crate) fn shorten_last(&self, handle: &mut Handle<'_>, blocks_count: u64) -> Result<u32> {
        self.table.shorten_last(handle, blocks_count)
    }

    /// The content of a block of the descriptor table as it is now.
    pub(crate) fn desc_content(&self, index: usize) -> Option<Arc<[u8]>> {
        self.table.desc_content(index)
    }

    /// Number of block groups.
    #[must_use]
    pub fn groups_count(&self) -> u32 {
        self.table.geometry.groups_count()
    }

    /// Blocks of a group that may be handed out, and the longest run there can be.
    #[must_use]
    pub fn group_space(&self, group: GroupNr) -> (u32, u32) {
        let group = self.table.group(group);
        (
            group.available_blocks.load(Relaxed),
            group.run_max.load(Relaxed),
        )
    }
}
